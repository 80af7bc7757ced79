package org.rootlet.bundle

import org.rootlet.wire.Field
import org.rootlet.wire.Table
import org.rootlet.wire.WireType.FIXED32
import org.rootlet.wire.WireType.VARINT

/**
 * The fields of ONNX's messages (`onnx.proto3`) that a bundle's graphs may use. What is left out is
 * refused: local functions, training information, sparse initialisers, subgraphs, strings as tensors.
 */
internal object OnnxTables {
    /** ONNX's data types (TensorProto.DataType) of the tensors that a manifest describes. */
    val DATA_TYPES = mapOf("float32" to 1L, "uint8" to 2L, "int64" to 7L)

    /** Bytes per element of the data types that a graph may store. */
    val ELEMENT_BYTES = mapOf(
        1L to 4, 2L to 1, 3L to 1, 4L to 2, 5L to 2, 6L to 4, 7L to 8, 9L to 1, 10L to 2, 11L to 8, 12L to 4, 13L to 8,
    )

    /** Two to a byte, and an even number of them: the one type that has no whole bytes. */
    const val INT4 = 22L

    val MODEL: Table = mapOf(
        1 to Field("ir_version", VARINT),
        2 to Field("producer_name"),
        3 to Field("producer_version"),
        4 to Field("domain"),
        5 to Field("model_version", VARINT),
        6 to Field("doc_string"),
        7 to Field("graph"),
        8 to Field("opset_import", repeated = true),
        14 to Field("metadata_props", repeated = true),
    )
    val OPSET: Table = mapOf(
        1 to Field("domain"),
        2 to Field("version", VARINT),
    )
    val GRAPH: Table = mapOf(
        1 to Field("node", repeated = true),
        2 to Field("name"),
        5 to Field("initializer", repeated = true),
        10 to Field("doc_string"),
        11 to Field("input", repeated = true),
        12 to Field("output", repeated = true),
        13 to Field("value_info", repeated = true),
        16 to Field("metadata_props", repeated = true),
    )
    val NODE: Table = mapOf(
        1 to Field("input", repeated = true),
        2 to Field("output", repeated = true),
        3 to Field("name"),
        4 to Field("op_type"),
        5 to Field("attribute", repeated = true),
        6 to Field("doc_string"),
        7 to Field("domain"),
        9 to Field("metadata_props", repeated = true),
    )
    val ATTRIBUTE: Table = mapOf(
        1 to Field("name"),
        2 to Field("f", FIXED32),
        3 to Field("i", VARINT),
        4 to Field("s"),
        5 to Field("t"),
        7 to Field("floats", FIXED32, repeated = true),
        8 to Field("ints", VARINT, repeated = true),
        9 to Field("strings", repeated = true),
        13 to Field("doc_string"),
        20 to Field("type", VARINT),
    )
    val TENSOR: Table = mapOf(
        1 to Field("dims", VARINT, repeated = true),
        2 to Field("data_type", VARINT),
        4 to Field("float_data", FIXED32, repeated = true),
        5 to Field("int32_data", VARINT, repeated = true),
        7 to Field("int64_data", VARINT, repeated = true),
        8 to Field("name"),
        9 to Field("raw_data"),
        12 to Field("doc_string"),
        13 to Field("external_data", repeated = true),
        14 to Field("data_location", VARINT),
        16 to Field("metadata_props", repeated = true),
    )
    val ENTRY: Table = mapOf(
        1 to Field("key"),
        2 to Field("value"),
    )
    val TYPE: Table = mapOf(
        1 to Field("tensor_type"),
        6 to Field("denotation"),
    )
    val TENSOR_TYPE: Table = mapOf(
        1 to Field("elem_type", VARINT),
        2 to Field("shape"),
    )
    val SHAPE: Table = mapOf(
        1 to Field("dim", repeated = true),
    )
    val DIMENSION: Table = mapOf(
        1 to Field("dim_value", VARINT),
        2 to Field("dim_param"),
        3 to Field("denotation"),
    )
    val VALUE: Table = mapOf(
        1 to Field("name"),
        2 to Field("type"),
        3 to Field("doc_string"),
        4 to Field("metadata_props", repeated = true),
    )
}
