package org.rootlet.wire

/**
 * JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it, to the byte: what a ledger's hashes are over.
 *
 * Values are text, [Long], [Double], [Boolean], null, lists, maps, and numbers of a parsed line as they stood there.
 */
internal object CanonicalJson {
    /** With sorted keys and no spaces. */
    fun of(fields: Map<String, Any?>): String = written(fields, sorted = true, ",", ":")

    /** With the keys in their order, and Python's spaces. */
    fun line(fields: Map<String, Any?>): String = written(fields, sorted = false, ", ", ": ")

    /** With sorted keys, an indent of 1 and a final newline: `rootlet_runtime.strict_json.dumps`. */
    fun document(fields: Map<String, Any?>): ByteArray = (indented(fields, "\n") + "\n").toByteArray()

    private fun indented(value: Any?, newline: String): String {
        if (value !is Map<*, *>) return written(value, sorted = true, ",", ":")
        val inner = "$newline "
        return value.keys.map { it as String }.sortedWith(BY_CODE_POINT)
            .joinToString(",$inner", "{$inner", "$newline}") { quoted(it) + ": " + indented(value[it], inner) }
    }

    private fun written(value: Any?, sorted: Boolean, comma: String, colon: String): String = when (value) {
        null -> "null"
        is String -> quoted(value)
        is Boolean, is Long -> value.toString()
        is Double -> repr(value)
        is RawNumber -> value.text
        is List<*> -> value.joinToString(comma, "[", "]") { written(it, sorted, comma, colon) }
        is Map<*, *> -> {
            val keys = value.keys.map { it as String }.let { keys -> if (sorted) keys.sortedWith(BY_CODE_POINT) else keys }
            keys.joinToString(comma, "{", "}") { quoted(it) + colon + written(value[it], sorted, comma, colon) }
        }
        else -> throw IllegalArgumentException("a ${value.javaClass.simpleName} is no JSON value")
    }

    /** The shortest decimal that reads back as [value], as Python's `repr` writes it. */
    fun repr(value: Double): String {
        require(value.isFinite()) { "$value is no JSON" }
        if (value == 0.0) return if (1 / value < 0) "-0.0" else "0.0"
        val shortest = (0..16).asSequence().map { "%.${it}e".format(null, value) }.first { it.toDouble() == value }
        val (mantissa, exponent) = shortest.split("e").let { it[0] to it[1].toInt() }
        val sign = if (value < 0) "-" else ""
        val digits = mantissa.filter { it.isDigit() }.trimEnd('0').ifEmpty { "0" }
        return sign + when {
            exponent < -4 || exponent >= 16 -> {
                val fraction = if (digits.length > 1) "." + digits.substring(1) else ""
                val power = Math.abs(exponent).toString().padStart(2, '0')
                "${digits[0]}${fraction}e${if (exponent < 0) "-" else "+"}$power"
            }
            exponent < 0 -> "0." + "0".repeat(-exponent - 1) + digits
            digits.length <= exponent + 1 -> digits.padEnd(exponent + 1, '0') + ".0"
            else -> digits.substring(0, exponent + 1) + "." + digits.substring(exponent + 1)
        }
    }

    /** A number as Python's `format(value, ".<digits>g")` has it, for people: so many significant digits. Finite. */
    fun general(value: Double, digits: Int = 6): String {
        if (value == 0.0) return "0"
        val (mantissa, exponent) = "%.${digits - 1}e".format(null, value).split("e").let { it[0] to it[1].toInt() }
        val shown = mantissa.filter { it.isDigit() }.trimEnd('0')
        val sign = if (value < 0) "-" else ""
        return sign + when {
            exponent < -4 || exponent >= digits -> {
                val fraction = if (shown.length > 1) "." + shown.substring(1) else ""
                "${shown[0]}${fraction}e${if (exponent < 0) "-" else "+"}${Math.abs(exponent).toString().padStart(2, '0')}"
            }
            exponent < 0 -> "0." + "0".repeat(-exponent - 1) + shown
            shown.length <= exponent + 1 -> shown.padEnd(exponent + 1, '0')
            else -> shown.substring(0, exponent + 1) + "." + shown.substring(exponent + 1)
        }
    }

    private fun quoted(text: String): String {
        val out = StringBuilder("\"")
        for (letter in text) {
            val escape = ESCAPES[letter]
            when {
                escape != null -> out.append(escape)
                letter < ' ' -> out.append("\\u00").append(HEX[letter.code shr 4]).append(HEX[letter.code and 15])
                else -> out.append(letter)
            }
        }
        return out.append('"').toString()
    }

    private const val HEX = "0123456789abcdef"
    private val ESCAPES = mapOf(
        '"' to "\\\"", '\\' to "\\\\", '\n' to "\\n", '\r' to "\\r", '\t' to "\\t", '\u000c' to "\\f", '\b' to "\\b",
    )

    /** UTF-8 sorts as its code points do; Kotlin's own order is that of UTF-16. */
    private val BY_CODE_POINT = Comparator<String> { a, b ->
        val left = a.toByteArray()
        val right = b.toByteArray()
        val at = left.indices.firstOrNull { it >= right.size || left[it] != right[it] }
        when {
            at == null -> left.size - right.size
            at >= right.size -> 1
            else -> (left[at].toInt() and 0xff) - (right[at].toInt() and 0xff)
        }
    }
}
