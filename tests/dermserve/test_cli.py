from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DERMSERVE = Path(sys.executable).with_name("dermserve")
COMMANDS = ("admin", "bench", "evaluate", "export", "predict", "sample", "serve", "train")


def run(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code] if code else [str(DERMSERVE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_help_lists_every_rooms_command() -> None:
    listed = run("--help").stdout
    for command in COMMANDS:
        assert f"\n  {command} " in listed


def test_help_of_every_command_works_without_the_training_extra() -> None:
    """A serving install has no torch: help must neither need nor load it."""
    for command in COMMANDS:
        code = (
            "import sys; sys.modules.update(torch=None, timm=None, torchvision=None, locust=None)\n"
            f"sys.argv = ['dermserve', '{command}', '--help']\n"
            "from dermserve.cli import main; main()"
        )
        done = run(code=code)
        assert done.returncode == 0, (command, done.stderr)
        assert "Examples:" in done.stdout, command


def test_a_missing_extra_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, timm=None)\n"
        f"sys.argv = ['dermserve', 'export', {str(tmp_path)!r}]\n"
        "from dermserve.cli import main; main()"
    )
    done = run(code=code)
    assert done.returncode == 1
    assert (
        done.stderr.strip() == "dermserve: this command needs the extra 'training': pip install 'dermserve[training]'"
    )


def test_an_unknown_command_is_refused_politely() -> None:
    done = run("diagnose")
    assert done.returncode == 2
    assert "No such command 'diagnose'" in done.stderr
