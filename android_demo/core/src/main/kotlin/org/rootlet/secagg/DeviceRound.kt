package org.rootlet.secagg

import org.bouncycastle.crypto.params.X25519PrivateKeyParameters
import org.rootlet.wire.sha256

/** What a device gives out of a neighbour: a share of its seed, where it is there, or of its mask key, where it is lost. */
internal class Secret(val ofSeed: Boolean, val share: ByteArray)

/**
 * A device's side of one secure round: five stages, each once, in this order.
 *
 *     advertise   plan                        -> fresh keys, signed
 *     share       roster, neighbours' keys    -> shares of two secrets, encrypted to each neighbour
 *     upload      the shares meant for it     -> the update, as masked whole numbers
 *     confirm     who is still there          -> its signature over that set
 *     unmask      the neighbours' signatures  -> for each neighbour one share of one of its secrets
 *
 *     y_i = q_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)   mod 2^m
 *
 * over the neighbours j that shared. Of a neighbour that is there the device gives out a share of b, of one that is
 * lost a share of its mask key, and never both: that is what keeps y_i secret. Whatever does not follow the protocol
 * ends the round for this device; its secrets then are gone. A device that restarts is lost to the round.
 *
 * Every stage throws [SecureRoundRefusedError] for what it does not accept.
 */
internal class DeviceRound(private val identity: Identity, val plan: SecurePlan) {
    private var stage = Stage.ADVERTISE
    private var channel: X25519PrivateKeyParameters? = RoundKeys.privateKey()
    private var mask: X25519PrivateKeyParameters? = RoundKeys.privateKey()
    private var seed = Entropy.bytes(Shamir.SECRET_BYTES)
    private var own: Advertisement? = null
    private var peers: Map<Int, Advertisement> = emptyMap()
    private val channels = HashMap<Int, ByteArray>()
    private val held = LinkedHashMap<Int, Pair<ByteArray, ByteArray>>()
    private var confirmed = ByteArray(0)
    private var roster: Roster? = null
    private var index = -1

    /** Fresh keys, signed for this round. */
    fun advertise(): Advertisement = at(Stage.ADVERTISE) {
        val keys = listOf(secret(channel), secret(mask)).map { it.generatePublicKey().encoded }
        Advertisement.sign(identity.key, identity.certificate.raw, plan, keys[0], keys[1], sha256(seed)).also { own = it }
    }

    /**
     * Splits both secrets among the neighbours.
     *
     * @param listed all devices of the round.
     * @param keys the neighbours' keys, by place.
     * @return for each neighbour its shares, encrypted.
     */
    fun share(listed: Roster, keys: Map<Int, Advertisement>): Map<Int, ByteArray> = at(Stage.SHARE) {
        index = listed.placeOf(identity.key.id)
        if (index < 0) fail("the roster lacks this device")
        roster = listed
        if (!listed.digests[index].contentEquals(own!!.digest)) fail("the roster has other keys of this device")
        if (keys.keys.sorted() != listed.neighbours(index)) fail("the neighbours are not those of the round's graph")
        for ((place, advertisement) in keys) {
            if (!advertisement.digest.contentEquals(listed.digests[place])) fail("the keys of device $place are not those of the roster")
            if (!advertisement.check(plan, identity).device.contentEquals(listed.ids[place])) {
                fail("the keys of device $place are of another device")
            }
        }
        peers = keys
        val holders = (keys.keys + index).sorted()
        val points = holders.map { it + 1 }
        val (seeds, masks) = listOf(seed, secret(mask).encoded).map { Shamir.split(it, points, listed.threshold) }
        held[index] = holders.indexOf(index).let { seeds[it] to masks[it] }
        holders.withIndex().filter { it.value != index }.associate { (at, place) ->
            place to RoundKeys.seal(channelKey(listed, place), seeds[at] + masks[at], listed.digest, index, place)
        }
    }

