package org.rootlet.demo

import android.app.Notification
import android.app.NotificationChannel
import android.app.NotificationManager
import android.content.Context

/** The quiet line that says that the phone is learning, for as long as it does. */
object Notice {
    private const val CHANNEL = "learning"
    private const val ID = 1

    /** Shows it, where the user lets the app. */
    fun show(context: Context) {
        val manager = manager(context)
        val name = context.getString(R.string.channel)
        manager.createNotificationChannel(NotificationChannel(CHANNEL, name, NotificationManager.IMPORTANCE_LOW))
        val notice = Notification.Builder(context, CHANNEL)
            .setSmallIcon(R.drawable.notice)
            .setContentTitle(context.getString(R.string.learning))
            .setContentText(context.getString(R.string.learning_why))
            .setOngoing(true)
            .build()
        manager.notify(ID, notice)
    }

    /** Takes it away. */
    fun hide(context: Context) = manager(context).cancel(ID)

    private fun manager(context: Context) = context.getSystemService(NotificationManager::class.java)
}
