package org.rootlet.secagg

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.rootlet.fleet.Answer
import org.rootlet.fleet.ArrayRecord
import org.rootlet.fleet.ConfigError
import org.rootlet.fleet.Dtype
import org.rootlet.fleet.MetricRecord
import org.rootlet.fleet.NpyArray
import org.rootlet.fleet.RecordError
import org.rootlet.wire.CanonicalJson.general
import org.rootlet.wire.replaceFile

/**
 * What a device insists on before it shares anything, whatever the server asks.
 *
 * @property required refuse every training whose update would travel in clear.
 * @property minLive fewest devices whose sum may be unmasked; a sum of few tells much of each.
 * @property minNoiseMultiplier least noise of a round; 0 for rounds without.
 * @property maxClipNorm longest clipped update of a round with noise.
 * @throws ConfigError a value outside its bounds.
 */
data class SecurePolicy(
    val required: Boolean = true,
    val minLive: Int = 5,
    val minNoiseMultiplier: Double = 0.0,
    val maxClipNorm: Double = 1e6,
) {
    init {
        if (minLive < 2) throw ConfigError("minLive is $minLive: a sum of fewer than 2 hides nothing")
        if (!(minNoiseMultiplier >= 0 && maxClipNorm > 0)) {
            throw ConfigError("minNoiseMultiplier $minNoiseMultiplier, maxClipNorm $maxClipNorm: must be at least 0, and positive")
        }
    }

    internal fun check(plan: SecurePlan, manifestSha256: String, values: Long) {
        if (plan.manifestSha256 != manifestSha256 || plan.values != values) {
            refuse(
                "the round is for ${plan.values} values of bundle ${plan.manifestSha256.take(12)}…; this device has $values of " +
                    "${manifestSha256.take(12)}…: install the same bundle",
            )
        }
        if (plan.minLive < minLive) refuse("min_live ${plan.minLive}: this device is in no sum of fewer than $minLive")
        val noise = plan.noise?.noiseMultiplier(plan.values) ?: 0.0
        if (noise < minNoiseMultiplier) {
            refuse("the round's noise multiplier is ${general(noise, 3)}: this device asks for ${general(minNoiseMultiplier)} at least")
        }
        if (plan.noise != null && plan.noise.clipNorm > maxClipNorm) {
            refuse("clip_norm ${general(plan.noise.clipNorm)}: this device accepts ${general(maxClipNorm)} at most")
        }
    }
}

/**
 * The ids of the rounds that a device began, also before a restart: none is begun twice.
 *
 * @param file a line an id; null to forget when the process ends.
 */
class UsedRounds(private val file: File?) {
    private val used = LinkedHashSet<String>()

    init {
        if (file != null && file.exists()) used.addAll(file.readText().split("\n").filter { it.isNotEmpty() })
    }

    /** @throws SecureRoundRefusedError the round began before. */
    internal fun use(roundId: String) {
        if (!used.add(roundId)) refuse("round ${roundId.take(8)}… was begun before")
        if (used.size > REMEMBERED) used.remove(used.first())
        if (file != null) replaceFile(file, used.joinToString("\n").toByteArray())
    }

    private companion object {
        const val REMEMBERED = 4096
    }
}

/**
 * A device's part in secure rounds: it answers their stages, one round or group after another.
 *
 * @param identity who the device is.
 * @property policy what it insists on.
 * @param manifestSha256 the bundle that it trains.
 * @param values numbers in an update of it.
 * @param used remembers round ids.
 */
class SecureParticipation(
    private val identity: Identity,
    val policy: SecurePolicy,
    private val manifestSha256: String,
    private val values: Long,
    private val used: UsedRounds,
) {
    private val rounds = LinkedHashMap<String, DeviceRound>()

    /**
     * The answer to any stage but `upload`.
     *
     * @throws SecureRoundRefusedError the round is refused, or over for this device.
     * @throws RecordError malformed.
     */
    internal fun answer(message: StageMessage): Answer = ending(message) {
        var roundId = message.roundId
        val found = when (message.stage) {
            "advertise" -> {
                val plan = SecurePlan.parse(message.bytes("plan"))
                policy.check(plan, manifestSha256, values)
                used.use(plan.roundId)
                roundId = plan.roundId
                val begun = DeviceRound(identity, plan)
                rounds[roundId] = begun
                if (rounds.size > OPEN_ROUNDS) rounds.remove(rounds.keys.first())
                mapOf("advertisement" to begun.advertise().raw)
            }
            "share" -> {
                val current = round(message)
                val roster = Roster.parse(current.plan, message.bytes("roster"))
                val peers = message.byPlace("advertisements").mapValues { Advertisement.parse(it.value) }
                StageMessage.byPlace("shares", current.share(roster, peers))
            }
            "confirm" -> mapOf("signature" to round(message).confirm(message.bytes("live")))
            "unmask" -> {
                val secrets = round(message).unmask(message.bytes("live"), message.byPlace("signatures"))
                rounds.remove(roundId)
                StageMessage.byPlace("secrets", secrets.mapValues { it.value.ofSeed }) +
                    StageMessage.byPlace("shares", secrets.mapValues { it.value.share })
            }
            else -> refuse("stage '${message.stage}' comes with a train request")
        }
        Answer(mapOf(StageMessage.SECURE to StageMessage(message.stage, roundId, found).toRecord()))
    }

    /** The plan of a round under way. */
    internal fun plan(message: StageMessage): SecurePlan = round(message).plan

    /** The masked [update], and nothing that tells of it: no loss, no count, no time. */
    internal fun upload(message: StageMessage, update: FloatArray): Answer = ending(message) {
        val current = round(message)
        val masked = current.upload(message.byPlace("shares"), SecureUpdate.encode(update, current.plan))
        val dtype = if (current.plan.modulusBits == 16L) Dtype.UINT16 else Dtype.UINT32
        val data = ByteBuffer.allocate(masked.size * dtype.bytes).order(ByteOrder.LITTLE_ENDIAN)
        for (word in masked) if (dtype == Dtype.UINT16) data.putShort(word.toShort()) else data.putInt(word)
        Answer(
            mapOf(
                "arrays" to ArrayRecord(mapOf(MASKED to NpyArray(dtype, listOf(masked.size), data.array()))),
                "metrics" to MetricRecord(mapOf("bytes_up" to data.capacity().toLong())),
                StageMessage.SECURE to StageMessage("upload", message.roundId, emptyMap()).toRecord(),
            ),
        )
    }

    /** Whatever is wrong with a message, its round ends here. */
    private fun <T> ending(message: StageMessage, work: () -> T): T = try {
        work()
    } catch (error: SecureRoundRefusedError) {
        rounds.remove(message.roundId)
        throw error
    } catch (error: RecordError) {
        rounds.remove(message.roundId)
        throw error
    }

    private fun round(message: StageMessage): DeviceRound = rounds[message.roundId]
        ?: refuse("round ${message.roundId.take(8)}… is not under way here: this device has restarted, or never began it")

    private companion object {
        /** Rounds that may be under way; the oldest is given up for a fifth. */
        const val OPEN_ROUNDS = 4
        const val MASKED = "masked"
    }
}
