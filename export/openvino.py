"""ONNX file → OpenVINO INT8, by NNCF's post-training quantisation with accuracy control.

What an EfficientNet loses in eight bits, it loses in few places, and they are dealt with by what they are in the graph:

- Sigmoid · x is fused into Swish before anything is quantised; else each Swish is two tensors of eight bits.
- Only 1×1 convolutions over the picture are quantised. That is where the time goes; the stem, the depthwise
  convolutions, the squeeze-and-excitation branches, pooling, head and novelty stay FP32: in eight bits they gain
  little or nothing and cost most of the accuracy.
- Channels at the input of a projection differ in range by up to 80 times, and there is one scale for all of them. The
  gate of squeeze-and-excitation multiplies each channel anyway: a factor folded into it, and its inverse into the
  projection's weights, evens them out for nothing (Nagel et al. 2019, "Data-Free Quantization Through Weight
  Equalization and Bias Correction"; Xiao et al. 2023, "SmoothQuant").
- Biases are corrected with inference, not with the fast approximation; what is left as a mean shift of the leaves'
  logits, which would move every operating point, is taken off in front of the softmax.

What is still too sensitive, NNCF's accuracy control finds and returns to FP32, one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import nncf
import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13
from openvino._offline_transformations import apply_moc_transformations

from export.parity import Answers, Model, answer, reference

Pixels = NDArray[np.uint8]

_BALANCE: Final = 0.5
"""How much of the range moves from activations to weights, SmoothQuant's α."""
_RANKED: Final = 100
"""Images on which accuracy control ranks operations when the gate is not passed at once."""
_CHUNK: Final = 4

Judge = Callable[[Answers, Sequence[int]], tuple[float, list[float]]]
"""Answers on some of the validation images, given by index → what they are worth, and what each image's is.

On all images, 1 is worth what FP32 is and 0 just passes the gate. On fewer, where operations are ranked, any scale will do.
"""


def fused(onnx: Path) -> Any:
    """The ONNX file as an OpenVINO model whose Swish is one operation."""
    model = openvino.Core().read_model(onnx)
    apply_moc_transformations(model, cf=False)
    return model


def quantise(
    onnx: Path,
    calibration: Sequence[Pixels],
    validation: Sequence[Pixels],
    judge: Judge,
) -> Any:
    """The INT8 model.

    Args:
        onnx: the exported network.
        calibration: images of the training set, each uint8 [300, 300, 3].
        validation: images to be judged on, likewise.
        judge: see `Judge`.
    """
    logging.getLogger("nncf").setLevel(logging.WARNING)
    model = fused(onnx)
    balance(model, calibration)

    def validate(compiled: Any, items: Iterable[tuple[int, Pixels]]) -> tuple[float, list[float]]:
        model_ = Model(compiled)
        chosen, answers = [], []
        for index, pixels in items:
            chosen.append(index)
            answers.append(model_(pixels[None]))
        joined = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
        return judge(joined, chosen)

    quantised = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset([pixels[None] for pixels in calibration]),
        nncf.Dataset(list(enumerate(validation)), lambda item: item[1][None]),
        validation_fn=validate,
        max_drop=1.0,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        fast_bias_correction=False,
        ignored_scope=nncf.IgnoredScope(names=kept(model), validate=False),
        advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.HISTOGRAM,
            overflow_fix=nncf.OverflowFix.DISABLE,  # `dermserve.engine.served` asks for processors that do not overflow
        ),
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(ranking_subset_size=_RANKED),
    )
    centre(quantised, answer(reference(onnx), calibration), calibration)
    return quantised


def kept(model: Any) -> list[str]:
    """Names of the operations that stay FP32: all but the 1×1 convolutions over the picture."""
    quantised = {node.get_friendly_name() for node in _pointwise(model)}
    return [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_friendly_name() not in quantised]


def balance(model: Any, calibration: Sequence[Pixels]) -> int:
    """Even out the channels in front of gated projections, in place and without changing a result; returns how many."""
    gated = [found for node in _pointwise(model) if (found := _gate(node)) is not None]
    for (projection, product, gate), largest in zip(gated, _largest(model, gated, calibration), strict=True):
        weights = projection.input_value(1).get_node().get_data()
        scale = np.abs(weights).max(axis=(0, 2, 3)) ** (1 - _BALANCE) / np.maximum(largest, 1e-6) ** _BALANCE
        scale = np.clip(scale / np.exp(np.log(np.maximum(scale, 1e-12)).mean()), 1e-3, 1e3).astype(np.float32)
        scale = scale.reshape(1, -1, 1, 1)
        product.input(gate).replace_source_output(
            opset13.multiply(product.input_value(gate), opset13.constant(scale)).output(0)
        )
        projection.input(1).replace_source_output(opset13.constant((weights / scale).astype(np.float32)).output(0))
    model.validate_nodes_and_infer_types()
    return len(gated)


def centre(model: Any, expected: Answers, calibration: Sequence[Pixels]) -> None:
    """Take the mean shift of the leaves' logits on the calibration images off in front of the softmax, in place."""
    found = answer(reference(model), calibration)
    # Logits are known up to a constant for each image, which the softmax does not see.
    shift = (np.log(found["diagnoses"]) - np.log(expected["diagnoses"])).mean(axis=0)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Softmax":
            logits = node.input_value(0)
            node.input(0).replace_source_output(
                opset13.subtract(logits, opset13.constant(shift[None].astype(np.float32))).output(0)
            )
    model.validate_nodes_and_infer_types()


def _pointwise(model: Any) -> list[Any]:
    """1×1 convolutions whose input still has a picture's extent."""
    return [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Convolution"
        and tuple(node.input(1).get_shape()[2:]) == (1, 1)
        and node.input(0).get_partial_shape()[2].get_length() > 1
    ]


def _gate(projection: Any) -> tuple[Any, Any, int] | None:
    """The product in front of a projection and which of its inputs is the gate [N, C, 1, 1], if it has one."""
    product = projection.input_value(0).get_node()
    if product.get_type_name() != "Multiply" or projection.input_value(1).get_node().get_type_name() != "Constant":
        return None
    shapes = [product.input_value(side).get_partial_shape() for side in range(2)]
    gates = [side for side, shape in enumerate(shapes) if len(shape) == 4 and shape[2].get_length() == 1]
    return (projection, product, gates[0]) if len(gates) == 1 else None


def _largest(model: Any, gated: Sequence[tuple[Any, Any, int]], calibration: Sequence[Pixels]) -> list[Any]:
    """The largest magnitude of each channel of each product over the calibration images."""
    probes = [
        opset13.result(opset13.reduce_max(opset13.abs(product.output(0)), np.array([0, 2, 3]), keep_dims=False))
        for _, product, _ in gated
    ]
    if not probes:
        return []
    probed = openvino.Model(probes, model.get_parameters(), "ranges")
    compiled = openvino.Core().compile_model(probed, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    largest: list[Any] = [0.0] * len(probes)
    for start in range(0, len(calibration), _CHUNK):
        found = compiled(np.stack(calibration[start : start + _CHUNK]))
        largest = [np.maximum(most, found[index]) for index, most in enumerate(largest)]
    return largest
