package org.rootlet.bundle

import java.io.Closeable
import java.io.File
import java.nio.ByteBuffer
import java.util.Date
import org.rootlet.AdapterError
import org.rootlet.BundleException
import org.rootlet.ExpiredError
import org.rootlet.ExtraFileError
import org.rootlet.HashMismatchError
import org.rootlet.ManifestError
import org.rootlet.MissingFileError
import org.rootlet.RollbackError
import org.rootlet.SignatureError
import org.rootlet.SizeLimitError
import org.rootlet.UnknownPublisherError
import org.rootlet.UnsignedError
import org.rootlet.wire.FloatTensor
import org.rootlet.wire.SafeTensors
import org.rootlet.wire.StrictJson
import org.rootlet.wire.StrictJsonError
import org.rootlet.wire.WireError
import org.rootlet.wire.sha256
import org.rootlet.wire.toHex

/**
 * A verified bundle: the only thing that a device runs (`docs/bundle.md`). Made by [load].
 *
 * Its LiteRT model, where it has one, is held to its hash and handed to nothing.
 */
class Bundle private constructor(private val archive: Archive, raw: ByteArray, val manifest: Manifest) : Closeable {
    /** SHA-256 (hex) of the manifest's exact bytes; it identifies the bundle. */
    val manifestSha256: String = sha256(ByteBuffer.wrap(raw)).toHex()

    /** What lies in `base.bin`, by the role of the graph that uses it. */
    internal val external = HashMap<String, List<ExternalTensor>>()
    private var adapter: Map<String, FloatTensor> = emptyMap()

    /** The bytes of one file, a read-only view of the mapping. */
    fun entry(name: String): ByteBuffer = archive[name] ?: throw MissingFileError("$name is absent")

    /** The adapter that the bundle ships, as copies in the manifest's order. */
    fun initialAdapter(): Map<String, FloatTensor> =
        adapter.mapValues { (_, tensor) -> FloatTensor(tensor.shape, tensor.values.copyOf()) }

    /** Closes the file; close a bundle after its trainers have done their work. */
    override fun close() = archive.close()

    private fun checkAge(minimumVersion: Long, now: Date) {
        if (manifest.version < minimumVersion) {
            throw RollbackError(
                "${manifest.name} version ${manifest.version} is older than version $minimumVersion, already " +
                    "accepted here; ask for the current bundle",
            )
        }
        val expires = manifest.expiresAt
        if (expires != null && now >= expires) {
            throw ExpiredError(
                "${manifest.name} version ${manifest.version} expired at ${Manifest.formatTime(expires)} (it is " +
                    "${Manifest.formatTime(now)}); ask the publisher for a new one, or set this device's clock",
            )
        }
    }

    private fun checkFiles(limits: BundleLimits) {
        val found = archive.names - MANIFEST_FILE - SIGNATURE_FILE
        (manifest.files.keys - found).minOrNull()?.let {
            throw MissingFileError("$it is declared by the manifest but absent")
        }
        (found - manifest.files.keys).minOrNull()?.let {
            throw ExtraFileError("$it is present but not declared by the manifest")
        }
        for ((name, declared) in manifest.files) {
            val content = entry(name)
            if (content.remaining().toLong() != declared.size) {
                throw HashMismatchError("$name: ${content.remaining()} bytes; the manifest declares ${declared.size}")
            }
            val digest = sha256(content).toHex()
            if (digest != declared.sha256) {
                throw HashMismatchError("$name: its SHA-256 is $digest; the manifest declares ${declared.sha256}")
            }
        }
        val stateBytes = (manifest.adapter + manifest.optimizerState).fold(0L) { sum, spec ->
            Math.addExact(sum, Math.multiplyExact(4L, spec.elements))
        }
        if (stateBytes > limits.maxStateBytes) {
            throw SizeLimitError(
                "the adapter and its optimiser need $stateBytes bytes; the limit is ${limits.maxStateBytes}",
            )
        }
    }

    private fun checkGraphs() {
        val baseBytes = entry(BASE_FILE).remaining().toLong()
        for ((role, spec) in manifest.graphs) {
            external[role] = GraphCheck(spec, manifest.inputsOf(role), baseBytes).check(entry(spec.file))
        }
    }

