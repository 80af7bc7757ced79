package org.rootlet.secagg

import java.io.File
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.rootlet.fleet.Adapter
import org.rootlet.fleet.Adder
import org.rootlet.fleet.Answer
import org.rootlet.fleet.ArrayRecord
import org.rootlet.fleet.ConfigRecord
import org.rootlet.fleet.Dtype
import org.rootlet.fleet.ERROR_MALFORMED
import org.rootlet.fleet.ERROR_REFUSED
import org.rootlet.fleet.FleetRequest
import org.rootlet.fleet.MetricRecord
import org.rootlet.fleet.Participant
import org.rootlet.fleet.RoundWork
import org.rootlet.fleet.TrainSettings
import org.rootlet.fleet.Vectors
import org.rootlet.privacy.PrivacyAccount
import org.rootlet.privacy.PrivacyPolicy
import org.rootlet.privacy.PrivacySpent
import org.rootlet.wire.sha256

/** Enrolled participants, and a server that speaks to them in messages. */
class SecureParticipationTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val plain = Vectors.values(Vectors.map("plain"))
    private val noise = mapOf("clip_norm" to 1.0, "scale_bits" to 3L, "unit_inverse" to 20.0, "honest" to 4L)
    private var trained = 0

    /** Counts what is trained. */
    private inner class Counting : RoundWork by Adder(0.5f) {
        override fun train(adapter: Adapter, settings: TrainSettings, shouldStop: () -> Boolean) =
            Adder(0.5f).train(adapter, settings, shouldStop).also { trained++ }
    }

    private fun participant(
        identity: Identity = Enrolled.identity(),
        policy: SecurePolicy = SecurePolicy(minLive = 4),
        used: UsedRounds = UsedRounds(null),
        allowed: PrivacyPolicy = PrivacyPolicy(),
    ) = Participant(Counting(), secure = SecureParticipation(identity, policy, "ab".repeat(32), 7, used), account = PrivacyAccount(allowed))

    private fun rawPlan(id: Int = 1, more: Map<String, Any> = emptyMap()) =
        Enrolled.rawPlan(values = 7, more = mapOf<String, Any>("round_id" to "%032x".format(id)) + more)

    private fun stage(name: String, id: Int, vararg values: Pair<String, Any>) = ConfigRecord(
        mapOf<String, Any>("protocol" to 1L, "stage" to name, "round_id" to if (name == "advertise") "" else "%032x".format(id)) + values,
    )

    private fun Participant.query(record: ConfigRecord): Answer = answer(FleetRequest(7, "1", "query", mapOf("secure" to record), 0)) { false }!!

    private fun Participant.train(vararg more: Pair<String, ConfigRecord>, type: String = "train"): Answer {
        val config = if (type == "train") plain else plain.entries.take(5).associate { it.key to it.value }
        val records = mapOf("arrays" to ArrayRecord(Vectors.adapter()), "config" to ConfigRecord(config)) + more
        return answer(FleetRequest(7, "1", type, records, 0)) { false }!!
    }

    private fun Participant.advertise(raw: ByteArray) = query(stage("advertise", 0, "plan" to raw))

    private fun said(answer: Answer): Map<String, Any> {
        assertEquals("" to setOf("secure"), answer.error to answer.records.keys)
        return (answer.records.getValue("secure") as ConfigRecord).values
    }

    private fun refused(words: String, answer: Answer, code: Long = ERROR_REFUSED) {
        assertTrue("${answer.error} lacks: $words", words in answer.error)
        assertEquals(code to 0, answer.code to answer.records.size)
    }

    @Test
    fun aRoundInMessagesTellsNothingButItsStages() {
        val keys = List(6) { RawIdentityKey.generate() }.sortedBy { Vectors.toHex(it.id) }
        val devices = keys.map { participant(Enrolled.identity(it)) }
        val raw = rawPlan(more = mapOf("noise" to noise))
        val adverts = devices.map { device ->
            val answer = said(device.advertise(raw))
            assertEquals(listOf("protocol", "stage", "round_id", "advertisement"), answer.keys.toList())
            assertEquals(listOf<Any>(1L, "advertise", "%032x".format(1)), answer.values.take(3))
            answer.getValue("advertisement") as ByteArray
        }
        val rows = keys.zip(adverts).map { (key, advert) -> key.id + sha256(advert) }.reduce { a, b -> a + b }
        val shares = devices.mapIndexed { place, device ->
            val others = adverts.indices - place
            val answer = said(
                device.query(
                    stage("share", 1, "roster" to rows, "places" to others.map { it.toLong() }, "advertisements" to others.map { adverts[it] }),
                ),
            )
            assertEquals(others.map { it.toLong() }, answer["places"])
            others.zip((answer.getValue("shares") as List<*>).map { it as ByteArray }).toMap()
        }
        val live = byteArrayOf(63)
        for ((place, device) in devices.withIndex()) {
            val others = shares.indices - place
            val upload = stage("upload", 1, "places" to others.map { it.toLong() }, "shares" to others.map { shares[it].getValue(place) })
            val answer = device.train("secure" to upload)
            assertEquals("" to listOf("arrays", "metrics", "secure"), answer.error to answer.records.keys.toList())
            val masked = (answer.records.getValue("arrays") as ArrayRecord).arrays
            assertEquals(setOf("masked"), masked.keys)
            assertEquals(Dtype.UINT16 to listOf(7), masked.getValue("masked").let { it.dtype to it.shape })
            assertEquals(mapOf("bytes_up" to 14L), (answer.records.getValue("metrics") as MetricRecord).values)
            assertEquals(PrivacySpent.ofDevice(1.0, SecurePlan.parse(raw).noise!!.noiseMultiplier(7)), answer.spent)
        }
        val signatures = devices.map { said(it.query(stage("confirm", 1, "live" to live))).getValue("signature") as ByteArray }
        for ((place, device) in devices.withIndex()) {
            val others = signatures.indices - place
            val unmask = stage("unmask", 1, "live" to live, "places" to others.map { it.toLong() }, "signatures" to others.map { signatures[it] })
            val answer = said(device.query(unmask))
            assertEquals(setOf("protocol", "stage", "round_id", "places", "secrets", "shares"), answer.keys)
            assertEquals(List(6) { it.toLong() } to List(6) { true }, answer["places"] to answer["secrets"])
            assertArrayEquals(intArrayOf(33, 33, 33, 33, 33, 33), (answer.getValue("shares") as List<*>).map { (it as ByteArray).size }.toIntArray())
            refused("is not under way here", device.query(unmask)) // over, and forgotten
        }
    }

    @Test
    fun nothingLeavesInClearUnlessTheAppAllowsIt() {
        refused("sends its update by secure aggregation only", participant().train())
        refused("sends its figures by secure aggregation only", participant().train(type = "evaluate"))
        assertEquals(0, trained)
        val open = participant(policy = SecurePolicy(required = false))
        assertEquals("" to "", open.train().error to open.train(type = "evaluate").error)
    }

    @Test
    fun aRoundThatIsNotUnderWayIsRefusedBeforeAnythingIsTrained() {
        val none = arrayOf("places" to listOf<Long>(), "shares" to listOf<ByteArray>())
        refused("is not under way here", participant().train("secure" to stage("upload", 1, *none)))
        refused("comes with a train request", participant().query(stage("upload", 1, *none)))
        val private = ConfigRecord(mapOf("unit" to "device", "max_norm" to 1.0, "noise_multiplier" to 2.0, "sample_rate" to 1.0))
        val device = participant().also { said(it.advertise(rawPlan())) }
        refused("one account cannot hold both", device.train("secure" to stage("upload", 1, *none), "privacy" to private))
        val poor = participant(allowed = PrivacyPolicy(maxEpsilon = 0.01)).also { said(it.advertise(rawPlan(more = mapOf("noise" to noise)))) }
        refused("its budget is spent", poor.train("secure" to stage("upload", 1, *none)))
        assertEquals(0, trained)
    }

    @Test
    fun whatIsWrongWithAMessageEndsItsRoundAndNoOther() {
        val device = participant()
        for (id in 1..3) said(device.advertise(rawPlan(id)))
        val malformed = stage("share", 1, "roster" to ByteArray(64), "places" to listOf(1L, 1L), "advertisements" to listOf(ByteArray(1), ByteArray(1)))
        refused("a roster of 1", device.query(malformed))
        val unequal = stage("upload", 2, "places" to listOf(1L), "shares" to listOf<ByteArray>())
        refused("1 places and 0 shares", device.train("secure" to unequal), ERROR_MALFORMED)
        for (id in 1..2) refused("is not under way here", device.query(stage("confirm", id, "live" to ByteArray(1))))
        refused("stage 'confirm' again or out of order: this device is at 'share'", device.query(stage("confirm", 3, "live" to ByteArray(1))))
    }

    @Test
    fun theOldestRoundIsGivenUpForAFifth() {
        val device = participant()
        for (id in 1..5) said(device.advertise(rawPlan(id)))
        refused("is not under way here", device.query(stage("confirm", 1, "live" to ByteArray(1))))
        refused("again or out of order", device.query(stage("confirm", 2, "live" to ByteArray(1))))
    }

    @Test
    fun aRoundIsBegunOnceAlsoByADeviceThatRestarts() {
        val file = File(folder.root, "enrolment/rounds")
        val identity = Enrolled.identity()
        refused("no sum of fewer than 5", participant(identity, SecurePolicy(), UsedRounds(file)).advertise(rawPlan()))
        said(participant(identity, used = UsedRounds(file)).advertise(rawPlan()))
        refused("was begun before", participant(identity, used = UsedRounds(file)).advertise(rawPlan()))
        said(participant(identity, used = UsedRounds(file)).advertise(rawPlan(2)))
    }
}
