"""The fields of LiteRT's schema (``schema.fbs``, version 3) that a bundle's model may use.

What is left out is refused by :mod:`rootlet_runtime.flatbuffer`: custom operators' options, sparse
tensors, dynamic shapes, variables inside of a variant, metadata, buffers outside of the flatbuffer,
quantisation other than affine, and the options of StableHLO's operators.
"""

from rootlet_runtime.flatbuffer import (
    BOOL,
    BYTES,
    FLOAT32,
    FLOAT32S,
    INT8,
    INT32,
    INT32S,
    INT64S,
    TABLE,
    TABLES,
    TEXT,
    UINT8,
    UINT32,
    Field,
    Schema,
)

IDENTIFIER = b"TFL3"
VERSION = 3

MODEL: Schema = {
    0: Field("version", UINT32),
    1: Field("operator_codes", TABLES),
    2: Field("subgraphs", TABLES),
    3: Field("description", TEXT),
    4: Field("buffers", TABLES),
    7: Field("signature_defs", TABLES),
}
OPERATOR_CODE: Schema = {
    0: Field("deprecated_builtin_code", INT8),
    1: Field("custom_code", TEXT),
    2: Field("version", INT32),
    3: Field("builtin_code", INT32),
}
SUBGRAPH: Schema = {
    0: Field("tensors", TABLES),
    1: Field("inputs", INT32S),
    2: Field("outputs", INT32S),
    3: Field("operators", TABLES),
    4: Field("name", TEXT),
}
TENSOR: Schema = {
    0: Field("shape", INT32S),
    1: Field("type", INT8),
    2: Field("buffer", UINT32),
    3: Field("name", TEXT),
    4: Field("quantization", TABLE),
    8: Field("has_rank", BOOL),
}
QUANTIZATION: Schema = {
    2: Field("scale", FLOAT32S),
    3: Field("zero_point", INT64S),
    6: Field("quantized_dimension", INT32),
}
OPERATOR: Schema = {
    0: Field("opcode_index", UINT32),
    1: Field("inputs", INT32S),
    2: Field("outputs", INT32S),
    3: Field("builtin_options_type", UINT8),
    4: Field("builtin_options", TABLE),
}
BUFFER: Schema = {0: Field("data", BYTES)}
SIGNATURE: Schema = {
    0: Field("inputs", TABLES),
    1: Field("outputs", TABLES),
    2: Field("signature_key", TEXT),
    4: Field("subgraph_index", UINT32),
}
TENSOR_MAP: Schema = {0: Field("name", TEXT), 1: Field("tensor_index", UINT32)}

# TensorType: the manifest's name of it, and bytes per element.
FLOAT, INT_32, INT_64, INT_8 = 0, 2, 4, 9
ELEMENT_BYTES = {FLOAT: 4, INT_32: 4, 3: 1, INT_64: 8, 6: 1, INT_8: 1}
# What a signature takes for the manifest's data types: the converter makes int64 int32.
DATA_TYPES = {"float32": FLOAT, "int64": INT_32, "uint8": 3}

_KINDS = {"b": INT8, "?": BOOL, "i": INT32, "f": FLOAT32, "v": INT32S}


def _options(kinds: str) -> Schema:
    return {slot: Field(f"option {slot}", _KINDS[kind]) for slot, kind in enumerate(kinds)}


# BuiltinOptions: the fields of each kind of options that an operator below may carry. Names do not
# matter here: what an option means is for the runtime to check, where it lies is for us.
OPTIONS = {
    kind: _options(fields)
    for kind, fields in {
        1: "biibiib", 2: "biiibii", 5: "biiiib", 8: "bb??b", 9: "f", 10: "ib", 11: "b?", 17: "v",
        19: "i", 21: "b", 22: "", 23: "ii", 26: "", 27: "?", 28: "b?", 29: "b", 30: "v",
        32: "iiiii?", 33: "", 35: "i", 36: "", 37: "bb", 38: "", 39: "", 40: "b", 41: "", 42: "",
        43: "", 44: "", 45: "", 46: "", 47: "", 48: "", 49: "biibb", 51: "", 52: "", 53: "",
        54: "", 56: "", 57: "b", 59: "ii", 60: "", 61: "i", 62: "", 63: "", 64: "ii", 65: "",
        66: "", 67: "", 68: "", 72: "", 75: "f", 76: "", 77: "b", 78: "", 79: "i", 81: "",
        83: "", 84: "", 91: "", 94: "i", 98: "", 101: "???", 102: "??", 104: "", 116: "?",
        123: "",
    }.items()
}  # fmt: skip

