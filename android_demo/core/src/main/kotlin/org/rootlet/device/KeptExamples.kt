package org.rootlet.device

import java.io.File
import java.nio.ByteBuffer
import org.rootlet.DataError
import org.rootlet.bundle.Manifest
import org.rootlet.training.Examples
import org.rootlet.wire.FloatTensor
import org.rootlet.wire.SafeTensors

/**
 * Labelled examples of a classifier that a user gave, in one file that each addition replaces. They are not encrypted
 * a second time: the phone's own storage is.
 *
 * @throws DataError the file is damaged, or its examples are not of this bundle's shape.
 */
class KeptExamples(file: File, private val manifest: Manifest) {
    private val file = PrivateFile(file)
    private var x = FloatArray(0)
    private var labels = LongArray(0)

    init {
        this.file.read()?.let { content ->
            try {
                val kept = SafeTensors.read(ByteBuffer.wrap(content))
                x = kept.getValue("x").values
                labels = kept.getValue("y").values.map { it.toLong() }.toLongArray()
                if (labels.isNotEmpty()) Examples.classified(manifest, x, labels) // its checks
            } catch (error: Exception) { // no tensors, one is missing, or of another shape
                throw DataError("${file.name} cannot be used (${error.message}): erase it, and draw anew")
            }
        }
    }

    /** How many there are. */
    val count: Int @Synchronized get() = labels.size

    /** How many there are of each class. */
    val countByClass: List<Int> @Synchronized get() =
        List(manifest.numOutputs) { digit -> labels.count { it == digit.toLong() } }

    /**
     * Keeps one more; it is on the disk when this returns.
     *
     * @throws DataError it is not of the bundle's shape, not finite, or the label is no class.
     * @throws java.io.IOException the disk refuses; the examples are as they were.
     */
    @Synchronized
    fun add(example: FloatArray, label: Long) {
        Examples.classified(manifest, example, longArrayOf(label))
        val (allX, allLabels) = x + example to labels + label
        val kept = mapOf(
            "x" to FloatTensor(longArrayOf(allLabels.size.toLong(), manifest.x.elements), allX),
            "y" to FloatTensor(longArrayOf(allLabels.size.toLong()), FloatArray(allLabels.size) { allLabels[it].toFloat() }),
        )
        file.write(SafeTensors.write(kept))
        x = allX
        labels = allLabels
    }

    /** All of them. @throws DataError there are none. */
    @Synchronized
    fun all(): Examples = Examples.classified(manifest, x, labels)
}
