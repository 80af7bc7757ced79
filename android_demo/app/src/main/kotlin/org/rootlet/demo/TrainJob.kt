package org.rootlet.demo

import android.app.job.JobInfo
import android.app.job.JobParameters
import android.app.job.JobScheduler
import android.app.job.JobService
import android.content.ComponentName
import android.content.Context

/** Training in the background: when the phone charges, is idle, has power to spare and an unmetered network. */
class TrainJob : JobService() {
    @Volatile
    private var running = false

    override fun onStartJob(parameters: JobParameters): Boolean {
        running = true
        Thread {
            val finished = try {
                Session.use(this) { it.train { running } }
            } catch (_: Exception) {
                true // the same training would fail again: wait for the next drawing
            }
            if (running) jobFinished(parameters, !finished)
        }.start()
        return true
    }

    /** The training stops between two steps and keeps its checkpoint; the next job takes it up. */
    override fun onStopJob(parameters: JobParameters): Boolean {
        running = false
        return true
    }

    companion object {
        private const val ID = 1

        /** Asks for one training as soon as the constraints hold; a second call replaces the first. */
        fun schedule(context: Context) {
            val job = JobInfo.Builder(ID, ComponentName(context, TrainJob::class.java))
                .setRequiresCharging(true)
                .setRequiresDeviceIdle(true)
                .setRequiresBatteryNotLow(true)
                .setRequiredNetworkType(JobInfo.NETWORK_TYPE_UNMETERED)
                .build()
            scheduler(context).schedule(job)
        }

        /** Takes the request back, and stops a training under way. */
        fun cancel(context: Context) = scheduler(context).cancel(ID)

        private fun scheduler(context: Context) = context.getSystemService(JobScheduler::class.java)
    }
}
