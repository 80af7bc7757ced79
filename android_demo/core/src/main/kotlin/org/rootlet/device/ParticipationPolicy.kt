package org.rootlet.device

/** What holds on the device now; null where it cannot tell. [batteryLevel] is a share of a full one. */
data class DeviceConditions(
    val charging: Boolean? = null,
    val batteryLevel: Double? = null,
    val unmetered: Boolean? = null,
    val idle: Boolean? = null,
    val paused: Boolean = false,
)

/**
 * What must hold before a device takes part, as in the Python SDK (`rootlet.policy`): what it cannot tell counts
 * as not charging, unmetered, and in use.
 *
 * @property batteryAbove share of a full battery, 0 to below 1, that the level must exceed; 0 asks for nothing.
 * @property quietMinutes minutes of the local day (start, end) between which nothing runs; a start after the end
 * spans midnight.
 * @property maxRoundsPerDay most rounds in one local day; null for no limit.
 * @throws IllegalArgumentException a value is out of bounds.
 */
data class ParticipationPolicy(
    val charging: Boolean = true,
    val unmetered: Boolean = true,
    val idle: Boolean = false,
    val batteryAbove: Double = 0.2,
    val quietMinutes: Pair<Int, Int>? = null,
    val maxRoundsPerDay: Int? = null,
) {
    init {
        require(batteryAbove >= 0 && batteryAbove < 1) { "batteryAbove is $batteryAbove, outside 0 <= batteryAbove < 1" }
        require(maxRoundsPerDay == null || maxRoundsPerDay >= 1) { "maxRoundsPerDay is $maxRoundsPerDay, below 1" }
        quietMinutes?.let { (start, end) ->
            require(start in 0 until 1440 && end in 0 until 1440 && start != end) {
                "quietMinutes $start to $end: give two different minutes of the day, 0 to 1439"
            }
        }
    }

    /**
     * Every reason against taking part; empty exactly when the device may.
     *
     * @param minuteOfDay of the local wall clock, 0 to 1439.
     * @param roundsToday already trained in this local day.
     */
    fun reasonsAgainst(now: DeviceConditions, minuteOfDay: Int, roundsToday: Int): List<String> = listOfNotNull(
        "paused by the user".takeIf { now.paused },
        (if (now.charging == false) "not charging" else "charging is unknown").takeIf { charging && now.charging != true },
        "the network is metered".takeIf { unmetered && now.unmetered == false },
        (if (now.idle == false) "the device is in use" else "idleness is unknown").takeIf { idle && now.idle != true },
        batteryReason(now),
        quietMinutes?.let { (start, end) ->
            val quiet = if (start < end) minuteOfDay in start until end else minuteOfDay >= start || minuteOfDay < end
            "quiet hours ${clock(start)} to ${clock(end)}".takeIf { quiet }
        },
        maxRoundsPerDay?.let { most -> "$roundsToday rounds today, the most is $most".takeIf { roundsToday >= most } },
    )

    private fun batteryReason(now: DeviceConditions): String? {
        val level = now.batteryLevel
        return when {
            batteryAbove == 0.0 -> null
            level == null -> "the battery level is unknown".takeIf { now.charging != true }
            level > batteryAbove -> null
            else -> "the battery is at ${Math.round(100 * level)}%, not above ${Math.round(100 * batteryAbove)}%"
        }
    }

    private fun clock(minute: Int) = "%02d:%02d".format(minute / 60, minute % 60)
}
