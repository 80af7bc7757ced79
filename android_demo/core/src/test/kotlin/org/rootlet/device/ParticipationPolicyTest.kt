package org.rootlet.device

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class ParticipationPolicyTest {
    private val good = DeviceConditions(charging = true, batteryLevel = 0.9, unmetered = true, idle = true)

    private fun reasons(policy: ParticipationPolicy, now: DeviceConditions = good, minute: Int = 720, rounds: Int = 0) =
        policy.reasonsAgainst(now, minute, rounds)

    @Test
    fun everyReasonIsNamed() {
        val policy = ParticipationPolicy(idle = true, quietMinutes = 700 to 800, maxRoundsPerDay = 2)
        val bad = DeviceConditions(charging = false, batteryLevel = 0.2, unmetered = false, idle = false, paused = true)
        val expected = listOf(
            "paused by the user", "not charging", "the network is metered", "the device is in use",
            "the battery is at 20%, not above 20%", "quiet hours 11:40 to 13:20", "2 rounds today, the most is 2",
        )
        assertEquals(expected, reasons(policy, bad, rounds = 2))
        assertEquals(emptyList<String>(), reasons(policy, minute = 800, rounds = 1))
    }

    @Test
    fun whatIsUnknownCountsAsTheSchedulersOfPhonesCountIt() {
        val unknown = DeviceConditions()
        assertEquals(listOf("charging is unknown", "the battery level is unknown"), reasons(ParticipationPolicy(), unknown))
        assertEquals(listOf("idleness is unknown"), reasons(ParticipationPolicy(charging = false, idle = true, batteryAbove = 0.0), unknown))
        assertEquals(emptyList<String>(), reasons(ParticipationPolicy(), DeviceConditions(charging = true)))
    }

    @Test
    fun quietHoursMaySpanMidnight() {
        val night = ParticipationPolicy(quietMinutes = 1320 to 360)
        assertEquals(listOf(true, true, false, true, false), listOf(1320, 0, 360, 359, 1319).map { reasons(night, minute = it).isNotEmpty() })
    }

    @Test
    fun valuesOutOfBoundsAreRefused() {
        assertThrows(IllegalArgumentException::class.java) { ParticipationPolicy(batteryAbove = 1.0) }
        assertThrows(IllegalArgumentException::class.java) { ParticipationPolicy(batteryAbove = Double.NaN) }
        assertThrows(IllegalArgumentException::class.java) { ParticipationPolicy(maxRoundsPerDay = 0) }
        assertThrows(IllegalArgumentException::class.java) { ParticipationPolicy(quietMinutes = 60 to 60) }
    }
}
