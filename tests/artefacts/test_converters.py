"""Every operator that has a converter of ours computes what it computes in ONNX Runtime, and passes a gradient back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.artefacts.onnx.twins import build_twin
from service.errors import CatalogError

TOLERANCE = 1e-4
NEWEST = 21
ML, MICROSOFT = "ai.onnx.ml", "com.microsoft"
TABLE, SEQUENCE, IMAGE = (6,), (3, 6), (4, 6, 6)
Array = NDArray[Any]


def normal(*shape: int) -> Array:
    """Constants of a layer."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def whole(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Case:
    """A graph of one operator: its first input are the rows, the others constants, and its last output is the end."""

    operator: str
    shape: tuple[int, ...] = TABLE
    constants: Sequence[Array | np.generic | None] = ()
    options: dict[str, Any] = field(default_factory=dict)
    opset: int = NEWEST
    domain: str = ""
    outputs: Sequence[str] = ("logits",)

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in self.options.items() if np.size(value) < 5)
        return f"{self.operator}-{self.opset}({options})"

    def model(self) -> onnx.ModelProto:
        """The graph, which takes rows named `rows`."""
        names = [f"constant {at}" if value is not None else "" for at, value in enumerate(self.constants)]
        node = helper.make_node(self.operator, ["rows", *names], self.outputs, domain=self.domain, **self.options)
        known = {name: np.asarray(value) for name, value in zip(names, self.constants, strict=True) if name}
        given = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["count", *self.shape])
        ends = [given], [helper.make_empty_tensor_value_info("logits")]
        constants = [numpy_helper.from_array(value, name) for name, value in known.items()]
        graph = helper.make_graph([node], "graph", *ends, constants)
        versions = {"": self.opset, ML: 3, MICROSOFT: 1}
        imports = [helper.make_opsetid(*version) for version in versions.items()]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


