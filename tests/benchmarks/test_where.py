from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import where
from benchmarks.closed_loop import Window
from benchmarks.images import drawn, endless
from benchmarks.senders import Grpc
from benchmarks.stack import running


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (["/s/triton/backends/python/triton_python_backend_stub", "/s/models/melanoma/1/model.py"], "melanoma (Triton's stubs)"),
        (["/w/tritonserver/bin/tritonserver", "--model-repository=/s/models"], "tritonserver"),
        (["python", "-m", "uvicorn", "--factory", "frontend.app:create_app"], "web server"),
        (["postgres: dermserve dermserve [local] idle"], "PostgreSQL"),
        (["python", "/bin/dermserve", "serve"], "supervisor"),
    ],
)  # fmt: skip
def test_every_process_is_filed_under_its_part(command: list[str], part: str) -> None:
    assert where.part(command) == part


def test_what_is_told_is_what_the_processes_used(tmp_path: Path) -> None:
    with running() as stack:
        found = where.measure(stack, Grpc(stack.grpc), endless(drawn(2)), senders=2, seconds=1.0)
    assert isinstance(found.window, Window)
    assert found.window.failed == 0
    assert found.ms["melanoma (Triton's stubs)"] > found.ms["tritonserver"] > 0.1
    assert "PostgreSQL" not in found.ms, "nothing is stored on this way"
    assert found.ms["melanoma (Triton's stubs)"] < 1000
