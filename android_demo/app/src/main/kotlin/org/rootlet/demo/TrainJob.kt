package org.rootlet.demo

import android.app.job.JobInfo
import android.app.job.JobParameters
import android.app.job.JobScheduler
import android.app.job.JobService
import android.content.ComponentName
import android.content.Context
import org.rootlet.fleet.StopSignal

/**
 * Learning in the background: when the phone charges, is idle, has power to spare and an unmetered network. First on
 * the phone's own drawings; then, where its owner joined a federation, in its rounds for some minutes.
 */
class TrainJob : JobService() {
    private var stop = StopSignal()

    override fun onStartJob(parameters: JobParameters): Boolean {
        val mine = StopSignal()
        stop = mine
        val notices = Notices(this)
        Thread {
            notices.learning(getString(R.string.learning))
            val finished = try {
                learn(mine)
            } catch (error: Exception) {
                Session.use(this) { it.note("${error.message ?: error.javaClass.simpleName}") }
                true // the same would fail again: wait for the next drawing, or the next period
            }
            notices.clear()
            if (!mine.isSet) jobFinished(parameters, !finished)
        }.start()
        return true
    }

    /** Whether there is nothing left to do. */
    private fun learn(stopped: StopSignal): Boolean {
        if (!Session.use(this) { it.train { !stopped.isSet } }) return false
        val federation = Federation(this)
        val joins = Session.use(this) { it.settings.joins }
        if (!joins || federation.reasonsAgainst().isNotEmpty()) return true
        val leaving = StopSignal()
        Thread { // leaves when the job must end, or before Android ends it
            stopped.await(MINUTES * 60.0)
            leaving.set()
        }.start()
        federation.run(leaving)
        return true
    }

    /** The training stops between two steps and keeps its checkpoint; the next job takes it up. */
    override fun onStopJob(parameters: JobParameters): Boolean {
        stop.set()
        return true
    }

    companion object {
        private const val ID = 1

        /** Android gives a job ten minutes. */
        private const val MINUTES = 8
        private const val HOUR_MS = 3_600_000L

        /**
         * Asks for one training as soon as the constraints hold, or, in a federation, for one an hour; a second call
         * replaces the first.
         */
        fun schedule(context: Context) {
            val job = JobInfo.Builder(ID, ComponentName(context, TrainJob::class.java))
                .setRequiresCharging(true)
                .setRequiresDeviceIdle(true)
                .setRequiresBatteryNotLow(true)
                .setRequiredNetworkType(JobInfo.NETWORK_TYPE_UNMETERED)
            if (Session.use(context) { it.settings.joins }) job.setPeriodic(HOUR_MS)
            scheduler(context).schedule(job.build())
        }

        /** Takes the request back, and stops a training under way. */
        fun cancel(context: Context) = scheduler(context).cancel(ID)

        private fun scheduler(context: Context) = context.getSystemService(JobScheduler::class.java)
    }
}
