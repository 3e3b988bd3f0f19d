"""A model repository whose classifier costs nothing: what is left is decoding, queues and the wire."""

from __future__ import annotations

import shutil
from pathlib import Path

from dermserve.errors import StartupError

_CLASSIFIER = Path("classifier/1/model.py")


def copy(repository: Path, folder: Path) -> Path:
    """Copy a model repository to `folder` with `noop_classifier` in the classifier's place; returns `folder`.

    Its configurations, and so its instances and queues, stay those of the real one.
    The step `quality` keeps the file that it reads.

    Raises:
        StartupError: the repository's classifier is not one of the python backend.
    """
    if not (repository / _CLASSIFIER).exists():
        raise StartupError(f"{repository} holds no {_CLASSIFIER}, so there is no python classifier to replace.")
    shutil.copytree(
        repository, folder, dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__", "*.plan", "*.int8.*", ".export-*"),
    )  # fmt: skip
    shutil.copyfile(Path(__file__).with_name("noop_classifier.py"), folder / _CLASSIFIER)
    return folder
