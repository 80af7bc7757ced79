package org.rootlet.secagg

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import org.rootlet.fleet.ConfigRecord
import org.rootlet.fleet.RecordError
import org.rootlet.fleet.Vectors
import org.rootlet.wire.StrictJson

/** What Python refuses, in its words: `tests/vectors/secagg_refusals.json`. */
class SecureRefusalsTest {
    private val all = Vectors.asMap(
        StrictJson.parse(File(System.getProperty("rootlet.repository"), "tests/vectors/secagg_refusals.json").readBytes()),
    )

    private fun cases(name: String, least: Int) = (all[name] as List<*>).map(Vectors::asMap).also { assertTrue("${it.size} of $name", it.size >= least) }
    private fun plan(case: Map<String, Any?>) = SecurePlan.parse((case["plan"] as String).toByteArray())

    @Test
    fun plansThatCannotBe() {
        val parser = "not a plan of a secure round: " // what follows are the parser's own words
        for (case in cases("plans", 35)) {
            val error = refused { SecurePlan.parse((case["raw"] as String).toByteArray()) }
            val expected = case["error"] as String
            if (expected.startsWith(parser)) assertEquals(parser, error.take(parser.length)) else assertEquals(expected, error)
        }
    }

    @Test
    fun rostersAndLiveSetsThatCannotBe() {
        for (case in cases("rosters", 13)) {
            val error = refused {
                val roster = Roster.parse(plan(case), Vectors.fromHex(case["roster"]))
                roster.places(Vectors.fromHex(case.getValue("live")))
            }
            assertEquals(case["error"], error)
        }
    }

    @Test
    fun plansBelowTheFloorsOfTheDevice() {
        for (case in cases("policies", 5)) {
            val floors = Vectors.asMap(case["floors"])
            val standard = SecurePolicy()
            val policy = SecurePolicy(
                minLive = (floors["min_live"] as Long?)?.toInt() ?: standard.minLive,
                minNoiseMultiplier = floors["min_noise_multiplier"] as Double? ?: standard.minNoiseMultiplier,
                maxClipNorm = floors["max_clip_norm"] as Double? ?: standard.maxClipNorm,
            )
            val plan = plan(case)
            assertEquals(case["error"], refused { policy.check(plan, plan.manifestSha256, case["values"] as Long) })
        }
    }

    @Test
    fun messagesThatAreNone() {
        for (case in cases("messages", 19)) {
            val record = ConfigRecord(Vectors.values(Vectors.asMap(case["record"])))
            val error = assertThrows("${case["error"]}", RecordError::class.java) {
                StageMessage.request(mapOf("secure" to record)).byPlace("shares")
            }
            assertEquals(case["error"], error.message)
        }
    }

    private fun refused(step: () -> Unit): String = assertThrows(SecureRoundRefusedError::class.java) { step() }.message!!
}
