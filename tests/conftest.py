"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared/data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real dermoscopy images, which is not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real images of ../shared/data are not on this machine")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def _settings_from_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on the settings of whoever runs it."""
    for name in os.environ:
        if name.startswith("DERMSERVE_"):
            monkeypatch.delenv(name)
