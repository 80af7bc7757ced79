package org.rootlet.secagg

import java.nio.ByteBuffer
import java.util.Date
import org.rootlet.wire.sha256

/**
 * A device's fresh keys for one round.
 *
 * @property channelKey X25519 public key by which others encrypt shares to it.
 * @property maskKey X25519 public key from which pairwise masks are derived.
 * @property commitment SHA-256 of the seed of its own mask: tells a wrong share later.
 * @property signature of the device over the plan and these keys.
 * @property certificate the enrolment authority's word for the device.
 */
internal class Advertisement(
    val channelKey: ByteArray,
    val maskKey: ByteArray,
    val commitment: ByteArray,
    val signature: ByteArray,
    val certificate: ByteArray,
) {
    /** As it travels: the fixed parts one after the other, then the certificate. */
    val raw: ByteArray = channelKey + maskKey + commitment + signature + certificate

    /** SHA-256 of it. */
    val digest: ByteArray = sha256(raw)

    /**
     * Verifies the certificate and the signature.
     *
     * @throws SecureRoundRefusedError a device that is not enrolled, keys that are not its own or of another round.
     */
    fun check(plan: SecurePlan, identity: Identity, now: Date = Date()): Certificate {
        val found = try {
            Certificate.verify(certificate, identity.authorities, now)
        } catch (error: EnrolmentError) {
            refuse("a device of the round: ${error.message}")
        }
        if (!verified(found.device, signature, statement(plan, channelKey + maskKey + commitment))) {
            refuse("the keys of ${found.name} are not signed by it for this round")
        }
        return found
    }

    companion object {
        private const val FIXED = 3 * 32 + 64

        /** @throws SecureRoundRefusedError too short or too long. */
        fun parse(raw: ByteArray): Advertisement {
            if (raw.size !in FIXED + 1..FIXED + Certificate.MAX_BYTES) refuse("an advertisement of ${raw.size} bytes is none")
            fun cut(from: Int, to: Int) = raw.copyOfRange(from, to)
            return Advertisement(cut(0, 32), cut(32, 64), cut(64, 96), cut(96, FIXED), cut(FIXED, raw.size))
        }

        /** Makes one, of the channel key, the mask key and the commitment. */
        fun sign(key: IdentityKey, certificate: ByteArray, plan: SecurePlan, channel: ByteArray, mask: ByteArray, commitment: ByteArray) =
            Advertisement(channel, mask, commitment, key.sign(statement(plan, channel + mask + commitment)), certificate)

        private fun statement(plan: SecurePlan, keys: ByteArray) = RoundKeys.DOMAIN + "advertise".toByteArray() + plan.digest + keys
    }
}

/**
 * The devices of a round, sorted by id; a device's place is its index.
 *
 * @property ids identity keys, 32 bytes each.
 * @property digests of their advertisements.
 * @throws SecureRoundRefusedError unsorted, with a device twice, too small, too large, or with too few neighbours.
 */
internal class Roster private constructor(val plan: SecurePlan, val ids: List<ByteArray>, val digests: List<ByteArray>) {
    init {
        if ((1 until ids.size).any { compare(ids[it - 1], ids[it]) >= 0 }) refuse("the roster holds a device twice, or is not sorted")
        if (ids.size !in plan.minLive..plan.devices) {
            refuse("a roster of ${ids.size}; the plan has ${plan.minLive} to ${plan.devices} devices")
        }
        val least = SharingGraph.degreeFor(ids.size)
        if (plan.degree < least) refuse("degree ${plan.degree} is too few neighbours for ${ids.size} devices: $least at least")
        if (plan.degree % 2 != 0L && plan.degree < ids.size - 1) {
            refuse(
                "degree ${plan.degree} is odd: half of the neighbours stand on either side of a device; " +
                    "${plan.degree + 1} would do",
            )
        }
    }

    /** SHA-256 over the plan, the ids and the advertisements. */
    val digest: ByteArray = sha256(RoundKeys.DOMAIN, "roster".toByteArray(), plan.digest, joined(ids), joined(digests))

    /** How many shares give a secret back: t. */
    val threshold: Int get() = plan.threshold(ids.size)

    /** Those with whom a place shares secrets. */
    fun neighbours(place: Int): List<Int> = SharingGraph.neighbours(digest, ids.size, plan.degree.toInt(), place)

    /** The place of an id, -1 where it is not there. */
    fun placeOf(id: ByteArray): Int = ids.indexOfFirst { it.contentEquals(id) }

    /** What a device signs when it confirms who is still there. */
    fun liveStatement(live: ByteArray): ByteArray = RoundKeys.DOMAIN + "live".toByteArray() + digest + live

    /**
     * The places of a bitmap, sorted: bit p of byte p / 8, the lowest first.
     *
     * @throws SecureRoundRefusedError of another size, or with a bit beyond the last device.
     */
    fun places(bits: ByteArray): Set<Int> {
        if (bits.size != (ids.size + 7) / 8) refuse("a live set of ${bits.size} bytes for ${ids.size} devices")
        val found = (0 until 8 * bits.size).filter { (bits[it / 8].toInt() shr (it % 8)) and 1 == 1 }
        if (found.isNotEmpty() && found.last() >= ids.size) refuse("the live set names device ${found.last()} of ${ids.size}")
        return found.toSet()
    }

    companion object {
        private const val ROW = 64

        /** @throws SecureRoundRefusedError of a wrong size, or as the class says. */
        fun parse(plan: SecurePlan, raw: ByteArray): Roster {
            if (raw.size % ROW != 0 || raw.size > ROW * plan.devices) refuse("a roster of ${raw.size} bytes is none of this plan")
            val rows = (0 until raw.size / ROW).map { raw.copyOfRange(ROW * it, ROW * (it + 1)) }
            return Roster(plan, rows.map { it.copyOf(ROW / 2) }, rows.map { it.copyOfRange(ROW / 2, ROW) })
        }

        private fun joined(parts: List<ByteArray>): ByteArray =
            ByteBuffer.allocate(parts.sumOf { it.size }).also { all -> parts.forEach { all.put(it) } }.array()

        private fun compare(a: ByteArray, b: ByteArray): Int {
            val at = a.indices.firstOrNull { a[it] != b[it] } ?: return 0
            return (a[at].toInt() and 0xff) - (b[at].toInt() and 0xff)
        }
    }
}
