package org.rootlet.wire

import java.math.BigInteger
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.nio.charset.CodingErrorAction

/** The bytes are not JSON of the expected shape; callers turn this into their own error. */
class StrictJsonError(message: String) : Exception(message)

/**
 * Strict JSON (RFC 8259): bytes from outside become maps, lists, text, numbers, or are refused.
 *
 * Refused: duplicate keys, NaN and infinities, numbers that a double cannot hold, text that is not
 * valid Unicode, more than [MAX_DEPTH] levels, anything after the value. A whole number is a [Long],
 * or a [BigInteger] where 64 bits do not hold it; any other number is a [Double].
 */
object StrictJson {
    const val MAX_DEPTH = 200

    /**
     * Parses UTF-8.
     *
     * @param keepNumbers gives a number that is not whole as it stands there, as a [RawNumber].
     * @throws StrictJsonError not JSON, or refused.
     */
    fun parse(raw: ByteArray, keepNumbers: Boolean = false): Any? {
        val text = try {
            Charsets.UTF_8.newDecoder()
                .onMalformedInput(CodingErrorAction.REPORT)
                .onUnmappableCharacter(CodingErrorAction.REPORT)
                .decode(ByteBuffer.wrap(raw)).toString()
        } catch (error: CharacterCodingException) {
            throw StrictJsonError("not UTF-8: ${error.message}")
        }
        return Parser(text, keepNumbers).whole()
    }

    /** Parses UTF-8 whose top level is an object. */
    fun parseObject(raw: ByteArray, keepNumbers: Boolean = false): JsonObject = JsonObject.of(parse(raw, keepNumbers), "")
}

/** A number that is not whole, as it was written. */
class RawNumber(val text: String)

/** An object whose fields are taken one by one; what is left over is unknown, and refused. */
class JsonObject private constructor(private val fields: Map<String, Any?>, private val path: String) {
    private val left = fields.keys.toMutableSet()

    /** The names of all fields. */
    val names: Set<String> get() = fields.keys

    /** Whether the field is there and not null. */
    fun holds(name: String): Boolean = fields[name] != null

    fun text(name: String): String {
        val value = taken(name) as? String ?: expected("text", name)
        if (!value.codePoints().allMatch(::printable)) {
            throw StrictJsonError("${at(name)}: holds characters that cannot be printed")
        }
        return value
    }

    fun textOrNull(name: String): String? = if (absent(name)) null else text(name)

    fun long(name: String): Long = taken(name) as? Long ?: expected("a whole number of 64 bits", name)

    fun double(name: String): Double = number(taken(name)) ?: expected("a number", name)

    fun boolean(name: String): Boolean = taken(name) as? Boolean ?: expected("true or false", name)

    fun list(name: String): List<Any?> = taken(name) as? List<*> ?: expected("a list", name)

    fun listOrNull(name: String): List<Any?>? = if (absent(name)) null else list(name)

    fun texts(name: String): List<String> = list(name).mapIndexed { i, item ->
        JsonObject(mapOf("$i" to item), at(name)).text("$i")
    }

    fun objects(name: String): List<JsonObject> =
        list(name).mapIndexed { i, item -> of(item, "${at(name)}[$i]") }

    fun objectAt(name: String): JsonObject = of(taken(name), at(name))

    fun objectOrNull(name: String): JsonObject? = if (absent(name)) null else objectAt(name)

    /** A field of free form. */
    fun any(name: String): Any? = taken(name)

    /** Refuses fields that were not taken. */
    fun finish() {
        left.minOrNull()?.let { throw StrictJsonError("${where()}: unknown field '$it'") }
    }

    private fun absent(name: String): Boolean = taken(name) == null

    private fun taken(name: String): Any? {
        if (name !in fields) throw StrictJsonError("${where()}: missing field '$name'")
        left.remove(name)
        return fields[name]
    }

    private fun number(value: Any?): Double? = when (value) {
        is Double -> value
        is Long -> value.toDouble()
        is BigInteger -> value.toDouble().takeIf { it.isFinite() }
        else -> null
    }

    private fun at(name: String) = if (path.isEmpty()) name else "$path.$name"

    private fun where() = path.ifEmpty { "the top level" }

    private fun expected(what: String, name: String): Nothing =
        throw StrictJsonError("${at(name)}: expected $what, got ${fields[name]?.javaClass?.simpleName}")

