package org.rootlet.device

import java.io.File
import org.rootlet.wire.CanonicalJson
import org.rootlet.wire.JsonObject
import org.rootlet.wire.StrictJson
import org.rootlet.wire.StrictJsonError
import org.rootlet.wire.replaceFile

/** A small file of the app's own, replaced at once or not at all. */
internal class PrivateFile(private val file: File) {
    /** Its bytes; null if it is not there. */
    fun read(): ByteArray? = if (file.exists()) file.readBytes() else null

    /** Its JSON object; null if it is not there, or no such thing. */
    fun readObject(): JsonObject? = try {
        read()?.let { StrictJson.parseObject(it) }
    } catch (_: StrictJsonError) {
        null
    }

    /** Writes [content], to the disk. @throws java.io.IOException it is full, or refuses. */
    fun write(content: ByteArray) = replaceFile(file, content)

    /** Writes a JSON object. @throws java.io.IOException as [write]. */
    fun writeObject(fields: Map<String, Any?>) = write(CanonicalJson.line(fields).toByteArray())

    /** Removes it. */
    fun delete() {
        file.delete()
    }
}
