package org.rootlet.fleet

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test
import org.rootlet.AdapterError
import org.rootlet.DivergedError
import org.rootlet.NonFiniteLossError

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
        val cases = mapOf(
            request(plain, "train", "secure" to empty) to "not enrolled",
            request(plain, "query", "secure" to empty) to "not enrolled",
            request(plain, "train", "privacy" to empty) to "private round",
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
