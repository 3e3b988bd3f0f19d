"""The served network on this machine's CPU: the exported file on OpenVINO, set up one way for all who run it.

Triton's `melanoma`, the in-process limit and the peers of the benchmarks load it from here, so that they differ in
nothing but what is measured. OpenVINO is imported when an engine is loaded, not with this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dermserve.errors import StartupError
from dermserve.image import SIDE
from dermserve.model_card import INT8_PATH, ONNX_PATH, ModelCard, sha256

FP32: Final = "FP32"
INT8: Final = "INT8"
NOVELTY: Final = "ood"
_COARSE: Final = SIDE // 3

_SETTINGS: Final[Mapping[str, Any]] = {
    "PERFORMANCE_HINT": "LATENCY",
    # Instances share the cores with decoding: pinned threads would fight with it.
    "ENABLE_CPU_PINNING": False,
    # The default is bfloat16 on CPUs that have it; the card's figures are those of FP32.
    "INFERENCE_PRECISION_HINT": "f32",
}
_INT8_INSTRUCTIONS: Final = frozenset({"avx512_vnni", "avx_vnni"})


class Engine:
    """A network compiled for one image; one call at a time.

    A shape that is known beforehand is worth a quarter of INT8's speed, and larger batches gain nothing on a CPU. An
    image's answer also never depends on its neighbours.

    Args:
        path: an ONNX file or OpenVINO IR as `dermserve export` writes them.
        precision: what it computes in, as answers name it.
        threads: for one call.
    """

    def __init__(self, path: Path, precision: str, threads: int = 1) -> None:
        import openvino

        network, _ = _divided(openvino.Core().read_model(path))
        network.reshape([1, SIDE, SIDE, 3])
        self.precision = precision
        self._request = _compiled(network, threads)
        self._outputs = {name: index for index, port in enumerate(network.outputs) for name in port.names}

    def infer(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Map uint8 [N, 300, 300, 3] to every output but `ood` by name, float32 [N, …], in memory of their own."""
        # Outputs are copied: Triton reads a response after the next request's call has been made.
        found = [self._request.infer([one[None]], share_inputs=True, share_outputs=False) for one in pixels]
        if len(found) == 1:
            return {name: found[0][index] for name, index in self._outputs.items()}
        return {name: np.concatenate([one[index] for one in found]) for name, index in self._outputs.items()}


class Novelty:
    """The distance to the training images, apart from the network because not everybody asks for it; always FP32.

    It begins with means of 3×3 pixels. NumPy takes them as sums of whole numbers and OpenVINO does the rest: on three
    channels its own reduction takes three quarters of the time (all of it 1.4 ms, so 0.4; the same to 1e-6).

    Raises:
        StartupError: the file was exported without it.
    """

    def __init__(self, onnx: Path) -> None:
        import openvino

        _, novelty = _divided(openvino.Core().read_model(onnx))
        if novelty is None:
            raise StartupError("These weights hold no distance to the training images: run `dermserve export` again.")
        self._request = _compiled(novelty, 1)

    def __call__(self, pixels: NDArray[np.uint8], embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """`ood`, float32 [N, 1], from uint8 [N, 300, 300, 3] and the network's float32 [N, 1536]."""
        found = [
            self._request.infer([_means(one)[None], features[None]], share_inputs=True, share_outputs=False)[0]
            for one, features in zip(pixels, embedding, strict=True)
        ]
        return np.concatenate(found)


def _means(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of 3×3 pixels: uint8 [300, 300, 3] → float32 [3, 100, 100], 0…255."""
    rows = pixels.reshape(_COARSE, 3, SIDE * 3)
    sums = rows[:, 0].astype(np.uint16)
    sums += rows[:, 1]
    sums += rows[:, 2]
    means = np.empty((3, _COARSE, _COARSE), np.float32)
    triples = sums.reshape(_COARSE, _COARSE, 9)
    for channel, mean in enumerate(means):
        total = triples[..., channel] + triples[..., channel + 3]
        total += triples[..., channel + 6]
        np.multiply(total, np.float32(1 / 9), out=mean)
    return means


def load(repository: Path, precision: str | None = None, *, threads: int = 1) -> Engine:
    """Compile what a model repository serves on a CPU, in `precision` or, where that is None, in what is `served` here.

    Raises:
        StartupError: the repository holds no exported network of this precision, or another one than its card says.
    """
    card = ModelCard.read(repository)
    precision = precision or served(card)
    if precision == FP32:
        return Engine(_checked(repository / ONNX_PATH, card.weights_sha256), FP32, threads)
    if precision not in available(card):
        raise StartupError(f"The model card has no {precision} engine for a CPU: run `dermserve export --data …`.")
    record = card.engines["openvino"]
    _checked((repository / INT8_PATH).with_suffix(".bin"), record.weights_sha256 or "")
    return Engine(_checked(repository / INT8_PATH, record.sha256), INT8, threads)


def load_novelty(repository: Path) -> Novelty:
    """Of a model repository's weights.

    Raises:
        StartupError: the weights are not the card's, or were exported without it.
    """
    return Novelty(_checked(repository / ONNX_PATH, ModelCard.read(repository).weights_sha256))


def available(card: ModelCard) -> tuple[str, ...]:
    """The precisions that a CPU can be given, best last: INT8 is one of them where the card's gate let it pass."""
    record = card.engines.get("openvino")
    return (FP32, INT8) if record is not None and record.precision == INT8 else (FP32,)


def served(card: ModelCard) -> str:
    """The precision for this machine: INT8 where it is available and the processor has the instructions.

    Without them OpenVINO adds pairs of products in 16 bits, where they overflow: other numbers than those at the gate.
    """
    return INT8 if INT8 in available(card) and _INT8_INSTRUCTIONS & _instructions() else FP32


def _instructions() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}


def _checked(path: Path, digest: str) -> Path:
    if not path.exists():
        raise StartupError(f"There is no model at {path}: run `dermserve export` first.")
    if sha256(path) != digest:
        raise StartupError(f"{path.name} is not what the model card says: run `dermserve export` again.")
    return path


def _compiled(model: Any, threads: int) -> Any:
    import openvino

    settings = {**_SETTINGS, "INFERENCE_NUM_THREADS": threads}
    return openvino.Core().compile_model(model, "CPU", settings).create_infer_request()


def _divided(whole: Any) -> tuple[Any, Any]:
    """The network without its novelty, and the novelty as a model of an image's `_means` and its embedding.

    The second is None where there is none that begins with means of 3×3 pixels.
    """
    import openvino
    from openvino import opset13

    asked = [result for result in whole.get_results() if NOVELTY not in result.input_value(0).names]
    if len(asked) == len(whole.get_results()):
        return whole, None
    copy = whole.clone()
    network = openvino.Model(asked, whole.get_parameters(), "network")
    pools = [node for node in copy.get_ordered_ops() if node.get_type_name() == "AvgPool"]
    first = [pool for pool in pools if list(pool.get_attributes()["kernel"]) == [3, 3]]
    if len(first) != 1:
        return network, None
    means = opset13.parameter([1, 3, _COARSE, _COARSE], np.float32)
    features = opset13.parameter([1, copy.output("embedding").get_partial_shape()[1].get_length()], np.float32)
    for output, given in ((first[0].output(0), means), (copy.output("embedding").get_node().input_value(0), features)):
        for target in output.get_target_inputs():
            target.replace_source_output(given.output(0))
    novelty = [result for result in copy.get_results() if NOVELTY in result.input_value(0).names]
    return network, openvino.Model(novelty, [means, features], "novelty")
