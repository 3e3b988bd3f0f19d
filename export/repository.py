"""The finished export moves into the model repository: each file whole; a pair that does not match is never served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dermserve import quality
from dermserve.errors import StartupError
from dermserve.image import preprocessing_hash
from dermserve.model_card import INT8_PATH, ONNX_PATH, ModelCard


def read_training_card(path: Path) -> dict[str, Any]:
    """The part of the card that training wrote beside its checkpoint.

    Raises:
        StartupError: it is missing, or this installation prepares images differently from the one that trained.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise StartupError(
            f"There is no {path}: finish the training run first (`dermserve train --resume`)."
        ) from error
    if content.get("preprocessing") != preprocessing_hash(remove_artifacts=content.get("remove_artifacts", False)):
        raise StartupError(
            "These weights were trained with another image preparation than this installation's; train again, or "
            "install the version that trained them."
        )
    return content


def install(
    onnx: Path, sha256: str, training_card: dict[str, Any], export: dict[str, Any], repository: Path
) -> ModelCard:
    """Put the ONNX file and its card into `repository`; returns the card.

    Raises:
        StartupError: the card is not complete.
    """
    try:
        card = ModelCard.model_validate(
            {
                **training_card,
                # Other weights never share a version: every stored result names what computed it.
                "version": f"{training_card['version']}+{sha256[:8]}",
                "weights_sha256": sha256,
                "export": export,
                # Flags need no training; a run from before they were counted gets them all the same.
                "quality": training_card.get("quality", {"measured": True, "thresholds": quality.THRESHOLDS}),
                "ood": training_card.get(
                    "ood", {"measured": False, "note": "the run was finished before distances were fitted."}
                ),
            }
        )
    except ValidationError as error:
        raise StartupError(f"The training run's card is not complete: {error}") from error
    target = repository / ONNX_PATH
    target.parent.mkdir(parents=True, exist_ok=True)
    card.write(repository)
    onnx.replace(target)
    for path in (repository / INT8_PATH, (repository / INT8_PATH).with_suffix(".bin")):
        path.unlink(missing_ok=True)  # of earlier weights
    return card
