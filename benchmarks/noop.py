"""A model repository whose network costs nothing: what is left is decoding, queues and the wire."""

from __future__ import annotations

import shutil
from pathlib import Path

from dermserve.errors import StartupError

_MODEL = Path("melanoma/1/model.py")


def copy(repository: Path, folder: Path) -> Path:
    """Copy a model repository to `folder` with `noop_network` in the place of the CPU's network; returns `folder`.

    Its configurations, and so its instances and queues, stay those of the real one, and so does all other work: the
    distance to the training images is computed where it is asked for.

    Raises:
        StartupError: the repository holds no model for a CPU.
    """
    if not (repository / _MODEL).exists():
        raise StartupError(f"{repository} holds no {_MODEL}, so there is no network to replace.")
    shutil.copytree(
        repository, folder, dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__", "*.plan", "*.int8.*", ".export-*"),
    )  # fmt: skip
    (folder / _MODEL).rename(folder / _MODEL.with_name("served.py"))
    shutil.copyfile(Path(__file__).with_name("noop_network.py"), folder / _MODEL)
    return folder