    /**
     * Masks the update.
     *
     * @param inbox the shares meant for this device, by the neighbour that sent them.
     * @param values the whole numbers to add up, [d], within the plan's bits and noise.
     * @return words of the plan's modulus, [d].
     */
    fun upload(inbox: Map<Int, ByteArray>, values: IntArray): IntArray = at(Stage.UPLOAD) {
        val listed = roster!!
        if ((inbox.keys - peers.keys).isNotEmpty()) fail("shares of devices that are no neighbours")
        if (inbox.size + 1 < listed.threshold) {
            fail("${inbox.size + 1} devices hold each other's shares, and ${listed.threshold} are needed")
        }
        for ((place, sealed) in inbox) {
            val plain = RoundKeys.unseal(channelKey(listed, place), sealed, listed.digest, place, index)
            if (plain.size != 2 * Shamir.SHARE_BYTES) fail("the shares from device $place have ${plain.size} bytes")
            held[place] = plain.copyOf(Shamir.SHARE_BYTES) to plain.copyOfRange(Shamir.SHARE_BYTES, plain.size)
        }
        val pairwise = inbox.keys.map { place ->
            val agreed = RoundKeys.agree(secret(mask), peers.getValue(place).maskKey)
            Mask(RoundKeys.derive(agreed, "mask", listed.digest, index, place), if (index < place) 1 else -1)
        }
        val masked = values.copyOf()
        Masks.add(masked, plan.modulusBits.toInt(), pairwise + Mask(RoundKeys.derive(seed, "self", listed.digest, index), 1), plan.stream)
        seed = ByteArray(0)
        masked
    }

    /** Signs who is still there: [live], a bitmap of places. */
    fun confirm(live: ByteArray): ByteArray = at(Stage.CONFIRM) {
        val listed = roster!!
        val places = listed.places(live)
        if (places.size < plan.minLive) fail("${places.size} devices are left, and ${plan.minLive} are needed")
        if (index !in places) fail("this device is said to be lost")
        val around = places.intersect(peers.keys + index)
        if ((around - held.keys).isNotEmpty()) fail("a device is said to be there that has shared nothing with this one")
        if (around.size < listed.threshold) fail("${around.size} of the neighbours are left, and ${listed.threshold} are needed")
        confirmed = live
        identity.key.sign(listed.liveStatement(live))
    }

    /**
     * Gives out one share of each neighbour, now that enough have signed the same set.
     *
     * @param live the set that was confirmed, again.
     * @param signatures of it, by place.
     */
    fun unmask(live: ByteArray, signatures: Map<Int, ByteArray>): Map<Int, Secret> = at(Stage.UNMASK) {
        val listed = roster!!
        if (!live.contentEquals(confirmed)) fail("the live set is not the one that this device has confirmed")
        val alive = listed.places(live)
        val statement = listed.liveStatement(live)
        for ((place, signature) in signatures) {
            if (place !in alive || place !in peers.keys + index) fail("a signature of device $place, which is lost or no neighbour")
            if (!verified(listed.ids[place], signature, statement)) fail("device $place has not signed this live set")
        }
        val valid = signatures.keys + index
        if (valid.size < listed.threshold) {
            fail("${valid.size} neighbours have signed the live set, and ${listed.threshold} are needed")
        }
        held.mapValues { (place, shares) -> if (place in alive) Secret(true, shares.first) else Secret(false, shares.second) }
            .also { end() }
    }

    /** Each stage once and in order: the next one counts as begun, whatever comes of this. */
    private fun <T> at(wanted: Stage, work: () -> T): T {
        try {
            if (stage != wanted) fail("stage '${wanted.wire}' again or out of order: this device is at '${stage.wire}'")
            stage = Stage.values()[wanted.ordinal + 1]
            return work()
        } catch (error: SecureRoundRefusedError) {
            end()
            throw error
        }
    }

    /** What only this device and that one know. */
    private fun channelKey(listed: Roster, place: Int): ByteArray = channels.getOrPut(place) {
        RoundKeys.derive(RoundKeys.agree(secret(channel), peers.getValue(place).channelKey), "channel", listed.digest, index, place)
    }

    private fun secret(key: X25519PrivateKeyParameters?) = key ?: fail("its keys are gone")

    /** Forgets every secret. */
    private fun end() {
        stage = Stage.OVER
        seed = ByteArray(0)
        held.clear()
        channels.clear()
        channel = null
        mask = null
    }

    private fun fail(why: String): Nothing = refuse("secure round ${plan.roundId.take(8)}…: $why")

    private enum class Stage(val wire: String) {
        ADVERTISE("advertise"), SHARE("share"), UPLOAD("upload"), CONFIRM("confirm"), UNMASK("unmask"), OVER("over")
    }
}
