from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dermserve import sample
from tests.system.stack import Stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One running stack for all tests that leave it as they found it."""
    running = Stack(tmp_path_factory.mktemp("state"))
    assert running.url in running.start()
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def api_key(stack: Stack) -> str:
    return stack.create_api_key()


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve generated lesion images."""
    folder = tmp_path_factory.mktemp("samples")
    for seed in range(12):
        (folder / f"sample-{seed:03d}.jpg").write_bytes(sample.jpeg(seed))
    return folder