    companion object {
        fun of(value: Any?, path: String): JsonObject {
            val entries = value as? Map<*, *>
                ?: throw StrictJsonError("${path.ifEmpty { "the top level" }}: expected an object")
            return JsonObject(entries.entries.associate { (key, item) -> key as String to item }, path)
        }

        /** As Python's `str.isprintable`. */
        private fun printable(point: Int): Boolean = point == ' '.code || when (Character.getType(point).toByte()) {
            Character.CONTROL, Character.FORMAT, Character.SURROGATE, Character.PRIVATE_USE,
            Character.UNASSIGNED, Character.LINE_SEPARATOR, Character.PARAGRAPH_SEPARATOR,
            Character.SPACE_SEPARATOR,
            -> false
            else -> true
        }
    }
}

private class Parser(private val text: String, private val keepNumbers: Boolean) {
    private var position = 0

    fun whole(): Any? {
        val value = value(0)
        space()
        if (position != text.length) fail("something follows the value")
        return value
    }

    private fun value(depth: Int): Any? {
        if (depth > StrictJson.MAX_DEPTH) fail("more than ${StrictJson.MAX_DEPTH} levels")
        space()
        return when (peek()) {
            '{' -> entries(depth)
            '[' -> items(depth)
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> number()
        }
    }

    private fun entries(depth: Int): Map<String, Any?> {
        val found = LinkedHashMap<String, Any?>()
        position++
        space()
        if (take('}')) return found
        do {
            space()
            val key = if (peek() == '"') string() else fail("a key is text")
            space()
            if (!take(':')) fail("no colon after the key '$key'")
            if (key in found) fail("duplicate key '$key'")
            found[key] = value(depth + 1)
            space()
        } while (take(','))
        if (!take('}')) fail("an object does not end")
        return found
    }

    private fun items(depth: Int): List<Any?> {
        val found = ArrayList<Any?>()
        position++
        space()
        if (take(']')) return found
        do {
            found.add(value(depth + 1))
            space()
        } while (take(','))
        if (!take(']')) fail("a list does not end")
        return found
    }

    private fun string(): String {
        val found = StringBuilder()
        position++
        while (true) {
            val next = next()
            when {
                next == '"' -> break
                next < ' ' -> fail("a control character in text")
                next == '\\' -> found.append(escaped())
                else -> found.append(next)
            }
        }
        for (i in found.indices) {
            val paired = when {
                found[i].isHighSurrogate() -> i + 1 < found.length && found[i + 1].isLowSurrogate()
                found[i].isLowSurrogate() -> i > 0 && found[i - 1].isHighSurrogate()
                else -> true
            }
            if (!paired) fail("half a surrogate pair is no Unicode")
        }
        return found.toString()
    }

    private fun escaped(): Char = when (val kind = next()) {
        '"', '\\', '/' -> kind
        'b' -> '\b'
        'f' -> '\u000c'
        'n' -> '\n'
        'r' -> '\r'
        't' -> '\t'
        'u' -> {
            val digits = if (position + 4 <= text.length) text.substring(position, position + 4) else ""
            if (!HEX.matches(digits)) fail("'\\u$digits' is no character")
            position += 4
            digits.toInt(16).toChar()
        }
        else -> fail("'\\$kind' is no escape")
    }

    private fun number(): Any {
        val match = NUMBER.find(text, position)
        if (match == null || match.range.first != position) fail("no value")
        position = match.range.last + 1
        val digits = match.value
        if (digits.all { it == '-' || it.isDigit() }) {
            return digits.toLongOrNull() ?: if (digits.length > 4300) fail("a number of ${digits.length} digits") else BigInteger(digits)
        }
        val value = digits.toDouble()
        if (!value.isFinite()) fail("the number ${digits.take(40)} is too large")
        return if (keepNumbers) RawNumber(digits) else value
    }

    private fun <T> word(word: String, value: T): T {
        if (!text.startsWith(word, position)) fail("no value")
        position += word.length
        return value
    }

    private fun space() {
        while (position < text.length && text[position] in " \t\n\r") position++
    }

    private fun peek(): Char = if (position < text.length) text[position] else fail("the text ends early")

    private fun next(): Char = peek().also { position++ }

    private fun take(wanted: Char): Boolean =
        (position < text.length && text[position] == wanted).also { if (it) position++ }

    private fun fail(what: String): Nothing = throw StrictJsonError("not valid JSON: $what (at character $position)")

    private companion object {
        val NUMBER = Regex("-?(?:0|[1-9][0-9]*)(?:\\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
        val HEX = Regex("[0-9a-fA-F]{4}")
    }
}
