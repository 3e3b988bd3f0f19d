from __future__ import annotations

import pytest
from pydantic import ValidationError

from dermserve.settings import Settings


def test_the_contracts_defaults() -> None:
    settings = Settings()
    assert (str(settings.state_dir), settings.port, settings.triton_grpc_port, settings.dicom_port) == (
        ".dermserve", 8000, 8001, 11112,
    )  # fmt: skip
    assert settings.triton_urls == ("127.0.0.1:8001",)
    assert settings.host == "127.0.0.1"


def test_the_environment_overrides_and_a_list_of_servers_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DERMSERVE_TRITON_URL", "gpu-1:8001, gpu-2:8001,")
    monkeypatch.setenv("DERMSERVE_PORT", "9000")
    settings = Settings()
    assert settings.triton_urls == ("gpu-1:8001", "gpu-2:8001")
    assert settings.port == 9000
    assert not settings.embedded_triton


def test_settings_are_frozen_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]
    monkeypatch.setenv("DERMSERVE_PORT", "eighty")
    with pytest.raises(ValidationError):
        Settings()
