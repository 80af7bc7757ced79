package org.rootlet.training

import java.nio.ByteBuffer
import org.rootlet.DataError
import org.rootlet.bundle.TensorSpec

/** How a float32 value is kept: in 4 bytes, in 2, or in 1 and 8 a row. Integers and bytes are always exact. */
enum class Storage(val wire: String) { EXACT("exact"), FLOAT16("float16"), UINT8("uint8") }

/**
 * Examples as rows of bytes, as `rootlet_runtime.row_codec` keeps them, to the bit of what is decoded.
 *
 * | storage | largest error of a value |
 * |---|---|
 * | `EXACT` | none |
 * | `FLOAT16` | 2^-11 of its size (above 6.1e-5); beyond 65504 is refused |
 * | `UINT8` | 1/510 of its row's range: `low + q scale`, with q in 0..255 and both ends in float32 |
 *
 * @param spec data type and shape; the first dimension is open.
 */
internal class RowCodec(private val spec: TensorSpec, storage: Storage = Storage.EXACT) {
    private val storage = if (spec.dtype == "float32") storage else Storage.EXACT
    private val elements = Math.toIntExact(spec.elements)

    /** Bytes of a row as the graphs take it. */
    val plainBytes: Int = Math.multiplyExact(elements, Examples.elementBytes(spec.dtype))

    /** Bytes of a row as it is kept. */
    val rowBytes: Int = when (this.storage) {
        Storage.EXACT -> plainBytes
        Storage.FLOAT16 -> elements * Short.SIZE_BYTES
        Storage.UINT8 -> Math.addExact(elements, ENDS_BYTES)
    }

    /**
     * Rows [count, …] as they are kept, [count] times [rowBytes].
     *
     * @throws DataError rows of another size, or a value beyond the range of float16.
     */
    fun encode(rows: ByteBuffer, count: Int): ByteBuffer {
        val from = rows.duplicate().order(rows.order()).apply { clear() }
        if (from.remaining() != Math.multiplyExact(count, plainBytes)) {
            throw DataError("${spec.name}: ${from.remaining()} bytes; $count rows of ${spec.shape.drop(1)} ${spec.dtype} are ${count.toLong() * plainBytes}")
        }
        val packed = Examples.direct(count, rowBytes)
        when (storage) {
            Storage.EXACT -> packed.put(from)
            Storage.FLOAT16 -> repeat(count * elements) { packed.putShort(half(from.getFloat())) }
            Storage.UINT8 -> repeat(count) { quantize(FloatArray(elements) { from.getFloat() }, packed) }
        }
        packed.clear()
        return packed
    }

    /** Puts the row at [slot] of [packed] at [to]'s position. */
    fun decode(packed: ByteBuffer, slot: Int, to: ByteBuffer) {
        val from = packed.duplicate().order(packed.order())
        from.limit((slot + 1) * rowBytes)
        from.position(slot * rowBytes)
        when (storage) {
            Storage.EXACT -> to.put(from)
            Storage.FLOAT16 -> repeat(elements) { to.putFloat(single(from.getShort().toInt())) }
            Storage.UINT8 -> {
                val low = from.getFloat()
                val scale = from.getFloat()
                repeat(elements) { to.putFloat(low + (from.get().toInt() and 0xff).toFloat() * scale) }
            }
        }
    }

    private fun half(value: Float): Short {
        val bits = value.toRawBits()
        val size = bits and Int.MAX_VALUE
        val found = if (size < SMALLEST_NORMAL) {
            Math.rint(Math.abs(value.toDouble()) * SUBNORMALS).toInt()
        } else {
            (size + 0xfff + ((size ushr 13) and 1) - REBIASED) ushr 13 // to the nearest, ties to even
        }
        if (found !in 0 until INFINITE) {
            throw DataError("${spec.name}: $value is beyond float16's 65504; scale the data, or use the storage UINT8 or EXACT")
        }
        return ((bits ushr 16 and 0x8000) or found).toShort()
    }

    private fun single(half: Int): Float {
        val size = half and 0x7fff
        val found = if (size < 0x400) (size / SUBNORMALS).toFloat() else Float.fromBits((size shl 13) + REBIASED)
        return if (half and 0x8000 == 0) found else -found
    }

    private companion object {
        const val ENDS_BYTES = 8
        const val LEVELS = 255
        const val INFINITE = 0x7c00
        const val SMALLEST_NORMAL = 0x38800000 // 2^-14 as float32
        const val REBIASED = 0x38000000 // the difference of the exponents' biases, 112
        const val SUBNORMALS = 16777216.0 // 2^24 of them in 1

        fun quantize(row: FloatArray, packed: ByteBuffer) {
            val low = row.minOrNull()!!.toDouble()
            val scale = (row.maxOrNull()!! - low) / LEVELS
            val safe = if (scale > 0) scale else 1.0
            packed.putFloat(low.toFloat()).putFloat(scale.toFloat())
            for (value in row) packed.put(Math.rint((value - low) / safe).coerceIn(0.0, LEVELS.toDouble()).toInt().toByte())
        }
    }
}
