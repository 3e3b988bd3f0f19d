"""What a server runs inside: PyTorch, or dermserve's own engine to tell engine and server apart.

Both give `prepare(image)` for one encoded image, `Model().predict(prepared)` for several, and `BATCH`, the most that
are worth putting together. The environment chooses, because not every server hands arguments on to its workers.
"""

from __future__ import annotations

import os

from benchmarks.peers.catalogue import CHOICE, CORES

if os.environ.get(CHOICE) == "engine":
    from benchmarks.peers.on_engine import BATCH, Model, prepare
else:
    from benchmarks.peers.on_torch import BATCH, Model, prepare

__all__ = ["BATCH", "CHOICE", "CORES", "Model", "prepare"]
