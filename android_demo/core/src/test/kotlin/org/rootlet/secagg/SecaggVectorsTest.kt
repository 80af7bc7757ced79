package org.rootlet.secagg

import java.io.File
import java.math.BigInteger
import org.bouncycastle.crypto.params.X25519PrivateKeyParameters
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import org.rootlet.fleet.ArrayRecord
import org.rootlet.fleet.ConfigRecord
import org.rootlet.fleet.Dtype
import org.rootlet.fleet.NpyArray
import org.rootlet.fleet.PrivacyTerms
import org.rootlet.fleet.Vectors
import org.rootlet.privacy.PrivacySpent
import org.rootlet.privacy.RenyiPrivacy
import org.rootlet.wire.StrictJson

/** What the Python SDK computes: `tests/vectors/secagg.json`. */
class SecaggVectorsTest {
    private val all = Vectors.asMap(
        StrictJson.parse(File(System.getProperty("rootlet.repository"), "tests/vectors/secagg.json").readBytes()),
    )

    private fun map(name: String) = Vectors.asMap(all[name])
    private fun list(name: String) = (all[name] as List<*>).map(Vectors::asMap)
    private fun hex(value: Any?) = Vectors.fromHex(value)
    private fun ints(value: Any?) = (value as List<*>).map { (it as Long).toInt() }
    private fun doubles(value: Any?) = (value as List<*>).map { (it as Number).toDouble() }.toDoubleArray()

    @Test
    fun sharesOfASecret() {
        val found = map("shamir")
        assertEquals(BigInteger((found["prime"] as String).drop(2), 16), Shamir.PRIME)
        val coefficients = (found["coefficients"] as List<*>).map { BigInteger(1, hex(it)) }.iterator()
        val shares = Shamir.split(hex(found["secret"]), ints(found["points"]), 3) { coefficients.next() }
        assertEquals(found["shares"], shares.map(Vectors::toHex))
    }

    @Test
    fun masksAreAddedAndSubtracted() {
        assertEquals(4, list("masks").size)
        for (case in list("masks")) {
            val stream = case["stream"] as String
            val added = hex(case["key_added"])
            assertEquals(case["keystream_added"], Vectors.toHex(Masks.keystream(added, 32, stream)))
            val values = ints(case["values"]).toIntArray()
            val bits = if (case["dtype"] == "uint16") 16 else 32
            Masks.add(values, bits, listOf(Mask(added, 1), Mask(hex(case["key_subtracted"]), -1)), stream)
            assertEquals(case["masked"], values.map { it.toLong() and 0xffffffffL })
        }
    }

    @Test
    fun aMaskOfManyPiecesIsOneStream() {
        val key = ByteArray(32) { it.toByte() }
        for (bits in listOf(16, 32)) {
            val values = IntArray(100_003)
            Masks.add(values, bits, listOf(Mask(key, 1)))
            val stream = Masks.keystream(key, values.size * bits / 8)
            val at = values.size - 1
            val word = (0 until bits / 8).fold(0) { all, k -> all or ((stream[at * bits / 8 + k].toInt() and 0xff) shl 8 * k) }
            assertEquals(word, values[at])
            Masks.add(values, bits, listOf(Mask(key, -1)))
            assertTrue(values.all { it == 0 })
        }
    }

    @Test
    fun keysAreAgreedAndDerived() {
        val found = map("keys")
        val agreed = RoundKeys.agree(X25519PrivateKeyParameters(hex(found["private"]), 0), hex(found["public_of_other"]))
        val context = hex(found["context"])
        assertEquals(found["agreed"], Vectors.toHex(agreed))
        assertEquals(found["channel_3_1"], Vectors.toHex(RoundKeys.derive(agreed, "channel", context, 3, 1)))
        assertEquals(found["mask_1_3"], Vectors.toHex(RoundKeys.derive(agreed, "mask", context, 1, 3)))
        assertEquals(found["self_3"], Vectors.toHex(RoundKeys.derive(hex(found["own_seed"]), "self", context, 3)))
        assertThrows(SecureRoundRefusedError::class.java) { RoundKeys.agree(RoundKeys.privateKey(), ByteArray(32)) }
    }