    private fun readAdapter() {
        val tensors = try {
            SafeTensors.read(entry(ADAPTER_FILE))
        } catch (error: WireError) {
            throw ManifestError("$ADAPTER_FILE: not readable as safetensors: ${error.message}", error)
        }
        adapter = try {
            checkTensors(tensors, manifest.adapter)
        } catch (error: AdapterError) {
            throw ManifestError("$ADAPTER_FILE differs from the manifest: ${error.message}", error)
        }
    }

    companion object {
        /**
         * Maps and verifies a bundle, in this order: the archive, the signature over the exact bytes of
         * the manifest, the manifest, its version, its expiry, every file's presence, size and SHA-256,
         * the graphs, the initial adapter. The engine sees nothing of a bundle that fails.
         *
         * @param trustedKeys publishers whose bundles may run here.
         * @param minimumVersion the newest version already accepted; older ones are refused.
         * @param now what the expiry is compared with.
         * @throws BundleException its subclass names the reason.
         */
        fun load(
            path: File,
            trustedKeys: List<PublicKey>,
            minimumVersion: Long = 0,
            now: Date = Date(),
            limits: BundleLimits = BundleLimits(),
        ): Bundle {
            val archive = Archive(path, limits)
            try {
                val raw = archive[MANIFEST_FILE]?.toByteArray()
                    ?: throw MissingFileError("$MANIFEST_FILE is absent: not a bundle")
                val bundle = Bundle(archive, raw, verified(archive, raw, trustedKeys))
                bundle.checkAge(minimumVersion, now)
                bundle.checkFiles(limits)
                bundle.checkGraphs()
                bundle.readAdapter()
                return bundle
            } catch (error: Throwable) {
                archive.close()
                throw if (error is ArithmeticException) SizeLimitError("more bytes than 64 bits count") else error
            }
        }

        private fun verified(archive: Archive, raw: ByteArray, trustedKeys: List<PublicKey>): Manifest {
            val signature = archive[SIGNATURE_FILE]?.toByteArray()
                ?: throw UnsignedError("the bundle carries no signature; ask the publisher to sign it")
            if (signature.size != PublicKey.SIGNATURE_BYTES) {
                throw SignatureError("$SIGNATURE_FILE: ${signature.size} bytes; an Ed25519 signature has 64")
            }
            val signer = trustedKeys.firstOrNull { it.verifies(raw, signature) } ?: throw refusal(raw, trustedKeys)
            val manifest = Manifest.parse(raw)
            if (manifest.publisher != signer.hex) {
                throw SignatureError("signed by ${signer.hex}, but the manifest names ${manifest.publisher}")
            }
            return manifest
        }

        /** Reads the manifest only to say which of the two it is; nothing else of it is used. */
        private fun refusal(raw: ByteArray, trustedKeys: List<PublicKey>): BundleException {
            val claimed = try {
                (StrictJson.parse(raw) as? Map<*, *>)?.get("publisher") as? String
            } catch (_: StrictJsonError) {
                null
            }
            if (claimed == null || trustedKeys.any { it.hex == claimed }) {
                return SignatureError(
                    "the signature does not belong to this manifest: the bundle was changed after it was signed, " +
                        "or damaged; fetch it again",
                )
            }
            return UnknownPublisherError("signed by '${claimed.take(64)}', which is not trusted here")
        }
    }
}

/**
 * Tensors held against their specs, in the order of the specs.
 *
 * @throws AdapterError a name is missing or unknown, a shape or type differs, or a value is not finite.
 */
internal fun checkTensors(tensors: Map<String, Any>, specs: List<TensorSpec>): Map<String, FloatTensor> {
    val expected = specs.map { it.name }.toSet()
    if (tensors.keys != expected) {
        throw AdapterError("missing tensors ${(expected - tensors.keys).sorted()}, unknown ${(tensors.keys - expected).sorted()}")
    }
    return specs.associate { spec ->
        val tensor = tensors.getValue(spec.name) as? FloatTensor
            ?: throw AdapterError("${spec.name}: must be float32")
        val shape = spec.shapeOf(0)
        if (!tensor.shape.contentEquals(shape)) {
            throw AdapterError("${spec.name}: shape ${tensor.shape.toList()}; must be ${shape.toList()}")
        }
        if (!tensor.values.all { it.isFinite() }) {
            throw AdapterError("${spec.name}: holds NaN or infinity; an adapter is finite")
        }
        spec.name to tensor
    }
}

private fun ByteBuffer.toByteArray(): ByteArray = ByteArray(remaining()).also { duplicate().get(it) }
