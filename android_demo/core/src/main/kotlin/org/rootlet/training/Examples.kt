package org.rootlet.training

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.rootlet.DataError
import org.rootlet.bundle.Manifest
import org.rootlet.bundle.TensorSpec

/**
 * Examples and their labels, row by row, as the graphs take them.
 *
 * @property count how many.
 * @property x their rows one after the other, in the data type and shape of the manifest's `x`.
 * @property y int64 classes [count], or float32 targets [count, K].
 */
class Examples internal constructor(val count: Int, internal val x: ByteBuffer, internal val y: ByteBuffer) {
    companion object {
        /**
         * Examples for a classifier.
         *
         * @param x a `FloatArray`, `LongArray` or `ByteArray` (uint8) with the rows one after the other.
         * @param labels one class for each row.
         * @throws DataError of another type or size, not finite, or a label out of range.
         */
        fun classified(manifest: Manifest, x: Any, labels: LongArray): Examples {
            if (!manifest.classifies) throw DataError("labels: the bundle is a regression; give targets")
            labels.firstOrNull { it < 0 || it >= manifest.numOutputs }?.let {
                throw DataError("label $it: must lie in 0..${manifest.numOutputs - 1}")
            }
            val y = direct(labels.size, Long.SIZE_BYTES)
            y.asLongBuffer().put(labels)
            return Examples(labels.size, rows(manifest.x, x, labels.size), y)
        }

        /**
         * Examples for a regression; [targets] are [count, K].
         *
         * @throws DataError as for [classified].
         */
        fun measured(manifest: Manifest, x: Any, targets: FloatArray): Examples {
            if (manifest.classifies) throw DataError("targets: the bundle is a classifier; give labels")
            if (targets.size % manifest.numOutputs != 0 || !targets.all { it.isFinite() }) {
                throw DataError("targets: ${targets.size} values; must be finite, ${manifest.numOutputs} a row")
            }
            val count = targets.size / manifest.numOutputs
            val y = direct(targets.size, Float.SIZE_BYTES)
            y.asFloatBuffer().put(targets)
            return Examples(count, rows(manifest.x, x, count), y)
        }

        /** Rows [count, …] of the data type that [spec] says, checked and copied. */
        internal fun rows(spec: TensorSpec, x: Any, count: Int): ByteBuffer {
            if (count < 1) throw DataError("no examples")
            val expected = spec.elements * count
            val (dtype, size) = when (x) {
                is FloatArray -> "float32" to x.size
                is LongArray -> "int64" to x.size
                is ByteArray -> "uint8" to x.size
                else -> throw DataError("x is a ${x.javaClass.simpleName}; give a FloatArray, LongArray or ByteArray")
            }
            if (dtype != spec.dtype) throw DataError("x is $dtype; the bundle takes ${spec.dtype}")
            if (size.toLong() != expected) {
                throw DataError("x has $size values; $count rows of ${spec.shape.drop(1)} are $expected")
            }
            val rows = direct(size, elementBytes(dtype))
            when (x) {
                is FloatArray -> {
                    if (!x.all { it.isFinite() }) throw DataError("x holds NaN or infinity")
                    rows.asFloatBuffer().put(x)
                }
                is LongArray -> rows.asLongBuffer().put(x)
                is ByteArray -> rows.duplicate().put(x)
            }
            return rows
        }

        internal fun elementBytes(dtype: String): Int = when (dtype) {
            "float32" -> 4
            "int64" -> 8
            "uint8" -> 1
            else -> throw DataError("data type $dtype")
        }

        internal fun direct(elements: Int, bytes: Int): ByteBuffer {
            val size = Math.multiplyExact(elements, bytes)
            return ByteBuffer.allocateDirect(size).order(ByteOrder.nativeOrder())
        }
    }
}

/** Copies the rows [chosen] of [source] to the start of [target], then the first one to fill it. */
internal fun gather(source: ByteBuffer, target: ByteBuffer, rowBytes: Int, chosen: IntArray, size: Int) {
    val from = source.duplicate()
    val to = target.duplicate()
    to.clear()
    for (i in 0 until size) {
        val row = chosen[if (i < chosen.size) i else 0]
        from.limit((row + 1) * rowBytes)
        from.position(row * rowBytes)
        to.put(from)
    }
}
