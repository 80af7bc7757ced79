package org.rootlet.bundle

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Assert.fail
import org.junit.Test
import org.rootlet.BundleException
import org.rootlet.wire.JsonObject
import org.rootlet.wire.StrictJson

/** Every refusal of the bundle's contract, from the vectors that the Python runtime meets too. */
class BundleVectorsTest {
    private val folder = File(System.getProperty("rootlet.repository"), "tests/vectors/bundles")
    private val expectations = StrictJson.parseObject(File(folder, "expectations.json").readBytes())

    private fun load(case: JsonObject): Bundle {
        val arguments = case.objectAt("arguments")
        fun of(name: String) = if (name in arguments.names) arguments else expectations
        val limits = if ("limits" in arguments.names) arguments.objectAt("limits") else null
        val default = BundleLimits()
        return Bundle.load(
            File(folder, case.text("file")),
            trustedKeys = of("trusted_keys").texts("trusted_keys").map(PublicKey::ofHex),
            minimumVersion = of("minimum_version").long("minimum_version"),
            now = Manifest.time(of("now").text("now"))!!,
            limits = BundleLimits(
                maxBundleBytes = limits.orElse("max_bundle_bytes", default.maxBundleBytes),
                maxGraphBytes = limits.orElse("max_graph_bytes", default.maxGraphBytes),
                maxStateBytes = limits.orElse("max_state_bytes", default.maxStateBytes),
            ),
        )
    }

    private fun JsonObject?.orElse(name: String, other: Long) =
        if (this != null && name in names) long(name) else other

    @Test
    fun everyVectorMeetsItsError() {
        val wrong = ArrayList<String>()
        val cases = expectations.objects("cases")
        for (case in cases) {
            val expected = case.textOrNull("error")
            val found = try {
                load(case).close()
                null
            } catch (error: BundleException) {
                assertTrue(error.message!!.isNotEmpty())
                error.javaClass.simpleName
            }
            if (found != expected) wrong.add("${case.text("case")}: $found, and $expected is due")
        }
        assertEquals(emptyList<String>(), wrong)
        assertTrue("${cases.size} cases", cases.size > 90)
    }

    @Test
    fun aGoodBundleTellsWhatItIs() {
        val good = expectations.objects("cases").first { it.text("case") == "good" }
        load(good).use { bundle ->
            assertEquals(bundle.manifest.adapter.map { it.name }, bundle.initialAdapter().keys.toList())
            assertEquals(64, bundle.manifestSha256.length)
            assertEquals(setOf("train", "evaluate", "predict"), bundle.external.keys)
        }
    }

    @Test
    fun whatIsClosedIsNotRead() {
        val bundle = load(expectations.objects("cases").first { it.text("case") == "good" })
        bundle.close()
        try {
            bundle.entry("train.onnx")
            fail("a closed bundle was read")
        } catch (error: BundleException) {
            assertTrue(error.message!!, "closed" in error.message!!)
        }
    }
}
