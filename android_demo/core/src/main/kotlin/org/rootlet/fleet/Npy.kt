package org.rootlet.fleet

import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * A type of array elements that may travel.
 *
 * @property numpy numpy's name for it, as in an Array's description.
 * @property descr its `.npy` description.
 * @property bytes bytes of one element.
 */
enum class Dtype(val numpy: String, val descr: String, val bytes: Int) {
    FLOAT16("float16", "<f2", 2),
    FLOAT32("float32", "<f4", 4),
    FLOAT64("float64", "<f8", 8),
    BOOL("bool", "|b1", 1),
    INT8("int8", "|i1", 1),
    INT16("int16", "<i2", 2),
    INT32("int32", "<i4", 4),
    INT64("int64", "<i8", 8),
    UINT8("uint8", "|u1", 1),
    UINT16("uint16", "<u2", 2),
    UINT32("uint32", "<u4", 4),
    UINT64("uint64", "<u8", 8),
}

/**
 * An array as it travels.
 *
 * @property data its elements in C order, little-endian.
 */
class NpyArray(val dtype: Dtype, val shape: List<Int>, val data: ByteArray) {
    init {
        val wanted = bytesOf(shape, dtype)
        if (wanted != data.size.toLong()) {
            throw RecordError("an array of shape $shape and dtype ${dtype.numpy} with ${data.size} bytes of data")
        }
    }

    /**
     * The elements of a float32 array, in C order.
     *
     * @throws RecordError another dtype.
     */
    fun floats(): FloatArray {
        if (dtype != Dtype.FLOAT32) throw RecordError("an array of dtype ${dtype.numpy}, not float32")
        return FloatArray(data.size / 4).also { ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(it) }
    }

    /** Same dtype, shape and bits. */
    override fun equals(other: Any?): Boolean =
        other is NpyArray && dtype == other.dtype && shape == other.shape && data.contentEquals(other.data)

    override fun hashCode(): Int = shape.hashCode() * 31 + data.contentHashCode()

    override fun toString(): String = "${dtype.numpy}$shape"

    companion object {
        /**
         * A float32 array.
         *
         * @throws RecordError the shape has another number of elements.
         */
        fun of(shape: List<Int>, values: FloatArray): NpyArray {
            val data = ByteArray(values.size * 4)
            ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().put(values)
            return NpyArray(Dtype.FLOAT32, shape, data)
        }

        /** Bytes of the elements; -1 where they do not fit a Long. */
        internal fun bytesOf(shape: List<Int>, dtype: Dtype): Long = try {
            shape.fold(dtype.bytes.toLong()) { product, size -> Math.multiplyExact(product, size.toLong()) }
        } catch (_: ArithmeticException) {
            -1L
        }
    }
}

/**
 * Arrays as `.npy` bytes: the form in which Flower moves them.
 *
 * Reading is safe on hostile bytes: the header must be literally what numpy writes, the dtype comes
 * from a list, and the shape must account for every byte. Objects (pickle) never pass.
 */
object Npy {
    private const val MAX_DIMENSIONS = 32
    private const val MAX_HEADER_BYTES = 4096
    private const val ALIGNMENT = 64

    /** numpy leaves room for its first dimension to grow to this many digits. */
    private const val GROWTH_DIGITS = 21
    private val MAGIC = byteArrayOf(0x93.toByte()) + "NUMPY".toByteArray(Charsets.US_ASCII)
    private val HEADER = Regex(
        """\{'descr': '([^']{1,8})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,18}(?:, ?)?)*)\), \} *\n""",
    )

    /** The `.npy` bytes of an array, as numpy writes them (version 1.0). */
    fun write(array: NpyArray): ByteArray {
        val shape = if (array.shape.size == 1) "(${array.shape[0]},)" else array.shape.joinToString(", ", "(", ")")
        val growth = array.shape.firstOrNull()?.let { " ".repeat(GROWTH_DIGITS - "$it".length) }.orEmpty()
        val header = "{'descr': '${array.dtype.descr}', 'fortran_order': False, 'shape': $shape, }$growth"
        val unpadded = MAGIC.size + 4 + header.length + 1
        val padded = header + " ".repeat(ALIGNMENT - unpadded % ALIGNMENT) + "\n"
        val prefix = byteArrayOf(1, 0, padded.length.toByte(), (padded.length shr 8).toByte())
        return MAGIC + prefix + padded.toByteArray(Charsets.US_ASCII) + array.data
    }

    /**
     * The array in `.npy` bytes; Fortran order is turned into C order.
     *
     * @throws ProtocolError a malformed header, a dtype outside [Dtype], or a shape that does not
     * account for exactly the bytes that follow the header.
     */
    fun read(content: ByteArray): NpyArray {
        val known = content.size >= 12 && content.copyOf(6).contentEquals(MAGIC) && content[7].toInt() == 0
        val lengthBytes = if (!known) 0 else when (content[6].toInt()) { 1 -> 2; 2 -> 4; else -> 0 }
        if (lengthBytes == 0) throw ProtocolError("an array that does not begin like a .npy file of version 1.0 or 2.0")
        val start = 8 + lengthBytes
        val length = (lengthBytes - 1 downTo 0).fold(0L) { sum, i -> (sum shl 8) or (content[8 + i].toLong() and 0xff) }
        if (length > MAX_HEADER_BYTES) throw ProtocolError("a .npy header of $length bytes; the limit is $MAX_HEADER_BYTES")
        val end = minOf(start + length.toInt(), content.size)
        val header = String(content, start, end - start, Charsets.ISO_8859_1)
        val match = HEADER.matchEntire(header)
            ?: throw ProtocolError("a .npy header that numpy does not write: ${header.take(120)}")
        val (descr, fortran, sizes) = match.destructured
        val dtype = Dtype.values().firstOrNull { it.descr == descr }
            ?: throw ProtocolError("an array of dtype '$descr'; allowed are ${Dtype.values().joinToString { it.numpy }}")
        val shape = sizes.split(',', ' ').filter { it.isNotEmpty() }.map { it.toLong() }
        val fits = shape.size <= MAX_DIMENSIONS && shape.all { it <= Int.MAX_VALUE }
        val dimensions = if (fits) shape.map { it.toInt() } else emptyList()
        val body = content.size - end
        if (!fits || NpyArray.bytesOf(dimensions, dtype) != body.toLong()) {
            throw ProtocolError("an array of shape $shape and dtype ${dtype.numpy} with $body bytes of data".take(300))
        }
        val data = content.copyOfRange(end, content.size)
        return NpyArray(dtype, dimensions, if (fortran == "True") rowMajor(data, dimensions, dtype.bytes) else data)
    }

    /** Elements in C order, of which [data] holds the Fortran order. */
    private fun rowMajor(data: ByteArray, shape: List<Int>, itemBytes: Int): ByteArray {
        val result = ByteArray(data.size)
        val strides = shape.runningFold(1) { product, size -> product * size }
        val index = IntArray(shape.size)
        for (target in 0 until data.size / itemBytes) {
            var source = 0
            for (axis in shape.indices) source += index[axis] * strides[axis]
            data.copyInto(result, target * itemBytes, source * itemBytes, (source + 1) * itemBytes)
            var axis = shape.size - 1
            while (axis >= 0 && ++index[axis] == shape[axis]) index[axis--] = 0
        }
        return result
    }
}