    @Test
    fun theGraphIsThatOfTheRoster() {
        for (case in list("graphs")) {
            val devices = (case["devices"] as Long).toInt()
            val degree = SharingGraph.degreeFor(devices)
            assertEquals(case["degree"], degree.toLong())
            assertEquals(case["threshold"], SharingGraph.thresholdFor(devices, degree).toLong())
            assertEquals(ints(case["neighbours_of_0"]), SharingGraph.neighbours(hex(case["context"]), devices, degree, 0))
        }
    }

    @Test
    fun plansAreReadInTheirOneEncoding() {
        assertEquals(2, list("plans").size)
        for (case in list("plans")) {
            val raw = case["raw"] as String
            val plan = SecurePlan.parse(raw.toByteArray())
            assertEquals(case["sha256"], Vectors.toHex(plan.digest))
            assertEquals(case["largest_sum"], plan.largestSum)
            val changed = mapOf(
                raw.replace("\n ", "\n  ") to "canonical",
                raw.replace("\"degree\": 5", "\"degree\": 0") to "degree 0",
                raw.replace("\"min_live\": 5", "\"min_live\": 7") to "min_live 7",
                raw.replace("\"modulus_bits\": ${plan.modulusBits}", "\"modulus_bits\": 8") to "modulus_bits 8",
                raw.replace("\"devices\": 6", "\"devices\": 65536").replace("\"value_bits\": ${plan.valueBits}", "\"value_bits\": 24")
                    .replace("\"modulus_bits\": 32", "\"modulus_bits\": 16") to "a sum of 65536 devices",
                raw.replace("\"schema\": 1", "\"schema\": 2") to "schema 2",
                raw.replace("{", "{\"more\": 1,") to "not a plan",
            )
            for ((text, words) in changed) {
                val error = assertThrows(words, SecureRoundRefusedError::class.java) { SecurePlan.parse(text.toByteArray()) }
                assertTrue("${error.message}", words in error.message!!)
            }
        }
    }

    @Test
    fun theRosterIsKnownByItsHash() {
        val found = map("roster")
        val plan = SecurePlan.parse((found["plan"] as String).toByteArray())
        val raw = hex(found["raw"])
        val roster = Roster.parse(plan, raw)
        assertEquals(found["sha256"], Vectors.toHex(roster.digest))
        assertArrayEquals(Advertisement.parse(hex(found["first_advertisement"])).digest, roster.digests[0])
        val live = hex(found["live"])
        assertEquals(found["live_statement"], Vectors.toHex(roster.liveStatement(live)))
        assertEquals(setOf(0, 1, 2, 4, 5), roster.places(live))
        val swapped = raw.copyOfRange(64, 128) + raw.copyOf(64) + raw.copyOfRange(128, raw.size)
        for ((bytes, words) in listOf(swapped to "not sorted", raw.copyOf(64 * 4) to "a roster of 4", raw.copyOf(65) to "65 bytes")) {
            val error = assertThrows(SecureRoundRefusedError::class.java) { Roster.parse(plan, bytes) }
            assertTrue("${error.message}", words in error.message!!)
        }
        assertThrows(SecureRoundRefusedError::class.java) { roster.places(byteArrayOf(64)) }
    }

