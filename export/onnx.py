"""A trained network as one ONNX file that holds the whole contract, from uint8 pixels to the reported columns."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from dermserve.image import SIDE
from dermserve.labels import LEAVES, rollup_matrix
from training.model import MEAN, STD, Novelty

INPUT = "pixels"
OUTPUTS = ("probabilities", "diagnoses", "cam", "embedding", "ood")
OPSET = 18


class ServedModel(nn.Module):
    """Normalisation, network, calibration and roll-up in one graph, so that every client sees the same numbers.

    Args:
        network: a timm EfficientNet (`forward_features` → [N, 1536, 10, 10]; `classifier`: linear, nine leaves).
        temperature: divides the logits before the softmax (Guo et al. 2017, "On Calibration of Modern Neural Networks").
        novelty: parameters of `training.model.Novelty`; without them the output `ood` is zero.
    """

    def __init__(self, network: nn.Module, temperature: float, novelty: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.novelty = None if novelty is None else Novelty(novelty)
        # (x/255 − mean)/std as one multiplication and one addition.
        std = torch.tensor(STD).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -torch.tensor(MEAN).view(1, 3, 1, 1) / std)
        self.register_buffer("rollup", torch.from_numpy(rollup_matrix()))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Map uint8 [N, 300, 300, 3] to the tensors named in `OUTPUTS`, all FP32.

        `cam` is the melanoma class activation map (Zhou et al. 2016). It is exact here: the network ends in a mean
        and a linear layer, so the map's mean plus the class's bias is the melanoma logit.
        """
        # Cast first: TensorRT moves no uint8 tensor but into a cast.
        images = pixels.float().permute(0, 3, 1, 2)
        features = self.network.forward_features(images * self.scale + self.shift)
        embedding = features.mean(dim=(2, 3))
        head = self.network.classifier
        diagnoses = torch.softmax(head(embedding) / self.temperature, dim=1)
        melanoma = head.weight[LEAVES.index("MEL")]
        cam = (features * melanoma.view(1, -1, 1, 1)).sum(dim=1)
        # Where nothing was fitted (the card says so): zero, derived from the embedding to keep the batch dimension.
        ood = embedding[:, :1] * 0 if self.novelty is None else self.novelty(images, embedding)
        return diagnoses @ self.rollup, diagnoses, cam, embedding, ood


def export_onnx(model: ServedModel, path: Path) -> str:
    """Write the graph with a dynamic batch to one file and return its SHA-256 (hex)."""
    import logging

    import onnx

    for name in ("onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they report every constant that they merge
    model.eval()
    example = torch.randint(0, 256, (2, SIDE, SIDE, 3), dtype=torch.uint8)
    program = torch.onnx.export(
        model,
        (example,),
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=1024)}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    graph = program.model_proto
    for node in graph.graph.node:
        # The exporter notes each operation's source file and line: noise, twice the size, and paths of this machine.
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(graph)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
