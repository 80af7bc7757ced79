package org.rootlet.secagg

import java.io.File
import java.math.BigInteger
import java.nio.file.Files
import java.nio.file.attribute.PosixFilePermissions
import java.util.Date
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.rootlet.fleet.Vectors
import org.rootlet.wire.sha256

/** Whole rounds between devices of this library; the server's part is written out here. */
class DeviceRoundTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val authority = Enrolled.authority

    @Test
    fun theSumOfThoseWhoStayIsAllThatComesOut() {
        val server = RoundOfDevices()
        val shares = server.shared()
        val updates = List(6) { place -> intArrayOf(place, -3 * place, 127) }
        val masked = (0 until 5).map { server.devices[it].upload(server.inbox(shares, it), updates[it]) } // the sixth is lost
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
                assertArrayEquals(server.advertisements[place].commitment, sha256(secret))
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
    fun aRosterWithTooFewNeighboursIsRefused() {
        val sparse = Enrolled.plan(devices = 40, more = mapOf("degree" to 4L))
        val rows = (0 until 40).map { ByteArray(64).also { row -> row[0] = it.toByte() } }.reduce { a, b -> a + b }
        for ((degree, words) in listOf(4L to "too few neighbours", 39L to null)) {
            val plan = if (degree == 4L) sparse else Enrolled.plan(devices = 40, more = mapOf("degree" to degree))
            if (words == null) Roster.parse(plan, rows) else refusal(words) { Roster.parse(plan, rows) }
        }
        val many = (0 until 100).map { ByteArray(64).also { row -> row[0] = it.toByte() } }.reduce { a, b -> a + b }
        refusal("odd") { Roster.parse(Enrolled.plan(devices = 100, more = mapOf("degree" to 33L)), many) }
    }

    @Test
    fun aStrangerIsNobodysNeighbour() {
        val server = RoundOfDevices()
        val key = RawIdentityKey.generate()
        val stranger = RawIdentityKey.generate()
        val identity = Enrolled.identity(key)
        val parts = List(3) { ByteArray(32) }
        val forged = Advertisement.sign(key, Enrolled.certificate(key, stranger), server.plan, parts[0], parts[1], parts[2])
        refusal("not of the enrolment authority") { forged.check(server.plan, identity) }
        val expired = Advertisement.sign(key, Enrolled.certificate(key, year = 2020), server.plan, parts[0], parts[1], parts[2])
        refusal("of phone ended on 2020-01-01: enrol it anew") { expired.check(server.plan, identity) }
        val other = Advertisement.sign(stranger, Enrolled.certificate(key), server.plan, parts[0], parts[1], parts[2])
        refusal("not signed by it for this round") { other.check(server.plan, identity) }
        val anotherRound = Enrolled.plan(more = mapOf("round_id" to "f".repeat(32)))
        refusal("not signed by it") { server.advertisements[0].check(anotherRound, identity) }
    }

    @Test
    fun anEnrolmentIsKeptAndHeldToItsKey() {
        val kept = EnrolmentFolder(File(folder.root, "enrolment"))
        assertNull(kept.load())
        val key = kept.key()
        assertArrayEquals(key.id, kept.key().id)
        val other = RawIdentityKey.generate()
        val error = assertThrows(EnrolmentError::class.java) { kept.install(Enrolled.certificate(other), authority.id) }
        val (named, own) = listOf(other, key).map { Vectors.toHex(it.id).take(16) }
        assertEquals("the certificate is for device $named…, and this one is $own…", error.message)
        assertThrows(EnrolmentError::class.java) { kept.install(Enrolled.certificate(key), RawIdentityKey.generate().id) }
        assertEquals("phone", kept.install(Enrolled.certificate(key), authority.id).name)
        assertEquals(Date(4070908800000), kept.load()!!.certificate.expires)
        for (name in listOf("identity", "certificate", "authority.pub")) {
            val allowed = Files.getPosixFilePermissions(File(folder.root, "enrolment/$name").toPath())
            assertEquals("rw-------", PosixFilePermissions.toString(allowed))
        }
        File(folder.root, "enrolment/identity").delete()
        assertThrows(EnrolmentError::class.java) { kept.load() }
        assertFalse(File(folder.root, "enrolment/identity").exists()) // who has lost the key is not somebody else
    }

    @Test
    fun aRoundIsBegunOnceAlsoAfterARestart() {
        val file = File(folder.root, "enrolment/rounds")
        UsedRounds(file).use("ab".repeat(16))
        refusal("was begun before") { UsedRounds(file).use("ab".repeat(16)) }
        UsedRounds(file).use("cd".repeat(16))
    }

    @Test
    fun aPlanBelowTheFloorsIsRefused() {
        val noisy = Enrolled.plan(more = mapOf("noise" to mapOf("clip_norm" to 5.0, "scale_bits" to 3L, "unit_inverse" to 20.0, "honest" to 4L)))
        val bundle = "ab".repeat(32)
        SecurePolicy(minLive = 4).check(noisy, bundle, 3)
        refusal("install the same bundle") { SecurePolicy(minLive = 4).check(noisy, bundle, 4) }
        refusal("no sum of fewer than 5") { SecurePolicy().check(noisy, bundle, 3) }
        refusal("asks for 1 at least") { SecurePolicy(minLive = 4, minNoiseMultiplier = 1.0).check(noisy, bundle, 3) }
        refusal("accepts 2 at most") { SecurePolicy(minLive = 4, maxClipNorm = 2.0).check(noisy, bundle, 3) }
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
