"""FP32 ONNX → strongly typed FP16 ONNX: TensorRT 11 takes precision from the graph alone, and TensorRT 10 can.

FP16 is what takes the time: every convolution over a map, its weights, input and output, with explicit casts around it.
Everything else stays FP32, which costs no traffic where the casts are fused: biases, activations, gates and residual
sums, squeeze-and-excitation (it sets the gain of whole channels), the pooled features and what follows them, and the
novelty branch. So does the first convolution. Skin is smooth: a rounding of its colour, of a bias or of a filter's sum is
the same over the whole image and does not average out. Input and outputs stay as they are.

onnxconverter-common 1.16 was tried: for nodes it is told to leave alone it casts FP32 → FP16 → FP32 around each and
stores their parameters in FP16, and onnx's checker refuses the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dermserve.errors import StartupError

LARGEST = 65504.0
"""Largest finite FP16 number."""

_Rounding = Callable[[str, str], Iterable[Any]]


def convert(model: Any) -> Any:
    """The FP16 counterpart of a checked `onnx.ModelProto`; the argument is left as it is.

    Raises:
        StartupError: a weight is beyond FP16's range.
    """
    from onnx import TensorProto, helper

    def narrow(source: str, target: str) -> Iterable[Any]:
        return [helper.make_node("Cast", [source], [target], name=f"cast {target}", to=TensorProto.FLOAT16)]

    def widen(source: str, target: str) -> Iterable[Any]:
        return [helper.make_node("Cast", [source], [target], name=f"cast {target}", to=TensorProto.FLOAT)]

    return _checked(_rewritten(model, narrow, widen, np.float16))


def emulate(model: Any) -> Any:
    """An FP32 graph that answers as `convert(model)` does, for machines whose processor has no FP16 arithmetic.

    OpenVINO widens an FP16 graph to FP32, which would hide the rounding of everything but the weights. Rounding is
    Veltkamp's splitting (Dekker 1971): c = 8193·x, c − (c − x) keeps 11 significant bits. Sums within a convolution are
    FP32, as in tensor cores. One output is added, `largest` [N]: the largest magnitude among the values that are FP16,
    which must stay below `LARGEST`.
    """
    from onnx import TensorProto, helper, numpy_helper

    magnitudes: list[str] = []

    def rounding(source: str, target: str) -> Iterable[Any]:
        c, rest, size, largest = (f"{target}.{part}" for part in ("c", "rest", "size", "largest"))
        magnitudes.append(largest)
        return [
            helper.make_node("Mul", [source, "splitter"], [c]),
            helper.make_node("Sub", [c, source], [rest]),
            helper.make_node("Sub", [c, rest], [target]),
            helper.make_node("Abs", [target], [size]),
            helper.make_node("ReduceMax", [size, "all but the first"], [largest], keepdims=0),
        ]

    emulated = _rewritten(model, rounding, rounding, np.float32)
    graph = emulated.graph
    graph.node.append(helper.make_node("Max", magnitudes, ["largest"]))
    graph.output.append(helper.make_tensor_value_info("largest", TensorProto.FLOAT, ["batch"]))
    for name, value in {"splitter": np.float32(2**13 + 1), "all but the first": np.array([1, 2, 3])}.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return _checked(emulated)


def _rewritten(model: Any, narrow: _Rounding, widen: _Rounding, kept_as: DTypeLike) -> Any:
    """Each convolution of `_convolutions` as narrow → convolution → widen → bias, its FP16 weights kept as `kept_as`."""
    import onnx

    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    graph = rewritten.graph
    inside = _convolutions(model)
    initializers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    added: dict[str, NDArray[Any]] = {}
    nodes: list[Any] = []
    narrowed: set[str] = set()
    for node in graph.node:
        nodes.append(node)
        output = node.output[0]
        if output not in inside:
            continue
        value, kernel, *bias = node.input
        before = [] if value in narrowed else narrow(value, f"{value}.fp16")
        narrowed.add(value)
        nodes[-1:] = [*before, node]
        added[f"{kernel}.fp16"] = _fp16(kernel, initializers[kernel]).astype(kept_as)
        del node.input[:]
        node.input.extend([f"{value}.fp16", f"{kernel}.fp16"])
        node.output[0] = f"{output}.sums"
        nodes.extend(widen(f"{output}.sums", f"{output}.unbiased" if bias else output))
        for name in bias:
            added[f"{name}.column"] = initializers[name].reshape(1, -1, 1, 1)
            operands = [f"{output}.unbiased", f"{name}.column"]
            nodes.append(onnx.helper.make_node("Add", operands, [output], name=f"add {name}"))
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in added.items())
    return rewritten


def _checked(model: Any) -> Any:
    """The model itself; strict inference proves that no operation mixes types and that the outputs are FP32."""
    import onnx

    onnx.checker.check_model(model, full_check=True)
    return model


def _convolutions(model: Any) -> set[str]:
    """Outputs of the convolutions that become FP16: all but the first, and those over a single pixel."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred.value_info}
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    return {node.output[0] for node in nodes[1:] if any(d.dim_value != 1 for d in shapes[node.output[0]][2:])}


def _fp16(name: str, kernel: NDArray[np.float32]) -> NDArray[np.float16]:
    """A convolution's weights; each depthwise filter, of [C, 1, H, W], keeps its sum.

    A depthwise filter meets the same smooth skin at each of its places, so that the error of its sum is an error of the
    whole channel. Rounding the largest first and handing each error on to the next leaves that of the smallest alone.
    """
    if not np.abs(kernel).max(initial=0) <= LARGEST:
        raise StartupError(f"{name} holds numbers beyond FP16's range; export this network as FP32.")
    if kernel.shape[1] != 1:
        return kernel.astype(np.float16)
    filters = kernel.reshape(len(kernel), -1).astype(np.float64)
    rounded = np.empty(filters.shape, np.float16)
    order = np.argsort(-np.abs(filters), axis=1, kind="stable")
    rest = np.zeros((len(filters), 1))
    for column in np.split(order, order.shape[1], axis=1):
        wanted = np.take_along_axis(filters, column, axis=1) + rest
        np.put_along_axis(rounded, column, wanted.astype(np.float16), axis=1)
        rest = wanted - wanted.astype(np.float16)
    return rounded.reshape(kernel.shape)
