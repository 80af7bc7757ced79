package org.rootlet.secagg

import java.io.File
import java.math.BigInteger
import java.util.Date
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.rootlet.bundle.PublicKey
import org.rootlet.wire.CanonicalJson

/** Whole rounds between devices of this library; the server's part is written out here. */
class DeviceRoundTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val authority = RawIdentityKey.generate()
    private val trusted = listOf(PublicKey(authority.id))

    private fun certificate(key: IdentityKey, by: IdentityKey = authority, year: Int = 2099): ByteArray {
        val document = CanonicalJson.document(
            mapOf("schema" to 1L, "device" to key.id.joinToString("") { "%02x".format(it) }, "name" to "phone", "expires" to "$year-01-01T00:00:00Z"),
        )
        return by.sign("rootlet-enrolment-1 ".toByteArray() + document) + document
    }

    private fun plan(devices: Int = 6, minLive: Int = 4, values: Int = 3, more: Map<String, Any> = emptyMap()) = SecurePlan.parse(
        CanonicalJson.document(
            mapOf<String, Any?>(
                "schema" to 1L, "round_id" to "0123456789abcdef".repeat(2), "run" to "1.0", "manifest_sha256" to "ab".repeat(32),
                "values" to values.toLong(), "value_bits" to 8L, "modulus_bits" to 16L, "bound" to 1.0, "devices" to devices.toLong(),
                "min_live" to minLive.toLong(), "degree" to 5L, "stream" to "aes-256-ctr", "noise" to null,
            ) + more,
        ),
    )

    /** A round whose devices have advertised, by place. */
    private inner class Server(val plan: SecurePlan = plan(), count: Int = 6) {
        val devices: List<DeviceRound>
        val advertisements: List<Advertisement>
        val roster: Roster

        init {
            val all = List(count) { RawIdentityKey.generate() }.sortedBy { key -> key.id.joinToString("") { "%02x".format(it) } }
            devices = all.map { DeviceRound(Identity(it, Certificate.verify(certificate(it), trusted), trusted), plan) }
            advertisements = devices.map { it.advertise() }
            val rows = all.zip(advertisements).map { (key, each) -> key.id + each.digest }
            roster = Roster.parse(plan, rows.reduce { a, b -> a + b })
        }

        fun around(place: Int) = roster.neighbours(place).associateWith { advertisements[it] }

        /** What each device shares with each other. */
        fun shared() = devices.indices.map { devices[it].share(roster, around(it)) }

        fun bitmap(places: Iterable<Int>) = byteArrayOf(places.fold(0) { bits, place -> bits or (1 shl place) }.toByte())
    }

    @Test
    fun theSumOfThoseWhoStayIsAllThatComesOut() {
        val server = Server()
        val shares = server.shared()
        val inbox = { to: Int -> shares.indices.filter { it != to }.associateWith { shares[it].getValue(to) } }
        val updates = List(6) { place -> intArrayOf(place, -3 * place, 127) }
        val masked = (0 until 5).map { server.devices[it].upload(inbox(it), updates[it]) } // the sixth is lost
        for (place in masked.indices) assertTrue(!masked[place].contentEquals(updates[place]))
        val live = server.bitmap(0 until 5)
        val signatures = (0 until 5).associateWith { server.devices[it].confirm(live) }
        val secrets = (0 until 5).associateWith { server.devices[it].unmask(live, signatures - it) }
        val sum = IntArray(3) { i -> masked.sumOf { it[i] } }
        val context = server.roster.digest
        for (place in 0 until 6) {
            val given = secrets.mapValues { it.value.getValue(place) }
            assertTrue(given.values.all { it.ofSeed == (place < 5) })
            val secret = combined(given.entries.take(server.roster.threshold).associate { it.key + 1 to it.value.share })
            if (place < 5) {
                assertArrayEquals(server.advertisements[place].commitment, RoundKeys.sha256(secret))
                Masks.add(sum, 16, listOf(Mask(RoundKeys.derive(secret, "self", context, place), -1)))
            } else {
                val key = org.bouncycastle.crypto.params.X25519PrivateKeyParameters(secret, 0)
                assertArrayEquals(server.advertisements[place].maskKey, key.generatePublicKey().encoded)
                for (other in 0 until 5) { // every one of them added, as the lower place
                    val agreed = RoundKeys.agree(key, server.advertisements[other].maskKey)
                    Masks.add(sum, 16, listOf(Mask(RoundKeys.derive(agreed, "mask", context, place, other), -1)))
                }
            }
        }
        assertArrayEquals(intArrayOf(10, -30, 635), sum.map { it.toShort().toInt() }.toIntArray())
    }

    @Test
    fun whatDoesNotFollowTheProtocolEndsTheRound() {
        refused("lacks this device") { server ->
            val other = Server()
            server.devices[0].share(other.roster, other.around(0))
        }
        refused("not those of the round's graph") { server -> server.devices[0].share(server.roster, server.around(0) - 1) }
        refused("not those of the roster") { server ->
            server.devices[0].share(server.roster, server.around(0) + (1 to server.advertisements[2]))
        }
        refused("out of order") { server -> server.devices[0].confirm(server.bitmap(0 until 6)) }
        refused("hold each other's shares") { server ->
            val shares = server.shared()
            server.devices[0].upload(mapOf(1 to shares[1].getValue(0)), IntArray(3))
        }
        refused("were changed on their way") { server ->
            val shares = server.shared()
            val inbox = (1 until 6).associateWith { shares[it].getValue(0).also { sealed -> sealed[20] = (sealed[20] + 1).toByte() } }
            server.devices[0].upload(inbox, IntArray(3))
        }
        refused("3 devices are left") { server -> uploaded(server).confirm(server.bitmap(0 until 3)) }
        refused("said to be lost") { server -> uploaded(server).confirm(server.bitmap(1 until 6)) }
        refused("not the one that this device has confirmed") { server ->
            val device = uploaded(server)
            device.confirm(server.bitmap(0 until 6))
            device.unmask(server.bitmap(0 until 5), emptyMap())
        }
        refused("has not signed this live set") { server ->
            val device = uploaded(server)
            val live = server.bitmap(0 until 6)
            device.confirm(live)
            device.unmask(live, mapOf(1 to ByteArray(64)))
        }
        refused("1 neighbours have signed") { server ->
            val device = uploaded(server)
            val live = server.bitmap(0 until 6)
            device.confirm(live)
            device.unmask(live, emptyMap())
        }
    }

    @Test
    fun aRosterWithTooFewNeighboursIsRefused() {
        val sparse = plan(devices = 40, more = mapOf("degree" to 4L))
        val rows = (0 until 40).map { ByteArray(64).also { row -> row[0] = it.toByte() } }.reduce { a, b -> a + b }
        for ((degree, words) in listOf(4L to "too few neighbours", 39L to null)) {
            val plan = if (degree == 4L) sparse else plan(devices = 40, more = mapOf("degree" to degree))
            if (words == null) Roster.parse(plan, rows) else refusal(words) { Roster.parse(plan, rows) }
        }
        val many = (0 until 100).map { ByteArray(64).also { row -> row[0] = it.toByte() } }.reduce { a, b -> a + b }
        refusal("odd") { Roster.parse(plan(devices = 100, more = mapOf("degree" to 33L)), many) }
    }

    @Test
    fun aStrangerIsNobodysNeighbour() {
        val server = Server()
        val key = RawIdentityKey.generate()
        val stranger = RawIdentityKey.generate()
        val identity = Identity(key, Certificate.verify(certificate(key), trusted), trusted)
        val parts = List(3) { ByteArray(32) }
        val forged = Advertisement.sign(key, certificate(key, stranger), server.plan, parts[0], parts[1], parts[2])
        refusal("not of the enrolment authority") { forged.check(server.plan, identity) }
        val expired = Advertisement.sign(key, certificate(key, year = 2020), server.plan, parts[0], parts[1], parts[2])
        refusal("ended on") { expired.check(server.plan, identity) }
        val other = Advertisement.sign(stranger, certificate(key), server.plan, parts[0], parts[1], parts[2])
        refusal("not signed by it for this round") { other.check(server.plan, identity) }
        val anotherRound = plan(more = mapOf("round_id" to "f".repeat(32)))
        refusal("not signed by it") { server.advertisements[0].check(anotherRound, identity) }
    }

    @Test
    fun anEnrolmentIsKeptAndHeldToItsKey() {
        val kept = EnrolmentFolder(File(folder.root, "enrolment"))
        assertNull(kept.load())
        val key = kept.key()
        assertArrayEquals(key.id, kept.key().id)
        assertThrows(EnrolmentError::class.java) { kept.install(certificate(RawIdentityKey.generate()), authority.id) }
        assertThrows(EnrolmentError::class.java) { kept.install(certificate(key), RawIdentityKey.generate().id) }
        assertEquals("phone", kept.install(certificate(key), authority.id).name)
        assertEquals(Date(4070908800000), kept.load()!!.certificate.expires)
        File(folder.root, "enrolment/identity").delete() // another key is made, which is not enrolled
        assertThrows(EnrolmentError::class.java) { kept.load() }
    }

    @Test
    fun aRoundIsBegunOnceAlsoAfterARestart() {
        val file = folder.newFile()
        UsedRounds(file).use("ab".repeat(16))
        refusal("was begun before") { UsedRounds(file).use("ab".repeat(16)) }
        UsedRounds(file).use("cd".repeat(16))
    }

    @Test
    fun aPlanBelowTheFloorsIsRefused() {
        val noisy = plan(more = mapOf("noise" to mapOf("clip_norm" to 5.0, "scale_bits" to 3L, "unit_inverse" to 20.0, "honest" to 4L)))
        val bundle = "ab".repeat(32)
        SecurePolicy(minLive = 4).check(noisy, bundle, 3)
        refusal("install the same bundle") { SecurePolicy(minLive = 4).check(noisy, bundle, 4) }
        refusal("no sum of fewer than 5") { SecurePolicy().check(noisy, bundle, 3) }
        refusal("asks for 1 at least") { SecurePolicy(minLive = 4, minNoiseMultiplier = 1.0).check(noisy, bundle, 3) }
        refusal("accepts 2 at most") { SecurePolicy(minLive = 4, maxClipNorm = 2.0).check(noisy, bundle, 3) }
    }

    /** The first device, after all have shared and it has uploaded. */
    private fun uploaded(server: Server): DeviceRound {
        val shares = server.shared()
        return server.devices[0].also { it.upload((1 until 6).associateWith { other -> shares[other].getValue(0) }, IntArray(3)) }
    }

    private fun refused(words: String, step: (Server) -> Unit) {
        val server = Server()
        refusal(words) { step(server) }
        refusal("this device is at 'over'") { server.devices[0].share(server.roster, server.around(0)) }
    }

    private fun refusal(words: String, step: () -> Unit) {
        val error = assertThrows(words, SecureRoundRefusedError::class.java) { step() }
        assertTrue("${error.message}", words in error.message!!)
    }

    /** Lagrange's interpolation at 0. */
    private fun combined(shares: Map<Int, ByteArray>): ByteArray {
        val p = Shamir.PRIME
        val secret = shares.entries.fold(BigInteger.ZERO) { sum, (x, share) ->
            val weight = shares.keys.filter { it != x }.fold(BigInteger.ONE) { product, y ->
                product * BigInteger.valueOf(y.toLong()) * BigInteger.valueOf(y.toLong() - x).modInverse(p)
            }
            sum + BigInteger(1, share) * weight
        }.mod(p)
        return secret.toByteArray().let { ByteArray(40 - it.size) + it }.copyOfRange(8, 40)
    }
}
