from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch.nn.functional import conv2d, silu

from dermserve.errors import StartupError
from dermserve.image import prepare
from dermserve.model_card import ONNX_PATH
from dermserve.settings import Settings
from export import graph, half


@pytest.fixture(scope="module")
def model() -> Any:
    return graph.read(Settings().model_repository / ONNX_PATH)


@pytest.fixture(scope="module")
def converted(model: Any) -> Any:
    before = model.SerializeToString(deterministic=True)
    found = half.convert(model)
    assert model.SerializeToString(deterministic=True) == before
    return found


def weights(model: Any) -> dict[str, np.ndarray]:
    """The kernels of the convolutions in order, under the names that they have in the FP32 file."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    names = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    return {name.removesuffix(".fp16"): tensors[name] for name in names}


def test_fp16_is_what_takes_the_time_and_nothing_else(model: Any, converted: Any) -> None:
    kernels = weights(converted)
    assert list(kernels) == list(weights(model))
    wide = [name for name, kernel in kernels.items() if kernel.dtype == np.float32]
    assert wide[0] == next(iter(kernels)), "the colour of the skin enters unrounded"
    assert all(".se." in name for name in wide[1:])
    assert len(kernels) - len(wide) == 77, "stem and squeeze-and-excitation aside, B3 has 77 convolutions"
    inferred = onnx.shape_inference.infer_shapes(converted, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    narrow = {
        node.op_type for node in converted.graph.node for name in node.output if types[name] == TensorProto.FLOAT16
    }
    assert narrow == {"Conv", "Cast"}
    assert not [
        tensor.name for tensor in converted.graph.initializer if "novelty" in tensor.name and tensor.data_type != 1
    ]


def test_input_and_outputs_are_those_of_the_contract(converted: Any, tmp_path: Path) -> None:
    onnx.save(converted, tmp_path / "model.fp16.onnx")
    assert (tmp_path / "model.fp16.onnx").stat().st_size < 30_000_000
    graph.read(tmp_path / "model.fp16.onnx")  # raises where they are not


def test_depthwise_filters_keep_their_sums(model: Any, converted: Any) -> None:
    """Plain rounding of them moved the melanoma logit of real images by up to 0.04."""
    rounded = weights(converted)
    errors, plain = [], []
    for name, kernel in weights(model).items():
        if kernel.shape[1] == 1 and rounded[name].dtype == np.float16:
            exact = kernel.astype(np.float64)
            size = np.abs(exact).sum(axis=(1, 2, 3))
            for found, into in ((rounded[name], errors), (kernel.astype(np.float16), plain)):
                into.append(np.abs((found - exact).sum(axis=(1, 2, 3))) / size)
            assert np.abs(rounded[name] - exact).max() <= 2**-10 * np.abs(exact).max(), "and each weight its value"
    assert len(errors) == 26
    assert np.mean(np.concatenate(errors)) < np.mean(np.concatenate(plain)) / 10


def test_real_images_keep_their_probabilities(model: Any, shared_data: Path) -> None:
    """With the rounding of FP16 arithmetic; `dermserve export` measures it on 300 images."""
    files = sorted((shared_data / "isic2017-test/images").glob("*.jpg"))[::150]
    pixels = np.stack([prepare(file.read_bytes()).pixels for file in files])
    exact, rounded = run(model, pixels), run(half.emulate(model), pixels)
    difference = np.abs(rounded["probabilities"] - exact["probabilities"])
    assert 1e-6 < difference.max() < 0.005
    assert np.abs(rounded["ood"] - exact["ood"]).max() < 0.01
    assert rounded["largest"].max() < half.LARGEST / 10, "far from overflow"


def run(model: Any, values: np.ndarray) -> dict[str, np.ndarray]:
    core = openvino.Core()
    network = core.read_model(model.SerializeToString(), b"")
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(values)
    return {port.any_name: found[port].copy() for port in compiled.outputs}


def small(scale: float = 1.0) -> Any:
    """Stem, depthwise and pointwise convolution on 8×8 images, as one residual block."""
    draw = np.random.default_rng(0)
    tensors = {
        "stem": draw.normal(size=(4, 3, 3, 3)), "depthwise": draw.normal(size=(4, 1, 3, 3)),
        "pointwise": draw.normal(size=(4, 4, 1, 1)) * scale, "bias": draw.normal(size=4),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "stem", "bias"], ["a"], pads=[1] * 4),
        helper.make_node("Sigmoid", ["a"], ["gate"]),
        helper.make_node("Mul", ["a", "gate"], ["b"]),
        helper.make_node("Conv", ["b", "depthwise", "bias"], ["c"], pads=[1] * 4, group=4),
        helper.make_node("Conv", ["c", "pointwise", "bias"], ["d"]),
        helper.make_node("Add", ["b", "d"], ["sum"]),
    ]
    shape = ["batch", 4, 8, 8]
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_the_emulation_rounds_as_fp16_arithmetic_does() -> None:
    image = np.random.default_rng(1).normal(size=(5, 3, 8, 8)).astype(np.float32)
    exact, emulated, converted = run(small(), image), run(half.emulate(small()), image), half.convert(small())
    kernels = {
        tensor.name: torch.tensor(numpy_helper.to_array(tensor)).float() for tensor in converted.graph.initializer
    }
    stem = silu(conv2d(torch.tensor(image), kernels["stem"], kernels["bias"], padding=1))
    bias = kernels["bias.column"]
    depthwise = conv2d(stem.half().float(), kernels["depthwise.fp16"], padding=1, groups=4).half()
    between = (depthwise.float() + bias).half()
    pointwise = conv2d(between.float(), kernels["pointwise.fp16"]).half()
    expected = (stem + pointwise.float() + bias).numpy()
    assert np.mean(np.abs(exact["sum"] - expected) > 1e-4) > 0.5, "FP16 differs from FP32 here"
    assert np.mean(np.abs(emulated["sum"] - expected) > 1e-4) < 0.02, "but for sums that lie between two numbers"
    largest = [stem.half(), depthwise, between, pointwise]
    assert np.allclose(emulated["largest"], np.max([value.abs().amax((1, 2, 3)) for value in largest], axis=0))
    # And a true FP16 run of the converted graph, whose sums within a convolution are FP16, too.
    [true] = ReferenceEvaluator(converted).run(None, {"image": image})
    assert np.abs(true - emulated["sum"]).max() < np.abs(true).max() * 2**-10


def test_a_weight_beyond_fp16_is_refused() -> None:
    with pytest.raises(StartupError, match="pointwise holds numbers beyond FP16's range"):
        half.convert(small(scale=1e5))
