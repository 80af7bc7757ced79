package org.rootlet.device

import java.io.File
import java.io.FileOutputStream
import java.nio.file.Files
import java.nio.file.StandardCopyOption
import org.rootlet.fleet.ConfigError
import org.rootlet.wire.CanonicalJson
import org.rootlet.wire.StrictJson
import org.rootlet.wire.StrictJsonError

/**
 * What the owner of a device chose, kept over restarts.
 *
 * @property paused nothing is trained in the background, and nothing leaves.
 * @property server `https://host[:port]` of the federation; empty for none.
 * @property certificate the server's root certificate in PEM; empty for those that the system trusts.
 * @throws ConfigError a server without TLS.
 */
data class DeviceSettings(val paused: Boolean = false, val server: String = "", val certificate: String = "") {
    init {
        if (server.isNotEmpty() && !server.startsWith("https://")) {
            throw ConfigError("server is '${server.take(80)}': it must start with https://, for nothing leaves this device in clear")
        }
    }

    /** Whether the device takes part in a federation. */
    val joins: Boolean get() = server.isNotEmpty() && !paused

    /** Keeps them; they are on the disk when this returns. */
    fun save(file: File) {
        val fresh = File("${file.path}.new")
        FileOutputStream(fresh).use {
            it.write(CanonicalJson.document(mapOf("paused" to paused, "server" to server, "certificate" to certificate)))
            it.fd.sync()
        }
        Files.move(fresh.toPath(), file.toPath(), StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING)
    }

    companion object {
        /**
         * Those that were kept; without a file, the defaults.
         *
         * @throws ConfigError the file is damaged.
         */
        fun load(file: File): DeviceSettings {
            if (!file.exists()) return DeviceSettings()
            try {
                val fields = StrictJson.parseObject(file.readBytes())
                // A certificate has line ends, which `text` would refuse.
                val certificate = fields.any("certificate") as? String ?: throw ConfigError("$file is damaged: choose again")
                return DeviceSettings(fields.boolean("paused"), fields.text("server"), certificate)
            } catch (error: StrictJsonError) {
                throw ConfigError("$file is damaged (${error.message}): choose again", error)
            }
        }
    }
}
