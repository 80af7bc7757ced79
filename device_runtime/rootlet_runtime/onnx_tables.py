"""The fields of ONNX's messages (``onnx.proto3``) that a bundle's graphs may use.

What is left out is refused by :mod:`rootlet_runtime.wire`: local functions, training information,
sparse initialisers, subgraphs, strings as tensors, references to function attributes, overloads.
"""

from rootlet_runtime.wire import FIXED32, VARINT, Field, Table

# ONNX's data types (TensorProto.DataType) of the tensors that a manifest describes.
DATA_TYPES = {"float32": 1, "uint8": 2, "int64": 7}

# Bytes per element of the ONNX data types that a graph may store (TensorProto.DataType).
ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8}
INT4 = 22  # two to a byte, and an even number of them: the one type that has no whole bytes

MODEL: Table = {
    1: Field("ir_version", VARINT),
    2: Field("producer_name"),
    3: Field("producer_version"),
    4: Field("domain"),
    5: Field("model_version", VARINT),
    6: Field("doc_string"),
    7: Field("graph"),
    8: Field("opset_import", repeated=True),
    14: Field("metadata_props", repeated=True),
}
OPSET: Table = {1: Field("domain"), 2: Field("version", VARINT)}
GRAPH: Table = {
    1: Field("node", repeated=True),
    2: Field("name"),
    5: Field("initializer", repeated=True),
    10: Field("doc_string"),
    11: Field("input", repeated=True),
    12: Field("output", repeated=True),
    13: Field("value_info", repeated=True),
    16: Field("metadata_props", repeated=True),
}
NODE: Table = {
    1: Field("input", repeated=True),
    2: Field("output", repeated=True),
    3: Field("name"),
    4: Field("op_type"),
    5: Field("attribute", repeated=True),
    6: Field("doc_string"),
    7: Field("domain"),
    9: Field("metadata_props", repeated=True),
}
ATTRIBUTE: Table = {
    1: Field("name"),
    2: Field("f", FIXED32),
    3: Field("i", VARINT),
    4: Field("s"),
    5: Field("t"),
    7: Field("floats", FIXED32, repeated=True),
    8: Field("ints", VARINT, repeated=True),
    9: Field("strings", repeated=True),
    13: Field("doc_string"),
    20: Field("type", VARINT),
}
TENSOR: Table = {
    1: Field("dims", VARINT, repeated=True),
    2: Field("data_type", VARINT),
    4: Field("float_data", FIXED32, repeated=True),
    5: Field("int32_data", VARINT, repeated=True),
    7: Field("int64_data", VARINT, repeated=True),
    8: Field("name"),
    9: Field("raw_data"),
    12: Field("doc_string"),
    13: Field("external_data", repeated=True),
    14: Field("data_location", VARINT),
    16: Field("metadata_props", repeated=True),
}
ENTRY: Table = {1: Field("key"), 2: Field("value")}
TYPE: Table = {1: Field("tensor_type"), 6: Field("denotation")}
TENSOR_TYPE: Table = {1: Field("elem_type", VARINT), 2: Field("shape")}
SHAPE: Table = {1: Field("dim", repeated=True)}
DIMENSION: Table = {1: Field("dim_value", VARINT), 2: Field("dim_param"), 3: Field("denotation")}
VALUE: Table = {
    1: Field("name"),
    2: Field("type"),
    3: Field("doc_string"),
    4: Field("metadata_props", repeated=True),
}
