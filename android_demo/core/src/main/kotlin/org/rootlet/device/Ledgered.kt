package org.rootlet.device

import org.rootlet.fleet.Answer
import org.rootlet.fleet.Answerer
import org.rootlet.fleet.ArrayRecord
import org.rootlet.fleet.ConfigRecord
import org.rootlet.fleet.ERROR_FAILED
import org.rootlet.fleet.FleetObjects
import org.rootlet.fleet.FleetRequest
import org.rootlet.fleet.MetricRecord
import org.rootlet.privacy.PrivacyAccount

/**
 * Writes down what leaves the device before it leaves: one line of the ledger for each answer, as the Python SDK
 * has them (`docs/ledger.md`).
 *
 * An answer whose line cannot be written does not leave: the server is told that the device cannot keep its ledger.
 *
 * @param server where the answers go, as the app names it.
 * @param bundle name and version of what the device runs.
 * @param account counts what private answers spend; the same as the answerer's.
 * @param onFailure told why a line could not be written.
 */
class Ledgered(
    private val answerer: Answerer,
    private val ledger: Ledger,
    private val server: String,
    private val bundle: String,
    private val account: PrivacyAccount = PrivacyAccount(),
    private val onFailure: (LedgerError) -> Unit = {},
) : Answerer {
    override fun answer(request: FleetRequest, shouldStop: () -> Boolean): Answer? {
        val answer = answerer.answer(request, shouldStop) ?: return null
        val tensors = answer.records.values.filterIsInstance<ArrayRecord>().flatMap { it.arrays.keys }
        val metrics = answer.records.values.filterIsInstance<MetricRecord>().flatMap { it.values.keys }
        val kind = when {
            answer.error.isNotEmpty() -> "refusal"
            tensors.isNotEmpty() -> "update"
            metrics.isNotEmpty() -> "metrics"
            else -> "stage" // of a secure round
        }
        val secure = request.records[SECURE]?.let { (it as? ConfigRecord)?.values?.get("stage") ?: "" }
        val protections = listOfNotNull("secure aggregation".takeIf { secure != null }, "differential privacy".takeIf { answer.spent != null })
        val fields = linkedMapOf<String, Any?>(
            "server" to server,
            "run" to java.lang.Long.toUnsignedString(request.runId),
            "round" to request.groupId,
            "bundle" to bundle,
            "bytes" to FleetObjects.bytesOf(answer.records) + answer.error.toByteArray().size,
            "tensors" to tensors,
            "metrics" to metrics,
            "protection" to protections.joinToString().ifEmpty { "none" },
        )
        answer.spent?.let { fields.putAll(account.charged(it)) }
        secure?.let { fields["stage"] = "$it" }
        return try {
            ledger.append(kind, fields)
            answer
        } catch (error: LedgerError) {
            onFailure(error)
            Answer(emptyMap(), "this device cannot keep its ledger", ERROR_FAILED)
        }
    }

    private companion object {
        const val SECURE = "secure"
    }
}
