"""The rules between rooms are checked by `make lint`; here: that the rules themselves are complete."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


READERS = {"datasets", "evaluate", "layouts", "report", "splits", "truth"}


def test_export_may_import_nothing_of_training_but_its_model_and_readers() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    export = next(contract for contract in contracts if contract["source_modules"] == ["export"])
    room = ROOT / "training"
    modules = {f"training.{path.stem}" for path in room.glob("*.py")} - {"training.__init__"}
    modules |= {f"training.{path.parent.name}" for path in room.glob("*/__init__.py")}
    assert modules - set(export["forbidden_modules"]) == {"training.model"} | {f"training.{name}" for name in READERS}


def test_every_room_has_a_rule() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    ruled = {source for contract in contracts for source in contract["source_modules"]}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert ruled == rooms


def test_no_tracked_file_names_a_package_index_or_a_data_set_image() -> None:
    import subprocess

    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in tracked.split("\0") if name]
    assert names
    assert not [name for name in names if "ISIC_0" in name]
    hosts = [
        "pypi" + ".org",
        "pythonhosted" + ".org",
        "npmjs" + ".org",
        "deb.debian" + ".org",
        "download.pytorch" + ".org",
    ]
    for name in names:
        content = (ROOT / name).read_bytes()
        if len(content) < 5_000_000:
            assert not [host for host in hosts if host.encode() in content], name
