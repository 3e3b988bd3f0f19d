from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dermserve.cli import _EXTRAS

DERMSERVE = Path(sys.executable).with_name("dermserve")
COMMANDS = ("admin", "bench", "evaluate", "export", "predict", "sample", "serve", "train")


def run(*arguments: str, code: str | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code] if code else [str(DERMSERVE), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **settings}
    )


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
        done.stderr.strip()
        == "dermserve: this command needs torch: run deploy/setup.sh dev, or install the extra 'training'"
    )


def test_every_extra_that_is_hinted_at_brings_the_package_and_no_base_dependency_is_hinted_at() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for package, extra in _EXTRAS.items():
        assert any(re.match(rf"{package}\b", line) for line in project["optional-dependencies"][extra]), package
    assert _EXTRAS["matplotlib"] == "bench"
    assert "sklearn" not in _EXTRAS, "scikit-learn is a base dependency; the install is broken where it is missing"


@pytest.mark.parametrize(
    "command", [("serve",), ("predict", __file__, "--csv", "never.csv"), ("admin", "create-api-key", "--name", "x")]
)
def test_bad_settings_are_one_line_for_every_command_and_show_no_value(command: tuple[str, ...]) -> None:
    done = run(*command, DERMSERVE_PORT="secret", DERMSERVE_WORKERS="0")
    assert done.returncode == 1
    assert done.stderr.startswith("dermserve: DERMSERVE_PORT: Input should be a valid integer")
    assert "; DERMSERVE_WORKERS: Input should be greater than or equal to 1" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr


def test_another_validation_error_is_not_taken_for_a_bad_setting() -> None:
    code = (
        "import click, pydantic, dermserve.cli as cli\n"
        "class Card(pydantic.BaseModel): port: int\n"
        "cli.shell.add_command(click.Command('fail', callback=lambda: Card(port='x')))\n"
        "cli.shell.get_command = lambda ctx, name: cli.shell.commands[name]\n"
        "cli.sys.argv = ['dermserve', 'fail']; cli.main()"
    )
    done = run(code=code)
    assert "ValidationError: 1 validation error for Card" in done.stderr


def test_an_unknown_command_is_refused_politely() -> None:
    done = run("diagnose")
    assert done.returncode == 2
    assert "No such command 'diagnose'" in done.stderr
