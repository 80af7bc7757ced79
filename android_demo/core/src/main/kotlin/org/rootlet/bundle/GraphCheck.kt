package org.rootlet.bundle

import java.math.BigInteger
import java.nio.ByteBuffer
import org.rootlet.OperatorError
import org.rootlet.wire.FieldValue
import org.rootlet.wire.Protobuf
import org.rootlet.wire.Table
import org.rootlet.wire.WireError

/** A stored tensor that lies in `base.bin`; offset and length in bytes. */
class ExternalTensor(val name: String, val dataType: Long, val shape: List<Long>, val offset: Long, val length: Long)

/**
 * Walks a `ModelProto` before an engine sees it, and refuses what a bundle may not do: an operator
 * that is not listed, another domain, subgraphs, functions, a tensor outside `base.bin` or beyond its
 * bounds, inputs and outputs that are not the manifest's.
 */
internal class GraphCheck(
    private val spec: GraphSpec,
    private val inputs: Map<String, TensorSpec>,
    private val baseBytes: Long,
) {
    private val external = ArrayList<ExternalTensor>()
    private val ends = mapOf("input" to ArrayList<Pair<String, ByteBuffer>>(), "output" to ArrayList())

    /**
     * The tensors that lie in `base.bin`.
     *
     * @throws OperatorError malformed, or asking for something that a bundle may not do.
     */
    fun check(model: ByteBuffer): List<ExternalTensor> {
        try {
            checkGraph(checkModel(model))
        } catch (error: WireError) {
            throw OperatorError("${spec.file}: ${error.message}", error)
        } catch (error: OperatorError) {
            throw OperatorError("${spec.file}: ${error.message}", error)
        }
        return external
    }

    private fun checkModel(model: ByteBuffer): ByteBuffer {
        var graph: ByteBuffer? = null
        var irVersion = 0L
        var opset = 0L
        for (field in Protobuf.read(model, OnnxTables.MODEL, "model")) {
            when (field.name) {
                "graph" -> graph = field.bytes
                "ir_version" -> irVersion = field.number
                "opset_import" -> opset = maxOf(opset, opset(field.bytes))
            }
        }
        if (irVersion !in 8..13) refuse("IR version $irVersion; must lie in 8..13")
        if (opset !in 17..24) refuse("opset $opset; must lie in 17..24")
        return graph ?: refuse("holds no graph")
    }

    private fun opset(message: ByteBuffer): Long {
        val fields = fields(message, OnnxTables.OPSET, "opset_import")
        val domain = fields["domain"]?.let { Protobuf.text(it, "opset domain") } ?: ""
        if (domain !in DOMAINS) refuse("imports the operator domain '$domain'; only ONNX's own is allowed")
        return fields["version"]?.number ?: 0
    }

    private fun checkGraph(graph: ByteBuffer) {
        var nodes = 0
        for (field in Protobuf.read(graph, OnnxTables.GRAPH, "graph")) {
            when (field.name) {
                "node" -> {
                    nodes++
                    checkNode(field.bytes)
                }
                "initializer" -> checkTensor(field.bytes, baseBytes)?.let(external::add)
                "input", "output" -> ends.getValue(field.name).add(namedType(field.bytes, field.name))
            }
        }
        if (nodes > MAX_NODES) refuse("$nodes nodes; the limit is $MAX_NODES")
        for ((kind, declared) in listOf("input" to spec.inputs, "output" to spec.outputs)) {
            val found = ends.getValue(kind).map { it.first }
            if (found != declared) refuse("its ${kind}s are $found, but the manifest declares $declared")
        }
        for ((name, type) in ends.getValue("input")) checkType(name, type, inputs.getValue(name))
    }

    private fun namedType(message: ByteBuffer, kind: String): Pair<String, ByteBuffer> {
        val fields = fields(message, OnnxTables.VALUE, kind)
        val type = fields["type"]?.let { fields(it.bytes, OnnxTables.TYPE, kind)["tensor_type"] }
        return (fields["name"]?.let { Protobuf.text(it, kind) } ?: "") to (type?.bytes ?: EMPTY)
    }

    private fun checkType(name: String, type: ByteBuffer, declared: TensorSpec) {
        val fields = fields(type, OnnxTables.TENSOR_TYPE, name)
        val dataType = fields["elem_type"]?.number ?: 0
        val shape = Protobuf.read(fields["shape"]?.bytes ?: EMPTY, OnnxTables.SHAPE, name).map { dimension ->
            fields(dimension.bytes, OnnxTables.DIMENSION, name)["dim_value"]?.number
        }
        if (dataType != OnnxTables.DATA_TYPES[declared.dtype] || shape != declared.shape) {
            refuse(
                "its input '$name' has data type $dataType and shape $shape; the manifest declares " +
                    "${declared.dtype} ${declared.shape}",
            )
        }
    }

    private fun checkNode(node: ByteBuffer) {
        var operator = ""
        var domain = ""
        for (field in Protobuf.read(node, OnnxTables.NODE, "node")) {
            when (field.name) {
                "op_type" -> operator = Protobuf.text(field, field.name)
                "domain" -> domain = Protobuf.text(field, field.name)
                "attribute" -> checkAttribute(field.bytes)
            }
        }
        if (domain !in DOMAINS) refuse("$operator is of the domain '$domain'; only ONNX's own is allowed")
        if (operator !in ALLOWED_OPERATORS) refuse("the operator '$operator' is not on the allow-list")
    }

    private fun checkAttribute(attribute: ByteBuffer) {
        for (field in Protobuf.read(attribute, OnnxTables.ATTRIBUTE, "attribute")) {
            if (field.name == "t" && checkTensor(field.bytes, 0) != null) refuse("an attribute refers to external data")
        }
    }

    private fun checkTensor(tensor: ByteBuffer, baseBytes: Long): ExternalTensor? {
        var name = ""
        var dataType = 0L
        var location = 0L
        val shape = ArrayList<Long>()
        val entries = ArrayList<ByteBuffer>()
        for (field in Protobuf.read(tensor, OnnxTables.TENSOR, "tensor")) {
            when (field.name) {
                "name" -> name = Protobuf.text(field, field.name)
                "dims" -> shape.add(field.number)
                "data_type" -> dataType = field.number
                "data_location" -> location = field.number
                "external_data" -> entries.add(field.bytes)
            }
            if (shape.size > MAX_DIMENSIONS) refuse("the tensor '$name' has more than $MAX_DIMENSIONS dimensions")
        }
        val elements = shape.fold(BigInteger.ONE) { product, size -> product * BigInteger.valueOf(size) }
        val halves = dataType == OnnxTables.INT4 && !elements.testBit(0)
        val elementBytes = if (halves) 1 else OnnxTables.ELEMENT_BYTES[dataType]
        if (elementBytes == null || shape.any { it < 0 }) {
            refuse("the tensor '$name' has data type $dataType and shape $shape")
        }
        if (location == EXTERNAL) {
            val length = elements * BigInteger.valueOf(elementBytes.toLong()) / BigInteger.valueOf(if (halves) 2 else 1)
            val offset = checkLocation(name, entries, length, baseBytes)
            if (offset % elementBytes != 0L) refuse("the tensor '$name' lies at $offset, across an element's boundary")
            return ExternalTensor(name, dataType, shape, offset, length.toLong())
        }
        if (location != 0L || entries.isNotEmpty()) refuse("the tensor '$name' is both inline and external")
        return null
    }

    private fun checkLocation(name: String, entries: List<ByteBuffer>, length: BigInteger, baseBytes: Long): Long {
        val found = HashMap<String, String>()
        for (entry in entries) {
            val fields = fields(entry, OnnxTables.ENTRY, "external_data")
            val key = fields["key"]?.let { Protobuf.text(it, "external_data key") } ?: ""
            if (key in found || key !in EXTERNAL_KEYS) refuse("the tensor '$name' repeats or adds the external key '$key'")
            found[key] = fields["value"]?.let { Protobuf.text(it, key) } ?: ""
        }
        if (found["location"] != BASE_FILE) {
            refuse("the tensor '$name' lies in '${found["location"]}'; only '$BASE_FILE' is allowed")
        }
        val (offset, declared) = listOf("offset", "length").map { decimal(name, found[it]) }
        if (declared != length || offset + length > BigInteger.valueOf(baseBytes)) {
            refuse("the tensor '$name' needs $length bytes and declares $declared at offset $offset; $BASE_FILE has $baseBytes")
        }
        return offset.toLong()
    }

    private fun decimal(name: String, digits: String?): BigInteger {
        if (digits == null || !DIGITS.matches(digits)) refuse("the tensor '$name' has the offset or length '$digits'")
        return BigInteger(digits)
    }

    /** The last value of each field. */
    private fun fields(message: ByteBuffer, table: Table, kind: String): Map<String, FieldValue> =
        Protobuf.read(message, table, kind).associateBy { it.name }

    private fun refuse(message: String): Nothing = throw OperatorError(message)

    private companion object {
        const val EXTERNAL = 1L
        const val MAX_NODES = 100_000
        const val MAX_DIMENSIONS = 16
        val DOMAINS = setOf("", "ai.onnx")
        val EXTERNAL_KEYS = setOf("location", "offset", "length", "checksum")
        val DIGITS = Regex("[0-9]{1,19}")
        val EMPTY: ByteBuffer = ByteBuffer.allocate(0)
    }
}
