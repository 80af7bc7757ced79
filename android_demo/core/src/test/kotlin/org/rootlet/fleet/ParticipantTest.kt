package org.rootlet.fleet

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test
import org.rootlet.AdapterError
import org.rootlet.DivergedError
import org.rootlet.NonFiniteLossError
import org.rootlet.privacy.PrivacyAccount
import org.rootlet.privacy.PrivacyPolicy
import org.rootlet.privacy.PrivacySpent
import org.rootlet.secagg.SecureUpdate

class ParticipantTest {
    private val plain = Vectors.values(Vectors.map("plain"))

    private fun request(config: Map<String, Any>, type: String = "train", vararg more: Pair<String, Record>) =
        FleetRequest(77, "3", type, mapOf("arrays" to ArrayRecord(Vectors.adapter()), "config" to ConfigRecord(config)) + more, 1234)

    private fun answer(request: FleetRequest, work: RoundWork = Adder(1f)) = Participant(work).answer(request) { false }!!

    @Test
    fun whatPythonRefusesIsRefusedInItsWords() {
        val cases = Vectors.list("refusals")
        assertEquals(30, cases.size)
        for (case in cases) {
            val train = case["train"] as Boolean
            val config = (if (train) plain else plain.entries.take(5).associate { it.key to it.value }).toMutableMap()
            for ((name, value) in Vectors.asMap(case["changes"])) if (value == null) config.remove(name) else config[name] = value
            val answer = answer(request(config, if (train) "train" else "evaluate"))
            assertEquals(case["error"] to case["code"], answer.error to answer.code)
            assertTrue(answer.records.isEmpty())
        }
    }

    @Test
    fun aTrainingIsAnsweredWithTheRecordsOfPython() {
        val answer = answer(request(plain), Adder(0f))
        assertEquals("" to 0L, answer.error to answer.code)
        assertEquals(Vectors.map("trained")["records"], answer.records.keys.toList())
        val metrics = Values.encode(answer.records.getValue("metrics") as MetricRecord)
        assertEquals(Vectors.map("trained")["metrics"], Vectors.toHex(metrics))
        assertEquals(Vectors.adapter(), (answer.records.getValue("arrays") as ArrayRecord).arrays)
    }

    @Test
    fun anEvaluationIsAnsweredWithFiguresOnly() {
        val config = plain.entries.take(5).associate { it.key to it.value }
        val answer = answer(request(config, "evaluate"))
        assertEquals(setOf("metrics"), answer.records.keys)
        val metrics = (answer.records.getValue("metrics") as MetricRecord).values
        assertEquals(mapOf("num-examples" to 4L, "loss" to 0.5, "accuracy_received" to 0.0), metrics)
    }

    @Test
    fun roundsBeyondPlainAveragingAreRefused() {
        val empty = ConfigRecord(emptyMap())
        val upload = ConfigRecord(
            mapOf("protocol" to 1L, "stage" to "upload", "round_id" to "ab".repeat(16), "places" to listOf<Long>(), "shares" to listOf<ByteArray>()),
        )
        val example = ConfigRecord(mapOf("unit" to "example", "max_norm" to 1.0, "noise_multiplier" to 1.0, "sample_rate" to 0.1))
        val cases = mapOf(
            request(plain, "train", "secure" to upload) to "not enrolled",
            request(plain, "query", "secure" to empty) to "not enrolled",
            request(plain, "train", "privacy" to example) to "privacy by example",
            request(plain, "train", "feedback" to empty) to "refreshed feedback",
            request(plain, "train", "control" to ArrayRecord(Vectors.adapter())) to "control variates",
            request(plain + ("compression" to "int8")) to "compressed updates",
            request(plain + ("proximal_mu" to 0.1)) to "proximal term",
            request(plain, "query") to "message type 'query' is unknown",
        )
        for ((request, words) in cases) {
            val answer = answer(request)
            assertEquals(ERROR_REFUSED, answer.code)
            assertTrue(answer.error, words in answer.error)
        }
    }

    @Test
    fun privacyByDeviceClipsTheWholeUpdateAndTellsNothingElse() {
        val terms = ConfigRecord(mapOf("unit" to "device", "max_norm" to 0.5, "noise_multiplier" to 2.0, "sample_rate" to 1.0))
        val account = PrivacyAccount(PrivacyPolicy(maxEpsilon = 3.0))
        val participant = Participant(Adder(1f), account = account)
        val answer = participant.answer(request(plain, "train", "privacy" to terms)) { false }!!
        assertEquals("" to setOf("arrays", "metrics"), answer.error to answer.records.keys)
        assertEquals(setOf("bytes_up"), (answer.records.getValue("metrics") as MetricRecord).values.keys)
        val step = SecureUpdate.difference((answer.records.getValue("arrays") as ArrayRecord).arrays, Vectors.adapter())
        assertEquals(0.5, Math.sqrt(step.sumOf { it.toDouble() * it }), 1e-6)
        assertEquals(PrivacySpent.ofDevice(0.5, 2.0), answer.spent)
        account.charged(answer.spent!!)
        val again = participant.answer(request(plain, "train", "privacy" to terms)) { false }!!
        assertEquals(ERROR_REFUSED, again.code)
        assertTrue(again.error, "above its 3.0: its budget is spent" in again.error)
        val malformed = ConfigRecord(terms.values + ("max_norm" to 0.0))
        assertEquals(ERROR_MALFORMED, participant.answer(request(plain, "train", "privacy" to malformed)) { false }!!.code)
    }

    @Test
    fun aFailureIsToldByItsClassOnly() {
        val secret = "/data/secret"
        val cases = listOf(
            Triple(IllegalStateException(secret), ERROR_FAILED, "IllegalStateException: this device's own log says more"),
            Triple(DivergedError(secret), ERROR_FAILED, "DivergedError: training made the adapter worse; lower the learning rate"),
            Triple(NonFiniteLossError("loss is NaN"), ERROR_FAILED, "NonFiniteLossError: loss is NaN"),
            Triple(AdapterError("a shape"), ERROR_REFUSED, "a shape"),
        )
        for ((error, code, words) in cases) {
            val failing = object : RoundWork by Adder(0f) {
                override fun train(adapter: Adapter, settings: TrainSettings, shouldStop: () -> Boolean): Trained = throw error
            }
            val answer = answer(request(plain), failing)
            assertEquals(code to words, answer.code to answer.error)
        }
    }

    @Test
    fun anInterruptedTrainingHasNoAnswer() {
        val stopping = object : RoundWork by Adder(0f) {
            override fun train(adapter: Adapter, settings: TrainSettings, shouldStop: () -> Boolean): Trained? {
                assertEquals(TrainSettings(3, 2, 8, 0.5), settings)
                return if (shouldStop()) null else Adder(0f).train(adapter, settings, shouldStop)
            }
        }
        assertNull(Participant(stopping).answer(request(plain)) { true })
        assertEquals("", Participant(stopping).answer(request(plain)) { false }!!.error)
    }
}