# BuiltinOperator: the name of each operator that a bundle may use, and the kind of its options.
OPERATORS: dict[int, tuple[str, int]] = {
    0: ("ADD", 11), 1: ("AVERAGE_POOL_2D", 5), 2: ("CONCATENATION", 10), 3: ("CONV_2D", 1),
    4: ("DEPTHWISE_CONV_2D", 2), 5: ("DEPTH_TO_SPACE", 94), 6: ("DEQUANTIZE", 38),
    7: ("EMBEDDING_LOOKUP", 0), 8: ("FLOOR", 0), 9: ("FULLY_CONNECTED", 8), 14: ("LOGISTIC", 0),
    17: ("MAX_POOL_2D", 5), 18: ("MUL", 21), 19: ("RELU", 0), 20: ("RELU_N1_TO_1", 0),
    21: ("RELU6", 0), 22: ("RESHAPE", 17), 25: ("SOFTMAX", 9), 26: ("SPACE_TO_DEPTH", 19),
    28: ("TANH", 0), 34: ("PAD", 22), 36: ("GATHER", 23), 39: ("TRANSPOSE", 26), 40: ("MEAN", 27),
    41: ("SUB", 28), 42: ("DIV", 29), 43: ("SQUEEZE", 30), 45: ("STRIDED_SLICE", 32),
    47: ("EXP", 33), 49: ("SPLIT", 35), 50: ("LOG_SOFTMAX", 36), 53: ("CAST", 37),
    54: ("PRELU", 0), 55: ("MAXIMUM", 39), 56: ("ARG_MAX", 40), 57: ("MINIMUM", 39),
    58: ("LESS", 41), 59: ("NEG", 42), 60: ("PADV2", 43), 61: ("GREATER", 44),
    62: ("GREATER_EQUAL", 45), 63: ("LESS_EQUAL", 46), 64: ("SELECT", 47), 65: ("SLICE", 48),
    66: ("SIN", 0), 67: ("TRANSPOSE_CONV", 49), 69: ("TILE", 51), 70: ("EXPAND_DIMS", 52),
    71: ("EQUAL", 53), 72: ("NOT_EQUAL", 54), 73: ("LOG", 0), 74: ("SUM", 27), 75: ("SQRT", 0),
    76: ("RSQRT", 0), 78: ("POW", 56), 79: ("ARG_MIN", 57), 81: ("REDUCE_PROD", 27),
    82: ("REDUCE_MAX", 27), 83: ("PACK", 59), 84: ("LOGICAL_OR", 60), 85: ("ONE_HOT", 61),
    86: ("LOGICAL_AND", 62), 87: ("LOGICAL_NOT", 63), 88: ("UNPACK", 64), 89: ("REDUCE_MIN", 27),
    90: ("FLOOR_DIV", 65), 91: ("REDUCE_ANY", 27), 92: ("SQUARE", 66), 93: ("ZEROS_LIKE", 67),
    94: ("FILL", 68), 95: ("FLOOR_MOD", 72), 98: ("LEAKY_RELU", 75),
    99: ("SQUARED_DIFFERENCE", 76), 100: ("MIRROR_PAD", 77), 101: ("ABS", 78),
    102: ("SPLIT_V", 79), 104: ("CEIL", 0), 105: ("REVERSE_V2", 81), 107: ("GATHER_ND", 83),
    108: ("COS", 84), 111: ("ELU", 0), 116: ("ROUND", 0), 117: ("HARD_SWISH", 91),
    123: ("SELECT_V2", 98), 126: ("BATCH_MATMUL", 101), 128: ("CUMSUM", 102),
    130: ("BROADCAST_TO", 104), 140: ("REDUCE_ALL", 27), 150: ("GELU", 116),
    152: ("RELU_0_TO_1", 0), 158: ("SIGN", 123),
}  # fmt: skip