def assert_twin(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """For one row and for several, with a gradient for them."""
    twin = build_twin(model, "rows", "logits")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        rows = torch.from_numpy(2 * normal(count, *shape)).requires_grad_()
        answers = twin(rows)
        (expected,) = session.run(["logits"], {"rows": rows.detach().numpy()})
        np.testing.assert_allclose(answers.detach().numpy(), expected, rtol=TOLERANCE, atol=TOLERANCE)
        (gradient,) = torch.autograd.grad((answers * answers).sum(), rows)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0
    assert not [name for name, module in twin.named_modules() if name and "onnx2torch" in type(module).__module__]


CHANNELS = normal(4)
ACTIVATIONS = [
    *(Case(operator) for operator in ("Elu", "Celu", "Softplus", "Softsign", "Mish", "HardSwish", "Gelu", "Erf")),
    *(Case(operator, opset=22) for operator in ("Elu", "Softplus", "Mish", "HardSwish", "HardSigmoid", "Selu", "Sin")),
    *(Case(operator) for operator in ("Sinh", "Cosh", "Asinh", "Softmax", "LogSoftmax", "Identity")),
    *(Case(operator, opset=11) for operator in ("Softmax", "LogSoftmax", "LeakyRelu", "Selu", "Elu")),
    *(Case("Softmax", SEQUENCE, opset=11, options={"axis": axis}) for axis in (1, 2)),
    Case("Gelu", options={"approximate": "tanh"}),
    Case("Elu", options={"alpha": 0.3}),
    Case("LeakyRelu", options={"alpha": 0.3}),
    Case("HardSigmoid", options={"alpha": 0.3, "beta": 0.4}),
    Case("ThresholdedRelu", options={"alpha": 0.5}),
    Case("Swish", opset=24, options={"alpha": 0.5}),
    Case("Clip", constants=[np.float32(-0.5), np.float32(0.7)]),
    Case("Clip", constants=[None, np.float32(0.7)]),
    Case("Clip", constants=[np.float32(0.0)]),
    Case("Clip", constants=[np.float32(0.0), np.float32(6.0)]),
    Case("Clip", options={"min": -0.5, "max": 0.7}, opset=6),
    Case("PRelu", constants=[normal(6)]),
    Case("PRelu", IMAGE, [normal(4, 1, 1)]),
    Case("PRelu", IMAGE, [normal(6)]),
    Case("PRelu", IMAGE, [normal(1)]),
    Case("Dropout", outputs=("logits", "mask")),
    Case("Gelu", domain=MICROSOFT),
    Case("BiasGelu", constants=[normal(6)], domain=MICROSOFT),
    Case("FastGelu", constants=[normal(6)], domain=MICROSOFT),
    Case("QuickGelu", options={"alpha": 1.5}, domain=MICROSOFT),
    Case("Shrink", options={"lambd": 0.5, "bias": 0.5}),
    Case("Shrink", options={"lambd": 0.3}),
]
ARITHMETIC = [
    *(Case(operator, constants=[normal(6)]) for operator in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Mean")),
    *(Case(operator, constants=[normal(6), normal(1, 6)]) for operator in ("Min", "Max", "Sum", "Mean")),
    Case("Pow", constants=[np.float32(3.0)]),
    Case("Mod", constants=[np.float32(0.7)], options={"fmod": 1}),
    Case("Cast", options={"to": TensorProto.DOUBLE}),
    Case("CastLike", constants=[np.zeros(1)]),
    Case("MatMul", SEQUENCE, [normal(6, 2)]),
    Case("Gemm", constants=[normal(2, 6), normal(2)], options={"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", constants=[normal(6, 2), normal(1, 2)]),
    Case("Einsum", SEQUENCE, [normal(2, 6)], {"equation": "btd,kd->bkt"}),
    Case("FusedMatMul", SEQUENCE, [normal(2, 6)], {"transB": 1, "alpha": 0.5}, domain=MICROSOFT),
    Case("CumSum", SEQUENCE, [np.int64(2)]),
    Case("CumSum", SEQUENCE, [np.int64(1)], {"exclusive": 1, "reverse": 1}),
    Case("Trilu", SEQUENCE, [np.int64(1)]),
    Case("Trilu", SEQUENCE, options={"upper": 0}),
]
NORMALISATIONS = [
    Case("LayerNormalization", SEQUENCE, [normal(6), normal(6)]),
    Case("LayerNormalization", SEQUENCE, [normal(3, 6)], {"axis": 1}, outputs=("logits", "mean", "deviation")),
    Case("RMSNormalization", SEQUENCE, [normal(6)], opset=23),
    Case("MeanVarianceNormalization", IMAGE, options={"axes": [2, 3]}),
    Case("LpNormalization", SEQUENCE, options={"p": 1}),
    Case("BatchNormalization", IMAGE, [CHANNELS, CHANNELS, CHANNELS, abs(CHANNELS)]),
    Case("BatchNormalization", constants=[normal(6), normal(6), normal(6), abs(normal(6))]),
    Case("InstanceNormalization", IMAGE, [CHANNELS, CHANNELS]),
    Case("InstanceNormalization", IMAGE, [CHANNELS, CHANNELS], opset=22),
    Case("GroupNormalization", IMAGE, [CHANNELS, CHANNELS], {"num_groups": 2}),
]
REDUCTIONS = [
    *(
        Case(f"Reduce{name}", SEQUENCE, options={"axes": [2], "keepdims": 0}, opset=11)
        for name in ("Max", "Min", "Mean", "Sum", "Prod", "L1", "L2", "LogSumExp", "SumSquare")
    ),
    *(
        Case(f"Reduce{name}", SEQUENCE, [whole(1, -1)], opset=20)
        for name in ("Max", "Min", "Mean", "Sum", "Prod", "L1", "L2", "LogSumExp", "SumSquare")
    ),
    Case("ReduceSum", constants=[whole()], options={"noop_with_empty_axes": 1}),
    Case("ReduceMax", SEQUENCE, options={"axes": [1, 2]}, opset=13),
]
LAYOUTS = [
    Case("Reshape", SEQUENCE, [whole(0, -1)]),
    Case("Flatten", SEQUENCE),
    Case("Expand", (1, 6), [whole(1, 3, 1)]),
    Case("Transpose", SEQUENCE, options={"perm": [0, 2, 1]}),
    Case("Squeeze", (1, 6), [whole(1)]),
    Case("Squeeze", (1, 6), options={"axes": [1]}, opset=11),
    Case("Unsqueeze", constants=[whole(1, -1)]),
    Case("Unsqueeze", options={"axes": [1, 3]}, opset=11),
    Case("Slice", SEQUENCE, [whole(0, 1), whole(2**63 - 1, 5), whole(0, 2), whole(1, 2)]),
    Case("Slice", SEQUENCE, [whole(-1), whole(-(2**63)), whole(2), whole(-2)]),
    Case("Slice", SEQUENCE, options={"starts": [1], "ends": [1000], "axes": [2]}, opset=9),
    Case("Split", SEQUENCE, [whole(2, 1, 3)], {"axis": 2}, outputs=("first", "second", "logits")),
    Case("Split", SEQUENCE, options={"axis": 2, "num_outputs": 4}, outputs=("logits", "b", "c", "d")),
    Case("Split", SEQUENCE, options={"axis": 2}, opset=13, outputs=("first", "logits")),
    Case("Gather", SEQUENCE, [np.int64(-1)], {"axis": 1}),
    Case("Gather", SEQUENCE, [whole(2, 0, -1)], {"axis": 2}),
    Case("Gather", SEQUENCE, [whole(2, 0, 1, 1).reshape(2, 2)], {"axis": 1}),
    Case("Tile", SEQUENCE, [whole(1, 2, 2)]),
    Case("TopK", constants=[whole(2)], outputs=("logits", "places")),
    Case("TopK", options={"k": 2}, opset=9, outputs=("logits", "places")),
    Case("DepthToSpace", IMAGE, options={"blocksize": 2}),
    Case("DepthToSpace", IMAGE, options={"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", IMAGE, options={"blocksize": 3}),
]
KERNEL = {"kernel_shape": [3, 3]}
SAME = {**KERNEL, "strides": [2, 2], "auto_pad": "SAME_LOWER"}
SCALES = np.array([1, 1, 1.5, 0.5], dtype=np.float32)
WINDOWS = [
    *(Case(operator, IMAGE, opset=opset) for operator in ("GlobalMaxPool", "GlobalAveragePool") for opset in (21, 22)),
    *(Case(operator, IMAGE, options=SAME, opset=22) for operator in ("MaxPool", "AveragePool")),
    *(Case("AveragePool", IMAGE, options={**KERNEL, "pads": pads}) for pads in ([1, 1, 1, 1], [0, 1, 1, 2])),
    Case("AveragePool", IMAGE, options={**KERNEL, "pads": [0, 1, 1, 2], "count_include_pad": 1}),
    Case("MaxPool", IMAGE, options={**KERNEL, "pads": [0, 1, 1, 2]}, outputs=("logits", "places")),
    Case("MaxPool", (2, 9), options={"kernel_shape": [2], "strides": [2], "ceil_mode": 1}),
    Case("Conv", IMAGE, [normal(2, 4, 3, 3), normal(2)], SAME, opset=22),
    Case("Conv", IMAGE, [normal(4, 2, 3, 3)], {"group": 2, "pads": [0, 1, 1, 2]}),
    Case("ConvTranspose", IMAGE, [normal(4, 2, 3, 3)], {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
    Case("ConvTranspose", IMAGE, [normal(4, 1, 3, 3), normal(2)], {"group": 2, "pads": [1, 1, 1, 1]}, opset=22),
    Case("ConvTranspose", IMAGE, [normal(4, 2, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    *(Case("Pad", IMAGE, [whole(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": mode}) for mode in ("constant", "reflect", "edge")),
    Case("Pad", IMAGE, [whole(1, 2), np.float32(0.5), whole(-1)]),
    Case("Pad", IMAGE, options={"pads": [0, 0, 1, 2, 0, 0, 2, 1], "value": 0.5}, opset=2),
    *(
        Case("Resize", IMAGE, [None, SCALES], {"coordinate_transformation_mode": where, "mode": mode})
        for where in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
        for mode in ("nearest", "linear")
    ),
    *(Case("Resize", IMAGE, [None, SCALES], {"nearest_mode": mode}) for mode in ("floor", "ceil", "round_prefer_ceil")),
    Case("Resize", IMAGE, [SCALES], opset=10),
    Case("Upsample", IMAGE, [np.array([1, 1, 2, 2], dtype=np.float32)], opset=9),
]
TABLES = [
    Case("Scaler", options={"offset": normal(6).tolist(), "scale": normal(6).tolist()}, domain=ML),
    Case("Scaler", options={"offset": [0.5], "scale": [2.0]}, domain=ML),
    Case("Imputer", options={"imputed_value_floats": [0.5], "replaced_value_float": float("nan")}, domain=ML),
    *(Case("Normalizer", options={"norm": norm}, domain=ML) for norm in ("MAX", "L1", "L2")),
    Case("ArrayFeatureExtractor", constants=[whole(4, 1)], domain=ML),
    Case("FeatureVectorizer", options={"inputdimensions": [6]}, domain=ML),
    Case("LinearRegressor", options={"coefficients": normal(12).tolist(), "targets": 2}, domain=ML),
]
MORE = [
    Case("GlobalLpPool", IMAGE),
    Case("GlobalLpPool", IMAGE, options={"p": 3}),
    Case("LpPool", IMAGE, options={"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    Case("ScatterElements", SEQUENCE, [whole(0, 2, 1, 0, 1, 1).reshape(1, 1, 6), normal(1, 1, 6)], {"axis": 1}),
    Case("Compress", SEQUENCE, [np.array([True, False, True])], {"axis": 1}),
    Case("ThresholdedRelu"),
    Case("CenterCropPad", IMAGE, [whole(4, 8)], {"axes": [2, 3]}),
    Case("Gelu", SEQUENCE, opset=20),
    Case("GroupNormalization", IMAGE, [normal(4), normal(4)], {"num_groups": 2}, opset=21),
    Case("LayerNormalization", SEQUENCE, [normal(6), normal(6)], opset=17),
    Case("Resize", IMAGE, [None, SCALES], {"mode": "cubic"}),
    Case("Resize", IMAGE, [None, SCALES], {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5}),
    Case("Resize", IMAGE, [None, np.array([1, 1, 0.5, 0.4], dtype=np.float32)], {"mode": "linear", "antialias": 1}),
    Case("Resize", IMAGE, [None, None, whole(5, 9)], {"mode": "linear", "axes": [2, 3]}, opset=18),
]
OF_ONNX_RUNTIME = [
    Case("FastGelu", SEQUENCE, [normal(6)], domain=MICROSOFT),
    Case("Trilu", (3, 3), domain=MICROSOFT),
    Case(
        "FusedGemm",
        TABLE,
        [normal(6, 3), normal(3)],
        {"activation": "LeakyRelu", "activation_alpha": 0.1},
        21,
        MICROSOFT,
    ),
    *(
        Case("FusedConv", IMAGE, [normal(2, 4, 3, 3), normal(2)], {"kernel_shape": [3, 3], **options}, 21, MICROSOFT)
        for options in ({"activation": "Relu"}, {"activation": "Clip", "activation_params": [-1.0, 2.0]})
    ),
    *(
        Case("Attention", SEQUENCE, [normal(6, 18), normal(18)], {"num_heads": 2, **options}, 21, MICROSOFT)
        for options in ({}, {"unidirectional": 1}, {"scale": 0.3})
    ),
]
OLD = [
    Case("Gemm", constants=[normal(6, 3), normal(3)], opset=7),
    Case("Gemm", constants=[normal(2, 6), normal(1, 2)], options={"transB": 1, "alpha": 0.5, "beta": 2.0}, opset=8),
    Case("BatchNormalization", IMAGE, [normal(4), normal(4), normal(4), np.abs(normal(4))], opset=7),
    Case("BatchNormalization", TABLE, [normal(6), normal(6), normal(6), np.abs(normal(6))], opset=8),
    Case("BatchNormalization", IMAGE, [normal(4), normal(4), normal(4), np.abs(normal(4))], opset=14),
    Case("Dropout", options={"ratio": 0.5}, opset=7),
    Case("Dropout", constants=[np.float32(0.5), np.bool_(False)]),
    Case("Dropout", constants=[np.float32(0.0), np.bool_(True)]),
    Case("Softmax", IMAGE, options={"axis": 1}, opset=7),  # over all that follows, as it was then
    Case("LogSoftmax", IMAGE, options={"axis": 2}, opset=8),
    Case("Upsample", IMAGE, options={"scales": [1.0, 1.0, 2.0, 2.0], "mode": "nearest"}, opset=7),
    Case("Upsample", IMAGE, options={"scales": [1.0, 1.0, 2.0, 2.0], "mode": "linear"}, opset=8),
    Case("Slice", IMAGE, options={"starts": [1], "ends": [3], "axes": [1]}, opset=7),
    Case("Pad", IMAGE, options={"pads": [0, 0, 1, 1, 0, 0, 1, 1]}, opset=7),
    Case("TopK", TABLE, options={"k": 2}, opset=7, outputs=("logits", "places")),
]
"""Of versions that current exporters no longer write."""
CASES = [
    *OLD,
    *ACTIVATIONS,
    *ARITHMETIC,
    *NORMALISATIONS,
    *REDUCTIONS,
    *LAYOUTS,
    *WINDOWS,
    *TABLES,
    *MORE,
    *OF_ONNX_RUNTIME,
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_computes_what_it_computes_in_the_artefact(case: Case) -> None:
    assert_twin(case.model(), case.shape)


def parsed(body: str, shape: str = "count, 3, 6", element_type: str = "float", others: str = "") -> onnx.ModelProto:
    """A graph in ONNX's own notation, from `rows` to `logits`. It may ask for the number of rows."""
    count = """
        shape = Shape (rows)
        zero = Constant <value_ints = [0]> ()
        count = Gather (shape, zero)
    """
    versions = '"" : 21, "ai.onnx.ml" : 3, "com.microsoft" : 1'
    ends = f"({element_type}[{shape}] rows{others}) => (float[count, all] logits)"
    return onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{versions}]> graph {ends} {{ {count} {body} }}")


CHAINS = {
    "rows in the second dimension": """
        turned = Transpose <perm = [1, 0, 2]> (rows)
        logits = ReduceMean <keepdims = 0> (turned, zero)
    """,
    "rows flattened and taken apart again": """
        flat = Flatten <axis = 2> (rows)
        row = Constant <value_ints = [3, 6]> ()
        target = Concat <axis = 0> (count, row)
        logits = Reshape (flat, target)
    """,
    "a constant for each row": """
        row = Constant <value_ints = [1, 6]> ()
        target = Concat <axis = 0> (count, row)
        token = ConstantOfShape <value = float[1] {0.5}> (target)
        logits = Concat <axis = 1> (token, rows)
    """,
    "constants for each row's two halves": """
        one = Constant <value_ints = [1]> ()
        times = Concat <axis = 0> (count, one)
        mask = Constant <value = float[2, 9] {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0}> ()
        masks = Tile (mask, times)
        halves = Constant <value_ints = [-1, 9]> ()
        cut = Reshape (rows, halves)
        masked = Add (cut, masks)
        logits = Reshape (masked, shape)
    """,
    "a branch that the shape decides": """
        one = Constant <value_int = 1> ()
        three = Constant <value_int = 3> ()
        width = Gather (shape, one)
        is_three = Equal (width, three)
        logits = If (is_three) <
            then_branch = yes () => (float[count, 3, 6] answer) { inner = Sin (rows) answer = Mul (inner, rows) },
            else_branch = no () => (float[count, 3, 6] answer) { answer = Cos (rows) }
        >
    """,
    "sizes with the number of rows": """
        nothing = Constant <value_floats = [0.0]> ()
        none = Constant <value = float[0] {}> ()
        size = Constant <value_ints = [4, 9]> ()
        target = Concat <axis = 0> (count, size)
        logits = Resize <mode = "linear"> (rows, none, none, target)
    """,
    "a skipped normalisation": """
        scale = Constant <value_floats = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]> ()
        other = Sin (rows)
        normed, mean, deviation, sum = com.microsoft.SkipLayerNormalization (rows, other, scale, scale, scale)
        logits = Add (normed, sum)
    """,
    "a normalisation whose mean and deviation are used": """
        scale = Constant <value_floats = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]> ()
        normed, mean, deviation = LayerNormalization (rows, scale)
        product = Mul (normed, deviation)
        logits = Add (product, mean)
    """,
    "elements gathered in each row": """
        one = Constant <value_ints = [1]> ()
        times = Concat <axis = 0> (count, one, one)
        places = Constant <value = int64[1, 2, 6] {0, 1, 2, 2, 1, 0, 1, 1, 1, 0, 0, 2}> ()
        all = Tile (places, times)
        logits = GatherElements <axis = 1> (rows, all)
    """,
    "elements gathered by places in two dimensions": """
        turned = Transpose <perm = [1, 2, 0]> (rows)
        places = Constant <value = int64[2, 2] {0, 5, 2, 1}> ()
        gathered = GatherND (turned, places)
        logits = Transpose (gathered)
    """,
    "samples at places that the rows themselves say": """
        cells = Constant <value_ints = [-1, 1, 3, 6]> ()
        pairs = Constant <value_ints = [-1, 3, 3, 2]> ()
        image = Reshape (rows, cells)
        places = Reshape (rows, pairs)
        grid = Tanh (places)
        near = GridSample <mode = "linear", padding_mode = "border"> (image, grid)
        far = GridSample <mode = "cubic", align_corners = 1> (image, grid)
        logits = Add (near, far)
    """,
    "places of each row replaced": """
        zeros = Constant <value = int64[1, 2, 1] {0, 0}> ()
        one = Constant <value_ints = [1]> ()
        none = Constant <value_int = 0> ()
        step = Constant <value_int = 1> ()
        number = Gather (shape, none)
        numbers = Range (none, number, step)
        two = Constant <value_ints = [-1, 1, 1]> ()
        column = Reshape (numbers, two)
        pair = Constant <value_ints = [2]> ()
        times = Concat <axis = 0> (count, pair, one)
        own = Expand (column, times)
        places = Constant <value = int64[1, 2, 1] {2, 0}> ()
        others = Expand (places, times)
        index = Concat <axis = 2> (own, others)
        updates = Sin (rows)
        last = Constant <value_ints = [2]> ()
        axis = Constant <value_ints = [1]> ()
        taken = Slice (updates, zero, last, axis)
        replaced = ScatterND (rows, index, taken)
        logits = ScatterND <reduction = "add"> (replaced, index, taken)
    """,
    "attention with a mask, of queries and keys apart": """
        ones = Constant <value = int32[1, 3] {1, 1, 0}> ()
        one = Constant <value_ints = [1]> ()
        times = Concat <axis = 0> (count, one)
        mask = Tile (ones, times)
        other = Sin (rows)
        bias = Constant <value = float[18] {1, 2, 3, 4, 5, 6, 6, 5, 4, 3, 2, 1, 1, 2, 3, 3, 2, 1}> ()
        logits = com.microsoft.MultiHeadAttention <num_heads = 2> (rows, other, rows, bias, mask)
    """,
    "places turned, in ONNX Runtime's form": """
        cosines = Constant <value = float[4, 3] {1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, -0.1}> ()
        sines = Constant <value = float[4, 3] {0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 0.9}> ()
        logits = com.microsoft.RotaryEmbedding (rows, zero, cosines, sines)
    """,
    "places turned, in ONNX Runtime's form, pair by pair": """
        cosines = Constant <value = float[4, 3] {1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, -0.1}> ()
        sines = Constant <value = float[4, 3] {0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 0.9}> ()
        logits = com.microsoft.RotaryEmbedding <interleaved = 1> (rows, zero, cosines, sines)
    """,
    "a skipped normalisation by the root mean square": """
        scale = Constant <value_floats = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]> ()
        other = Sin (rows)
        normed, mean, deviation, sum = com.microsoft.SkipSimplifiedLayerNormalization (rows, other, scale)
        logits = Add (normed, sum)
    """,
    "a determinant": """
        three = Constant <value_ints = [3]> ()
        one = Constant <value_ints = [1]> ()
        two = Constant <value_ints = [2]> ()
        square = Slice (rows, zero, three, two)
        volume = Det (square)
        logits = Unsqueeze (volume, one)
    """,
    "functions of positive numbers": """
        one = Constant <value_float = 1.1> ()
        last = Constant <value_ints = [2]> ()
        positive = Abs (rows)
        larger = Add (positive, one)
        roots = Acosh (larger)
        logits = ReduceLogSum (roots, last)
    """,
    "functions of small numbers": """
        half = Constant <value_float = 0.5> ()
        wave = Cos (rows)
        small = Mul (wave, half)
        a = Acos (small)
        b = Asin (small)
        c = Atan (small)
        d = Atanh (small)
        e = Tan (small)
        f = Round (rows)
        sums = Sum (a, b, c, d, e, f)
        is_none = IsNaN (sums)
        is_large = IsInf (sums)
        is_strange = Or (is_none, is_large)
        is_more = GreaterOrEqual (sums, half)
        chosen = Where (is_more, sums, small)
        logits = Where (is_strange, half, chosen)
    """,
    "random training, switched off": """
        dropped, mask = Dropout (rows)
        positive = Abs (dropped)
        roots = Sqrt (positive)
        logits = Where (mask, roots, dropped)
    """,
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_exporters_write_around_a_network_is_worked_out(name: str) -> None:
    assert_twin(parsed(CHAINS[name]), SEQUENCE)


ROWS_TOGETHER = "takes rows together or apart"
REFUSED = {
    "logits = ArgMax <axis = 1> (rows)": r"ArgMax \('logits'\) cannot be differentiated: the place of an element",
    "two = Constant <value_ints = [2]> () best, logits = TopK (rows, two)": "TopK .* the place of an element",
    "scale = ReduceMax <keepdims = 0> (rows) q = QuantizeLinear (rows, scale) logits = DequantizeLinear (q, scale)": (
        ROWS_TOGETHER
    ),
    "logits = ImageDecoder (rows)": "ImageDecoder .* has no counterpart in torch",
    "noise = RandomNormalLike (rows) logits = Add (rows, noise)": "RandomNormalLike .* random",
    "on = Constant <value = bool {1}> () logits = Dropout (rows, , on)": "Dropout .* in training, where",
    "s = Constant <value_floats = [0.1, 0.2, 0.3]> () logits, mean, variance = BatchNormalization <training_mode = 1>"
    " (rows, s, s, s, s)": "BatchNormalization .* in training, where",
    "logits = ReduceSum <keepdims = 1> (rows, zero)": "the first dimension of 'logits' is not that of the rows",
    "sum = ReduceSum <keepdims = 1> (rows, zero) logits = Sub (rows, sum)": ROWS_TOGETHER,
    "first = Gather (rows, zero) logits = Sub (rows, first)": ROWS_TOGETHER,
    "one = Constant <value_ints = [1]> () first = Slice (rows, zero, one) logits = Add (rows, first)": ROWS_TOGETHER,
    "flat = Constant <value_ints = [-1, 6]> () logits = Reshape (rows, flat)": "2 rows have logits of the shape",
    "float = Cast <to = 1> (count) logits = Div (rows, float)": "'float' depends on how many rows there are",
    "half = Constant <value_float = 0.5> () step = Greater (rows, half) logits = Cast <to = 1> (step)": "no gradient",
    "sum = ReduceMax <keepdims = 0> (rows) zeros = Cast <to = 9> (sum) logits = If (zeros) <"
    " then_branch = yes () => (float[count, 3, 6] answer) { answer = Sin (rows) },"
    " else_branch = no () => (float[count, 3, 6] answer) { answer = Cos (rows) }>": "If .* the input's values",
    "turns = Constant <value_int = 2> () yes = Constant <value = bool {1}> () logits = Loop (turns, yes, rows) <"
    " body = turn (int64 at, bool on, float[count, 3, 6] given) => (bool again, float[count, 3, 6] answer)"
    " { again = Identity (on) answer = Sin (given) }>": "Loop .* not unrolled",
}


@pytest.mark.parametrize("body", REFUSED)
def test_what_has_no_gradient_or_mixes_the_rows_is_refused_with_the_reason(body: str) -> None:
    with pytest.raises(CatalogError, match=REFUSED[body]):
        build_twin(parsed(body), "rows", "logits")


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_branch_that_comes_with_the_graph_is_the_one_that_is_taken(is_first: bool, shape: tuple[int, ...]) -> None:
    body = """logits = If (given) <
        then_branch = yes () => (float[count, 3, 6] answer) { answer = Sin (rows) },
        else_branch = no () => (float[count, 3, 6] answer) { answer = Cos (rows) }
    >"""
    model = parsed(body)
    model.graph.initializer.append(numpy_helper.from_array(np.full(shape, is_first), "given"))
    assert_twin(model, SEQUENCE)


def test_a_normalisation_that_answers_the_rows_mean_is_in_training() -> None:
    """As versions before 14 say it: there was no attribute."""
    constants = [normal(6), normal(6), normal(6), np.abs(normal(6))]
    case = Case("BatchNormalization", TABLE, constants, opset=9, outputs=("logits", "a", "b", "c", "d"))
    with pytest.raises(CatalogError, match="in training"):
        build_twin(case.model(), "rows", "logits")
    each = Case("BatchNormalization", TABLE, constants, {"spatial": 0}, opset=7)
    with pytest.raises(CatalogError, match="spatial = 0"):
        build_twin(each.model(), "rows", "logits")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (parsed("logits = Sin (rows)", shape="1, 3, 6"), "takes 1 rows at a time"),
        (parsed("logits = Sin (rows)", shape="count, 3, length"), "dimension 2 of 'rows' has no fixed size"),
        (parsed("logits = Add (rows, more)", others=", float[count, 3, 6] more"), "its inputs are: rows, more"),
        (parsed("tables = Sin (rows)"), "the graph computes no tensor 'logits'"),
        (parsed("logits = Cast <to = 1> (rows)", element_type="int64"), "integers, which have no gradient"),
    ],
)
def test_a_graph_that_answers_no_rows_of_numbers_is_refused(model: onnx.ModelProto, reason: str) -> None:
    with pytest.raises(CatalogError, match=reason):
        build_twin(model, "rows", "logits")


def test_a_size_that_the_graph_leaves_open_is_the_manifests() -> None:
    model = parsed("logits = Softmax (rows)", shape="count, 3, length")
    assert build_twin(model, "rows", "logits", SEQUENCE)(torch.zeros(2, *SEQUENCE)).shape == (2, *SEQUENCE)


def test_logits_that_depend_on_the_tokens_besides_their_embedding_are_refused() -> None:
    """A mask for the padding, for instance: it is no function of what the twin is given."""
    body = """
        table = Constant <value_floats = [0.0, 1.0, 2.0]> ()
        embedded = Gather (table, rows)
        none = Constant <value_int = 0> ()
        padding = Equal (rows, none)
        mask = Cast <to = 1> (padding)
        logits = Sub (embedded, mask)
    """
    with pytest.raises(CatalogError, match="depends on 'rows' by another way than through 'embedded'"):
        build_twin(parsed(body, element_type="int64"), "embedded", "logits")


def test_a_lookup_by_the_inputs_values_is_refused() -> None:
    body = "table = Constant <value_floats = [0.0, 1.0]> () place = Cast <to = 7> (rows) logits = Gather (table, place)"
    with pytest.raises(CatalogError, match=r"Gather .* explain what it gives"):
        build_twin(parsed(body), "rows", "logits")


def test_attention_and_turned_places_are_what_onnx_defines() -> None:
    """Both are functions of other operators."""
    body = """
        cosines = Constant <value = float[1, 3, 2] {1, 0.9, 0.8, 0.7, 0.6, 0.5}> ()
        sines = Constant <value = float[1, 3, 2] {0, 0.1, 0.2, 0.3, 0.4, 0.5}> ()
        one = Constant <value_ints = [1]> ()
        times = Concat <axis = 0> (count, one, one)
        own_cosines = Tile (cosines, times)
        own_sines = Tile (sines, times)
        turned = RotaryEmbedding (rows, own_cosines, own_sines)
        logits = Attention <is_causal = 1> (turned, turned, rows)
    """
    model = parsed(body, shape="count, 2, 3, 4")
    model.opset_import[0].version = 23
    assert_twin(model, (2, 3, 4))


@pytest.mark.parametrize("case", [*MORE, *OF_ONNX_RUNTIME], ids=str)
def test_the_gradient_of_an_operator_is_that_of_finite_differences(case: Case) -> None:
    """Central ones, of the file's own answers in ONNX Runtime."""
    model = case.model()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    row = 2 * np.random.default_rng(1).standard_normal((1, *case.shape)).astype(np.float32)
    tensor = torch.from_numpy(row).requires_grad_()
    answers = build_twin(model, "rows", "logits")(tensor)
    weights = np.random.default_rng(2).standard_normal(tuple(answers.shape))
    (gradient,) = torch.autograd.grad((answers * torch.from_numpy(weights)).sum(), tensor)
    step = 1e-2
    for at in np.random.default_rng(3).choice(row.size, 6, replace=False):
        ends = []
        for sign in (1, -1):
            moved = row.copy()
            moved.flat[at] += sign * step
            ends.append(float((session.run(["logits"], {"rows": moved})[0].astype(np.float64) * weights).sum()))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float(gradient.flatten()[at]) == pytest.approx(slope, rel=0.02, abs=0.02 * float(gradient.abs().max()))
