package org.rootlet.device

import org.rootlet.fleet.Answer
import org.rootlet.fleet.Answerer
import org.rootlet.fleet.ArrayRecord
import org.rootlet.fleet.ERROR_FAILED
import org.rootlet.fleet.FleetObjects
import org.rootlet.fleet.FleetRequest
import org.rootlet.fleet.MetricRecord

/**
 * Writes down what leaves the device before it leaves: one line of the ledger for each answer, as the Python SDK
 * has them (`docs/ledger.md`).
 *
 * An answer whose line cannot be written does not leave: the server is told that the device cannot keep its ledger.
 *
 * @param server where the answers go, as the app names it.
 * @param bundle name and version of what the device runs.
 * @param onFailure told why a line could not be written.
 */
class Ledgered(
    private val answerer: Answerer,
    private val ledger: Ledger,
    private val server: String,
    private val bundle: String,
    private val onFailure: (LedgerError) -> Unit = {},
) : Answerer {
    override fun answer(request: FleetRequest, shouldStop: () -> Boolean): Answer? {
        val answer = answerer.answer(request, shouldStop) ?: return null
        val tensors = answer.records.values.filterIsInstance<ArrayRecord>().flatMap { it.arrays.keys }
        val metrics = answer.records.values.filterIsInstance<MetricRecord>().flatMap { it.values.keys }
        val kind = if (answer.error.isNotEmpty()) "refusal" else if (tensors.isEmpty()) "metrics" else "update"
        val fields = linkedMapOf<String, Any?>(
            "server" to server,
            "run" to java.lang.Long.toUnsignedString(request.runId),
            "round" to request.groupId,
            "bundle" to bundle,
            "bytes" to FleetObjects.bytesOf(answer.records) + answer.error.toByteArray().size,
            "tensors" to tensors,
            "metrics" to metrics,
            "protection" to "none",
        )
        return try {
            ledger.append(kind, fields)
            answer
        } catch (error: LedgerError) {
            onFailure(error)
            Answer(emptyMap(), "this device cannot keep its ledger", ERROR_FAILED)
        }
    }
}
