package org.rootlet.fleet

import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import org.rootlet.wire.WireError
import org.rootlet.wire.replaceFile
import org.rootlet.wire.sha256
import org.rootlet.wire.toHex

/** How far a device is with its message. */
enum class Stage { EMPTY, PULLED, FETCHED, ANSWERED }

/**
 * The one message a device is working on, kept so that a crash does not lose it.
 *
 * Flower hands each message out once. So a device writes down how far it is, in one file that each
 * stage replaces atomically: PULLED (announced), FETCHED (objects here), ANSWERED (reply to push). A
 * damaged file counts as absent; objects are found by their hash, so that a flipped bit is damage.
 *
 * @param folder where the files lie, private to the app; null keeps everything in memory.
 */
class Mailbox(private val folder: File? = null) {
    /** How far the device is. */
    var stage: Stage = Stage.EMPTY
        private set

    /** The message, from PULLED on. */
    var envelope: Envelope? = null
        private set

    /** Its objects by id, in FETCHED. */
    var contents: Map<String, ByteArray> = emptyMap()
        private set

    /** The answer, in ANSWERED. */
    var reply: SealedReply? = null
        private set

    init {
        folder?.mkdirs()
        if (file?.isFile == true) load(file!!)
    }

    private val file: File? get() = folder?.resolve("message")
    private val nodeFile: File? get() = folder?.resolve("node")

    /** Keeps an announced message. @throws IOException the disk refuses. */
    fun pulled(envelope: Envelope) {
        set(Stage.PULLED, envelope)
        store()
    }

    /** Keeps the objects of the message. @throws IOException the disk refuses. */
    fun fetched(contents: Map<String, ByteArray>) {
        set(Stage.FETCHED, envelope, contents)
        store()
    }

    /** Keeps the reply; the objects of the message are no longer needed. @throws IOException the disk refuses. */
    fun answered(reply: SealedReply) {
        set(Stage.ANSWERED, envelope, reply = reply)
        store()
    }

    /** Is done with the message. */
    fun clear() {
        set(Stage.EMPTY, null)
        file?.delete()
    }

    /** Keeps the node id that a server gave to a key. @throws IOException the disk refuses. */
    fun rememberNode(address: String, publicKey: ByteArray, nodeId: Long) {
        nodeFile?.let { replaceFile(it, "${identity(address, publicKey)} ${unsigned(nodeId)}".toByteArray()) }
    }

    /** The node id that this server gave to this key; 0 where unknown. */
    fun nodeId(address: String, publicKey: ByteArray): Long = try {
        val (known, id) = nodeFile?.takeIf { it.isFile }?.readText()?.split(" ", limit = 2) ?: listOf("", "")
        if (known == identity(address, publicKey)) java.lang.Long.parseUnsignedLong(id) else 0L
    } catch (_: IOException) {
        0L
    } catch (_: RuntimeException) { // a damaged file: no second word, or no number
        0L
    }

    private fun set(
        stage: Stage,
        envelope: Envelope?,
        contents: Map<String, ByteArray> = emptyMap(),
        reply: SealedReply? = null,
    ) {
        this.stage = stage
        this.envelope = envelope
        this.contents = contents
        this.reply = reply
    }

    private fun store() {
        val file = file ?: return
        val announced = envelope ?: return
        val bytes = ByteArrayOutputStream()
        val out = DataOutputStream(bytes)
        val sent = reply
        val message = Codec.message(FleetMessage(announced.metadata), withContent = false).toByteArray()
        val blobs = listOf(stage.name.toByteArray(), message, Codec.tree(announced.tree).toByteArray()) +
            listOfNotNull(sent?.let { Codec.message(it.message, false).toByteArray() }, sent?.let { Codec.tree(it.tree).toByteArray() }) +
            (sent?.contents ?: contents).values
        for (blob in blobs) {
            out.writeInt(blob.size)
            out.write(blob)
        }
        replaceFile(file, bytes.toByteArray())
    }

    private fun load(file: File) {
        try {
            val blobs = ArrayDeque(blobs(file.readBytes()))
            val stage = Stage.valueOf(String(blobs.removeFirst(), Charsets.US_ASCII))
            val message = Codec.readMessage(ByteBuffer.wrap(blobs.removeFirst()))
            val envelope = Envelope(message.metadata, tree(blobs.removeFirst()))
            if (stage == Stage.ANSWERED) {
                val sent = Codec.readMessage(ByteBuffer.wrap(blobs.removeFirst()))
                val tree = tree(blobs.removeFirst())
                val contents = whole(tree, blobs)
                set(stage, envelope, reply = SealedReply(sent, tree, contents))
            } else {
                set(stage, envelope, if (stage == Stage.FETCHED) whole(envelope.tree, blobs) else emptyMap())
            }
        } catch (_: IOException) {
            set(Stage.EMPTY, null)
        } catch (_: WireError) {
            set(Stage.EMPTY, null)
        } catch (_: FleetError) {
            set(Stage.EMPTY, null)
        } catch (_: RuntimeException) { // no such stage, or too few blobs
            set(Stage.EMPTY, null)
        }
    }

    private fun tree(blob: ByteArray) = Codec.readTree(ByteBuffer.wrap(blob), Limits().objects)

    private fun whole(tree: ObjectTree, blobs: Collection<ByteArray>): Map<String, ByteArray> {
        val contents = blobs.associateBy { sha256(it).toHex() }
        if (contents.keys != FleetObjects.treeIds(tree).toSet()) throw IOException("objects are missing or damaged")
        return contents
    }

    private fun blobs(content: ByteArray): List<ByteArray> {
        val input = DataInputStream(ByteArrayInputStream(content))
        val found = ArrayList<ByteArray>()
        while (input.available() > 0) {
            val length = input.readInt()
            if (length < 0 || length > input.available()) throw IOException("the file is cut short")
            found.add(ByteArray(length).also(input::readFully))
        }
        return found
    }

    private fun identity(address: String, publicKey: ByteArray): String = sha256(address.toByteArray() + 0 + publicKey).toHex()
}
