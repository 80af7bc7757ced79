package org.rootlet.secagg

import org.rootlet.bundle.PublicKey
import org.rootlet.fleet.Vectors
import org.rootlet.wire.CanonicalJson

/** An enrolment authority, and plans that the devices of the tests take. */
internal object Enrolled {
    val authority = RawIdentityKey.generate()
    val trusted = listOf(PublicKey(authority.id))

    fun certificate(key: IdentityKey, by: IdentityKey = authority, year: Int = 2099): ByteArray {
        val document = CanonicalJson.document(
            mapOf("schema" to 1L, "device" to Vectors.toHex(key.id), "name" to "phone", "expires" to "$year-01-01T00:00:00Z"),
        )
        return by.sign("rootlet-enrolment-1 ".toByteArray() + document) + document
    }

    fun identity(key: IdentityKey = RawIdentityKey.generate()) = Identity(key, Certificate.verify(certificate(key), trusted), trusted)

    fun plan(devices: Int = 6, minLive: Int = 4, values: Int = 3, more: Map<String, Any> = emptyMap()) =
        SecurePlan.parse(rawPlan(devices, minLive, values, more))

    fun rawPlan(devices: Int = 6, minLive: Int = 4, values: Int = 3, more: Map<String, Any> = emptyMap()): ByteArray =
        CanonicalJson.document(
            mapOf<String, Any?>(
                "schema" to 1L, "round_id" to "0123456789abcdef".repeat(2), "run" to "1.0", "manifest_sha256" to "ab".repeat(32),
                "values" to values.toLong(), "value_bits" to 8L, "modulus_bits" to 16L, "bound" to 1.0, "devices" to devices.toLong(),
                "min_live" to minLive.toLong(), "degree" to 5L, "stream" to "aes-256-ctr", "noise" to null,
            ) + more,
        )
}

/**
 * A round whose devices have advertised, by place; the server's part is written out in the tests.
 *
 * @param forged the advertisement of a place that does not follow the protocol; null for one that does.
 */
internal class RoundOfDevices(
    val plan: SecurePlan = Enrolled.plan(),
    count: Int = 6,
    forged: (Int, RawIdentityKey) -> Advertisement? = { _, _ -> null },
) {
    private val keys = List(count) { RawIdentityKey.generate() }.sortedBy { Vectors.toHex(it.id) }
    val identities = keys.map(Enrolled::identity)
    val devices = identities.map { DeviceRound(it, plan) }
    val advertisements = devices.mapIndexed { place, device -> device.advertise().let { own -> forged(place, keys[place]) ?: own } }
    val roster = rosterOf(advertisements)

    /** The roster with other advertisements. */
    fun rosterOf(advertised: List<Advertisement>) =
        Roster.parse(plan, keys.zip(advertised).map { (key, each) -> key.id + each.digest }.reduce { a, b -> a + b })

    fun around(place: Int) = roster.neighbours(place).associateWith { advertisements[it] }

    /** What each device shares with each other. */
    fun shared() = devices.indices.map { devices[it].share(roster, around(it)) }

    /** What of [shares] is for a place, from [others]. */
    fun inbox(shares: List<Map<Int, ByteArray>>, place: Int, others: Iterable<Int> = shares.indices) =
        others.filter { it != place }.associateWith { shares[it].getValue(place) }

    /** All devices have shared and uploaded. */
    fun uploaded(): RoundOfDevices = apply {
        val shares = shared()
        for (place in devices.indices) devices[place].upload(inbox(shares, place), IntArray(plan.values.toInt()))
    }

    fun bitmap(places: Iterable<Int>) = byteArrayOf(places.fold(0) { bits, place -> bits or (1 shl place) }.toByte())
}