    @Test
    fun updatesBecomeWholeNumbers() {
        val found = map("numbers")
        val values = doubles(found["values"]).map { it.toFloat() }.toFloatArray()
        val bits = (found["bits"] as Long).toInt()
        assertEquals(ints(found["quantised"]), Whole.quantise(values, found["units"] as Double, bits, hex(found["key"])).toList())
        assertArrayEquals(intArrayOf(0), Whole.quantise(floatArrayOf(Float.NaN), 100.0, 8, ByteArray(32)))
        val spike = DoubleArray(11).also { it[3] = 1.0 }
        val rotated = Whole.rotate(spike, hex(found["rotation_context"]))
        assertArrayEquals(doubles(found["rotated_unit_vector_3_of_11"]), rotated, 1e-15)
    }

    @Test
    fun noiseIsDrawnAsPythonDraws() {
        assertEquals(3, list("noise").size)
        // With a margin of 2 every single decision is taken exactly, and comes out as doubles took it.
        for (case in list("noise")) for (margin in listOf(DiscreteGaussian.MARGIN, 2.0)) {
            val bits = (case["scale_bits"] as Long).toInt()
            val draws = DiscreteGaussian(bits, margin, pieces(case["key"])).draw(50)
            assertEquals(case["draws"], draws.toList())
        }
    }

    @Test
    fun anUpdateIsEncodedAsPythonEncodesIt() {
        assertEquals(listOf(false, true), list("encoded").map { SecurePlan.parse((it["plan"] as String).toByteArray()).noise != null })
        for (case in list("encoded")) {
            val plan = SecurePlan.parse((case["plan"] as String).toByteArray())
            val update = doubles(case["update"]).map { it.toFloat() }.toFloatArray()
            assertEquals(ints(case["whole"]), SecureUpdate.encode(update, plan, pieces(case["key"])).toList())
        }
    }

    @Test
    fun aRoundWithTheServersNoiseIsAnsweredWithPythonsBits() {
        val found = map("clipped")
        val shapes = mapOf("b" to listOf(4, 25), "a" to listOf(200))
        fun adapter(name: String) = Vectors.asMap(found[name]).mapValues { NpyArray(Dtype.FLOAT32, shapes.getValue(it.key), hex(it.value)) }
        val terms = mapOf("unit" to "device", "max_norm" to found["max_norm"]!!, "noise_multiplier" to 1.0, "sample_rate" to 1.0)
        val answer = PrivacyTerms.of(mapOf("privacy" to ConfigRecord(terms)))!!.clippedAnswer(adapter("trained"), adapter("received"))
        assertEquals(adapter("answered"), (answer.records.getValue("arrays") as ArrayRecord).arrays)
    }

    /** A generator that gives piece after piece of one keystream. */
    private fun pieces(key: Any?): (Int) -> ByteArray {
        val stream = Masks.keystream(hex(key), 1 shl 20)
        var at = 0
        return { count -> stream.copyOfRange(at, at + count).also { at += count } }
    }

    @Test
    fun whatIsSpentIsBoundedAsInPython() {
        val found = map("privacy")
        val noise = SecurePlan.parse((list("plans")[1]["raw"] as String).toByteArray()).noise!!
        assertEquals(found["longest"] as Double, noise.longest(1000), 1e-9)
        assertEquals(found["noise_multiplier"] as Double, noise.noiseMultiplier(1000), 1e-12)
        val update = doubles(found["update"]).map { it.toFloat() }.toFloatArray()
        assertArrayEquals(doubles(found["clipped_to_2"]), SecureUpdate.clipped(update, 2.0), 1e-15)
        assertArrayEquals(DoubleArray(2), SecureUpdate.clipped(floatArrayOf(Float.NaN, 1f), 2.0), 0.0)
        for (case in (found["epsilon"] as List<*>).map(Vectors::asMap)) {
            val spent = (case["spent"] as List<*>).map { it as List<*> }.map { (unit, steps, rate, z) ->
                PrivacySpent(steps as Long, rate as Double, z as Double, 1.0, unit as String, "zero-out-one")
            }
            val expected = case["at_most"] as Double
            assertEquals(expected, RenyiPrivacy.epsilonAtMost(spent, case["delta"] as Double), 1e-9 * expected)
        }
    }
}
