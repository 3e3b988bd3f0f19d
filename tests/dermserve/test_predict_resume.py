"""What `--resume` finds and makes of it: changed files, harmed tables, other PATHs, full disks; and how a run is stopped."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result

from dermserve.errors import ImageUndecodable, RequestInvalid
from dermserve.predict import patience, predict
from dermserve.predict.doors import TritonDoor
from dermserve.predict.journal import Journal, JournalFault
from tests.dermserve.test_client import answering, serving

HEADER = "filename,Benign,Suspicious,Malignant,Melanoma\n"


def by_content(request: Any, context: grpc.ServicerContext) -> Any:
    """The figure that the file says: `0.25`; anything else is no image."""
    said = request.raw_input_contents[0][4:]
    try:
        return answering(request, float(said), 0.5)
    except ValueError:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, ImageUndecodable(said.decode()).wire(0))


def run(out: Path, url: str, *arguments: object) -> Result:
    return CliRunner().invoke(predict, [*map(str, arguments), "--csv", str(out), "--url", url])


def figures(path: Path) -> dict[str, str]:
    """First figure by name, in order; fails where a name is there twice."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: row[1] for row in rows}


def images(folder: Path, **content: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, said in content.items():
        (folder / f"{name}.jpg").write_text(said)
    return folder


@pytest.fixture
def url() -> Iterator[str]:
    with serving(by_content) as address:
        yield address


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dermserve.predict.pace._FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr("dermserve.retries._RETRY_FOR_S", 0.2)
    monkeypatch.setattr(patience, "_START_S", 0.2)


def test_a_file_that_changed_is_scored_again_in_its_place(url: str, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", a="0.1", b="0.2", c="0.3"), tmp_path / "out.csv"
    assert run(out, url, folder).exit_code == 0
    images(folder, b="0.9")
    os.utime(folder / "c.jpg", (1, 1))  # touched, and the same
    again = run(out, url, folder, "--resume")
    assert "1 have changed since they were scored" in again.output
    assert "2 of 3 images are done already." in again.output
    assert figures(out) == {"a.jpg": "0.100000", "b.jpg": "0.900000", "c.jpg": "0.300000"}


def test_a_refusal_stands_until_the_file_changes(url: str, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", a="0.1", b="half of it"), tmp_path / "out.csv"
    assert run(out, url, folder).exit_code == 1
    assert run(out, url, folder, "--resume").exit_code == 1
    images(folder, b="0.2")
    assert run(out, url, folder, "--resume").exit_code == 0
    assert figures(out) == {"a.jpg": "0.100000", "b.jpg": "0.200000"}
    assert not (tmp_path / "out.errors.csv").exists()


def test_what_could_not_be_read_is_tried_again_and_takes_its_place(url: str, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", a="0.1", c="0.3"), tmp_path / "out.csv"
    (folder / "b.jpg").symlink_to("/proc/self/mem")  # reading it at 0 is a real EIO
    assert run(out, url, folder).exit_code == 1
    assert list(figures(out)) == ["a.jpg", "c.jpg"]
    (folder / "b.jpg").unlink()
    images(folder, b="0.2")
    assert run(out, url, folder, "--resume").exit_code == 0
    assert figures(out) == {"a.jpg": "0.100000", "b.jpg": "0.200000", "c.jpg": "0.300000"}


@pytest.mark.parametrize("harm", [
    lambda data: b"", lambda data: data[:60], lambda data: data + b"d.jpg,0.", lambda data: data[:-10] + b"\0" * 10,
    lambda data: data + b"z.jpg,0.1,0.1,0.1,0.1\n", lambda data: data.replace(b"0.2", b"0.7"),
    lambda data: bytes(len(data)), lambda data: data[:7],
], ids=["empty", "cut", "torn", "zeros", "strange row", "other figures", "all zeros", "begun"])  # fmt: skip
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_harmed_table_is_mended_from_the_journal(url: str, tmp_path: Path, harm: Any, kind: str) -> None:
    folder, out = images(tmp_path / "in", a="0.1", b="0.2", c="0.3"), tmp_path / f"out.{kind}"
    call = [str(folder), f"--{kind}", str(out), "--url"]
    with pytest.MonkeyPatch.context() as patched:
        if kind == "jsonl":  # this server knows no more than the figures
            patched.setattr(TritonDoor, "_document", document)
            patched.setattr("dermserve.predict.doors._FULL", ())
        CliRunner().invoke(predict, [*call, url])
    whole = out.read_bytes()
    assert whole.count(b"0.2") == 4 if kind == "csv" else whole.count(b"\n") == 3
    out.write_bytes(harm(whole))
    done = CliRunner().invoke(predict, [*call, "127.0.0.1:9", "--resume"])  # nothing is left to ask a server
    assert done.exit_code == 0, done.output
    assert out.read_bytes() == whole


async def document(self: TritonDoor, data: bytes, sha256: str, answer: Any) -> str:
    return json.dumps({"image": {"sha256": sha256}, "said": answer["probabilities"][0].tolist()})


def test_a_table_whose_journal_was_deleted_goes_on_as_ever(url: str, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", a="0.1", c="0.3"), tmp_path / "out.csv"
    run(out, url, folder)
    (tmp_path / "out.csv.journal").unlink()
    images(folder, b="0.2")
    assert run(out, url, folder, "--resume").exit_code == 0
    assert list(figures(out).items()) == [("a.jpg", "0.100000"), ("c.jpg", "0.300000"), ("b.jpg", "0.200000")]


def test_new_images_come_behind_the_others_and_no_path_means_the_earlier_ones(url: str, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", b="0.2", d="0.4"), tmp_path / "out.csv"
    run(out, url, folder)
    images(folder, a="0.1", c="0.3")
    assert run(out, url, folder, "--resume").exit_code == 0
    assert list(figures(out)) == ["b.jpg", "d.jpg", "a.jpg", "c.jpg"]
    shutil.rmtree(folder)
    done = run(out, url, "--resume")
    assert done.exit_code == 0, done.output
    assert "4 of 4 images are done already." in done.output
    assert list(figures(out)) == ["b.jpg", "d.jpg", "a.jpg", "c.jpg"]


def test_another_folder_with_the_same_names_is_refused_and_nothing_changes(url: str, tmp_path: Path) -> None:
    one, other, out = images(tmp_path / "one", a="0.1"), images(tmp_path / "two", a="0.9"), tmp_path / "out.csv"
    run(out, url, one)
    done = run(out, url, other, "--resume")
    assert isinstance(done.exception, RequestInvalid)
    assert (
        f"'a.jpg' was {one}/a.jpg in the run that is to be resumed, and is {other}/a.jpg now" in done.exception.detail
    )
    assert done.exception.exit_status == 2
    assert figures(out) == {"a.jpg": "0.100000"}


def test_json_lines_cannot_be_added_to_a_run_that_did_not_keep_them(url: str, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", a="0.1"), tmp_path / "out.csv"
    run(out, url, folder)
    done = run(out, url, folder, "--resume", "--jsonl", tmp_path / "out.jsonl")
    assert isinstance(done.exception, RequestInvalid)
    assert "--jsonl cannot be added" in done.exception.detail


def test_an_old_table_is_taken_over_also_when_the_first_resume_is_killed(url: str, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", b="0.2"), tmp_path / "out.csv"
    out.write_text(HEADER + "gone.jpg,0.1,0.2,0.7,0.6\n")
    Journal(tmp_path / "out.csv.journal").close()  # what a kill leaves that came before anything was listed
    assert run(out, url, folder, "--resume").exit_code == 0
    assert list(figures(out)) == ["gone.jpg", "b.jpg"]


def test_a_damaged_journal_says_what_to_do(url: str, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", a="0.1"), tmp_path / "out.csv"
    run(out, url, folder)
    (tmp_path / "out.csv.journal").write_bytes(b"not a database, but long enough to look at" * 100)
    done = run(out, url, folder, "--resume")
    assert isinstance(done.exception, JournalFault)
    assert "is damaged. Delete it, and --resume goes on from the table alone." in done.exception.detail
    (tmp_path / "out.csv.journal").unlink()
    assert run(out, url, folder, "--resume").exit_code == 0


def test_a_run_that_is_to_replace_another_leaves_it_until_the_server_answers(url: str, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", a="0.1"), tmp_path / "out.csv"
    run(out, url, folder)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    images(folder, a="0.9")
    assert run(out, "127.0.0.1:9", folder).exception.exit_status == 3  # type: ignore[union-attr]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert run(out, url, folder).exit_code == 0
    assert figures(out) == {"a.jpg": "0.900000"}
    assert set(before) == {path.name for path in tmp_path.iterdir() if path.is_file()}
