package org.rootlet.fleet

import java.io.File
import kotlin.concurrent.thread

/**
 * A device for `tests/android`: it adds an amount to each value that it receives, until its standard
 * input ends.
 *
 * Arguments: address, root certificate's file or `-`, node key's file or `-` for a new one, `adder`
 * (answers any request) or `participant` (rootlet's rounds only), amount, folder of the mailbox or `-`.
 */
fun main(arguments: Array<String>) {
    val (address, certificate, keyFile, kind, amount) = arguments
    val key = if (keyFile == "-") PemNodeKey.generate() else PemNodeKey.load(File(keyFile))
    val connection = FleetConnection.open(
        address,
        key,
        if (certificate == "-") null else File(certificate).readBytes(),
        heartbeatIntervalS = 10.0,
    )
    val stop = StopSignal()
    thread(isDaemon = true) {
        do { val byte = System.`in`.read() } while (byte >= 0)
        stop.set()
    }
    val adder = Adder(amount.toFloat())
    val answerer = if (kind == "adder") adder else Participant(adder, onFailure = { it.printStackTrace() })
    val mailbox = Mailbox(arguments[5].takeIf { it != "-" }?.let(::File))
    FleetSession(connection, answerer, mailbox, onEvent = { println("${it.kind} ${it.detail}") }).run(stop)
}

/** Adds [amount] to every value; its metrics are made up. */
class Adder(private val amount: Float) : Answerer, RoundWork {
    private var seen = 0L
    override val bundle = BundleIdentity("tiny", 2, "ab".repeat(32))
    override val metric = Metric.ACCURACY
    override val maxBatch = 32L

    override fun answer(request: FleetRequest, shouldStop: () -> Boolean): Answer {
        seen += 1
        val arrays = (request.records.getValue("arrays") as ArrayRecord).arrays
        val metrics = MetricRecord(mapOf("num-examples" to 1L, "seen" to seen))
        return Answer(mapOf("arrays" to ArrayRecord(added(arrays)), "metrics" to metrics))
    }

    override fun train(adapter: Adapter, settings: TrainSettings, shouldStop: () -> Boolean): Trained =
        Trained(added(adapter), Measured(9, 0.5, 0.25), 0.75, 1.5, 2.0)

    override fun evaluate(adapter: Adapter): Measured = Measured(4, 0.5, adapter.values.first().floats().first().toDouble())

    private fun added(adapter: Adapter): Adapter = adapter.mapValues { (_, array) ->
        NpyArray.of(array.shape, array.floats().map { it + amount }.toFloatArray())
    }
}
