package org.rootlet.demo

import android.app.job.JobInfo
import android.app.job.JobParameters
import android.app.job.JobScheduler
import android.app.job.JobService
import android.content.ComponentName
import android.content.Context
import org.rootlet.device.ParticipationPolicy
import org.rootlet.fleet.StopSignal

/** Background work, when the phone charges, is idle, has power to spare and a network that is not metered. */
class TrainJob : JobService() {
    @Volatile
    private var running: StopSignal? = null

    @Volatile
    private var yielded: StopSignal? = null

    override fun onStartJob(parameters: JobParameters): Boolean {
        val stop = StopSignal()
        running = stop
        Thread {
            Notice.show(this)
            val turn = Phone.device(this).work(stop, ParticipationPolicy(), { Phone.conditions(this) }, NodeKeys::open)
            Notice.hide(this)
            if (yielded !== stop) jobFinished(parameters, turn.again)
        }.start()
        return true
    }

    /** The work stops between two steps and keeps where it is; the next job takes it up. */
    override fun onStopJob(parameters: JobParameters): Boolean {
        yielded = running
        running?.set()
        return true
    }

    companion object {
        private const val ID = 1

        /** Asks for one turn as soon as the constraints hold; a turn that waits already stays as it is. */
        fun schedule(context: Context) {
            if (scheduler(context).getPendingJob(ID) != null) return
            val job = JobInfo.Builder(ID, ComponentName(context, TrainJob::class.java))
                .setRequiresCharging(true)
                .setRequiresDeviceIdle(true)
                .setRequiresBatteryNotLow(true)
                .setRequiredNetworkType(JobInfo.NETWORK_TYPE_UNMETERED)
                .build()
            scheduler(context).schedule(job)
        }

        /** Takes the request back, and stops a turn under way. */
        fun cancel(context: Context) = scheduler(context).cancel(ID)

        private fun scheduler(context: Context) = context.getSystemService(JobScheduler::class.java)
    }
}
