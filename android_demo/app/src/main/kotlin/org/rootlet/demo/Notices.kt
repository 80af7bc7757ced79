package org.rootlet.demo

import android.app.Notification
import android.app.NotificationChannel
import android.app.NotificationManager
import android.content.Context

/** The notification while the phone learns, quiet, in a channel of its own that its owner can turn off. */
class Notices(private val context: Context) {
    private val manager = context.getSystemService(NotificationManager::class.java)

    init {
        val name = context.getString(R.string.channel)
        manager.createNotificationChannel(NotificationChannel(CHANNEL, name, NotificationManager.IMPORTANCE_LOW))
    }

    /** Says that the phone learns, until [clear]. */
    fun learning(text: String) {
        val notice = Notification.Builder(context, CHANNEL)
            .setSmallIcon(R.drawable.icon)
            .setContentTitle(context.getString(R.string.app_name))
            .setContentText(text)
            .setOngoing(true)
            .build()
        manager.notify(ID, notice)
    }

    fun clear() = manager.cancel(ID)

    private companion object {
        const val CHANNEL = "learning"
        const val ID = 1
    }
}
