from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result

from dermserve.errors import ImageUndecodable, InferenceUnavailable, RequestInvalid
from dermserve.model_card import ModelCard
from dermserve.predict import inputs, patience, predict
from dermserve.predict.doors import addresses
from dermserve.predict.journal import Journal
from dermserve.predict.outcome import Item
from dermserve.predict.tables import errors_path
from dermserve.settings import Settings
from tests.dermserve.test_client import answering, failing, healthy, serving

HEADER = "filename,Benign,Suspicious,Malignant,Melanoma\n"
EARLIER = HEADER + "old.jpg,0.1,0.2,0.7,0.6\n"
EARLIER_ERRORS = "filename,code,detail\nold.png,image_empty,x\n"
DEAD = "127.0.0.1:9"


def run(folder: Path, out: Path, url: str, *options: str) -> Result:
    return CliRunner().invoke(predict, [str(folder), "--csv", str(out), "--url", url, *options])


def rows(path: Path) -> list[list[str]]:
    return list(csv.reader(path.open(newline="", encoding="utf-8")))[1:]


def images(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dermserve.predict.pace._FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr("dermserve.predict.pace._LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr("dermserve.retries._RETRY_FOR_S", 0.3)
    monkeypatch.setattr(patience, "_START_S", 0.3)


def find_inputs(paths: Sequence[Path]) -> list[Item]:
    """The inputs of some PATHs, as a new journal has them."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal")
        try:
            inputs.enlist(journal, inputs.sources(list(map(str, paths)), []))
            return journal.pending(0)
        finally:
            journal.close()


def test_inputs_keep_the_order_given_and_folders_are_read_by_name(tmp_path: Path) -> None:
    for name in ("in/b.jpg", "in/a.PNG", "in/deep/c.dcm", "in/notes.txt", "z.jpeg", "anything"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_inputs([tmp_path / "z.jpeg", tmp_path / "in", tmp_path / "anything"])
    assert [item.name for item in found] == ["z.jpeg", "a.PNG", "b.jpg", "deep/c.dcm", "anything"]


def test_two_inputs_of_one_name_are_refused_rather_than_mixed_up(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").touch()
    with pytest.raises(RequestInvalid, match=r"would both be called 'a\.jpg'"):
        find_inputs([tmp_path / "one", tmp_path / "two"])


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestInvalid, match="holds no image"):
        find_inputs([tmp_path])


@pytest.mark.parametrize(
    ("given", "expected"),
    [("out.csv", "out.errors.csv"), ("a/b.x.csv", "a/b.x.errors.csv"), ("rows", "rows.errors.csv")],
)
def test_errors_stand_beside_the_output(given: str, expected: str) -> None:
    assert errors_path(Path(given)) == Path(expected)


@pytest.mark.parametrize("url", ["http://localhost:8000,http://localhost:8001/", "localhost", ","])
def test_an_address_that_is_not_host_and_port_is_refused(url: str) -> None:
    with pytest.raises(RequestInvalid):
        addresses(url)


@pytest.mark.parametrize("options", [(), ("--resume",)], ids=["anew", "resumed"])
@pytest.mark.parametrize("name", ["out.csv", "out.errors.csv", "out.abstained.csv"])
@pytest.mark.parametrize("content", [b"name,born\nx,1\n", b"a note without an end", b"\xff\xfe\x00\n"])
def test_a_file_of_another_kind_is_never_changed(
    tmp_path: Path, content: bytes, name: str, options: tuple[str, ...]
) -> None:
    folder = images(tmp_path / "in", "a.jpg")
    (tmp_path / name).write_bytes(content)
    with serving(healthy) as url:
        result = run(folder, tmp_path / "out.csv", url, *options)
    assert isinstance(result.exception, RequestInvalid)
    assert f"{name} is not a file that this command wrote; nothing was changed." in result.exception.detail
    assert (tmp_path / name).read_bytes() == content


def earlier(tmp_path: Path) -> tuple[Path, Path]:
    out, errors = tmp_path / "out.csv", tmp_path / "out.errors.csv"
    out.write_text(EARLIER)
    errors.write_text(EARLIER_ERRORS)
    return out, errors


def test_a_dead_server_does_not_cost_the_earlier_results(tmp_path: Path) -> None:
    folder, (out, errors) = images(tmp_path / "in", "b.jpg"), earlier(tmp_path)
    (folder / "a.jpg").symlink_to("/proc/self/mem")  # reading it at 0 is a real EIO
    result = run(folder, out, DEAD)
    assert isinstance(result.exception, InferenceUnavailable)
    assert "No Triton answers at 127.0.0.1:9" in result.exception.detail
    assert "Nothing was written." in result.exception.detail
    assert (out.read_text(), errors.read_text()) == (EARLIER, EARLIER_ERRORS)


def test_a_run_that_succeeds_replaces_the_earlier_results_and_refusals(tmp_path: Path) -> None:
    folder, (out, errors) = images(tmp_path / "in", "a.jpg", "b.jpg"), earlier(tmp_path)
    with serving(healthy) as url:
        assert run(folder, out, url).exit_code == 0
    assert out.read_text() == HEADER + "".join(f"{name}.jpg{',0.250000' * 4}\n" for name in "ab")
    assert not errors.exists()


@pytest.mark.parametrize("existing", [True, False])
def test_a_run_whose_images_are_all_refused_leaves_a_header_and_the_refusals(tmp_path: Path, existing: bool) -> None:
    folder, out, errors = images(tmp_path / "in", "a.jpg"), tmp_path / "out.csv", tmp_path / "out.errors.csv"
    if existing:
        earlier(tmp_path)
    line = ImageUndecodable("cut").wire(0)
    with serving(failing(grpc.StatusCode.INVALID_ARGUMENT, line, 9, [])) as url:
        result = run(folder, out, url)
    assert result.exit_code == 1
    assert out.read_text() == HEADER
    assert rows(errors) == [["a.jpg", "image_undecodable", "cut"]]


def test_an_earlier_run_is_continued_behind_its_last_whole_row(tmp_path: Path) -> None:
    folder, (out, errors) = images(tmp_path / "in", "new.jpg", "old.jpg", "old.png"), earlier(tmp_path)
    out.write_text(EARLIER + "new.jpg,0.1")
    with serving(healthy) as url:
        result = run(folder, out, url, "--resume")
    assert "2 of 3 images are done already." in result.output
    assert [row[0] for row in rows(out)] == ["old.jpg", "new.jpg"]
    assert errors.read_text() == EARLIER_ERRORS


def odd(request: Any, context: grpc.ServicerContext) -> Any:
    """An image whose bytes say so is far from the training images."""
    return answering(request, 0.25, 99.0 if b"odd" in request.raw_input_contents[0] else 0.5)


def test_an_image_that_is_abstained_on_has_a_row_and_is_named_beside(tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", "a.jpg", "odd.jpg"), tmp_path / "out.csv"
    with serving(odd) as url:
        result = run(folder, out, url)
    assert result.exit_code == 0
    assert f"2 rows in {out}, 1 of them abstained on, see {tmp_path / 'out.abstained.csv'}" in result.output
    threshold = ModelCard.read(Settings().model_repository).ood.thresholds["ood"]
    assert rows(tmp_path / "out.abstained.csv") == [["odd.jpg", "99.000000", f"{threshold:.6f}"]]
    assert [row[0] for row in rows(out)] == ["a.jpg", "odd.jpg"]


def test_an_interruption_behind_the_mark_neither_loses_nor_doubles_it(tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", "odd.jpg", "odd2.jpg"), tmp_path / "out.csv"
    abstained = tmp_path / "out.abstained.csv"
    abstained.write_text("filename,ood,threshold\nodd.jpg,99.000000,1.000000\n")
    with serving(odd) as url:
        assert run(folder, out, url, "--resume").exit_code == 0
    assert [row[0] for row in rows(abstained)] == ["odd.jpg", "odd2.jpg"]
    with serving(healthy) as url:
        assert run(folder, out, url).exit_code == 0
    assert abstained.read_text() == "filename,ood,threshold\n"


def test_a_mark_without_a_row_goes_where_the_image_is_refused_in_the_end(tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", "odd.jpg"), tmp_path / "out.csv"
    abstained = tmp_path / "out.abstained.csv"
    abstained.write_text("filename,ood,threshold\nodd.jpg,99.000000,1.000000\n")
    line = ImageUndecodable("cut").wire(0)
    with serving(failing(grpc.StatusCode.INVALID_ARGUMENT, line, 9, [])) as url:
        assert run(folder, out, url, "--resume").exit_code == 1
    assert rows(abstained) == []
    assert [row[0] for row in rows(tmp_path / "out.errors.csv")] == ["odd.jpg"]


@pytest.mark.parametrize("journal", [True, False])
def test_marks_outlive_a_model_card_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: bool
) -> None:
    folder, out = images(tmp_path / "in", "a.jpg", "odd.jpg"), tmp_path / "out.csv"
    with serving(odd) as url:
        run(folder, out, url)
        marked = (tmp_path / "out.abstained.csv").read_text()
        assert "odd.jpg,99.000000," in marked
        (folder / "b.jpg").write_bytes(b"b")
        monkeypatch.setenv("DERMSERVE_MODEL_REPOSITORY", str(tmp_path))
        if not journal:
            (tmp_path / "out.csv.journal").unlink()
        assert run(folder, out, url, "--resume").exit_code == 0
    assert (tmp_path / "out.abstained.csv").read_text() == marked
    assert [row[0] for row in rows(out)] == ["a.jpg", "odd.jpg", "b.jpg"]


def test_rows_that_were_kept_unchecked_are_told(tmp_path: Path) -> None:
    folder, (out, _) = images(tmp_path / "in", "a.jpg"), earlier(tmp_path)
    with serving(odd) as url:
        result = run(folder, out, url, "--resume")
    assert "Whether the 1 rows that are kept mean anything was not looked at" in result.output
    assert not (tmp_path / "out.abstained.csv").exists()


def test_without_a_model_card_the_scores_are_written_and_a_line_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DERMSERVE_MODEL_REPOSITORY", str(tmp_path))
    folder, out = images(tmp_path / "in", "odd.jpg"), tmp_path / "out.csv"
    with serving(odd) as url:
        result = run(folder, out, url)
    assert result.exit_code == 0
    assert "no threshold is known: There is no model card" in result.output
    assert len(rows(out)) == 1
    assert not (tmp_path / "out.abstained.csv").exists()


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    result = run(images(tmp_path / "in", "a.jpg"), tmp_path / "gone/out.csv", DEAD)
    assert isinstance(result.exception, RequestInvalid)
    assert f"there is no folder {tmp_path}/gone" in result.exception.detail


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out.csv").symlink_to("/dev/full")
    with serving(healthy) as url:
        result = run(images(tmp_path / "in", "a.jpg"), tmp_path / "out.csv", url)
    assert isinstance(result.exception, RequestInvalid)
    assert "cannot be written: No space left on device" in result.exception.detail


def test_files_that_cannot_be_read_are_rows_and_the_run_goes_on(tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", "a.jpg", "c.jpg", "d.jpg"), tmp_path / "out.csv"
    (folder / "b.jpg").symlink_to("/proc/self/mem")

    def lose_the_last(request: Any, context: grpc.ServicerContext) -> Any:
        (folder / "d.jpg").unlink(missing_ok=True)
        return healthy(request, context)

    with serving(lose_the_last) as url:
        result = run(folder, out, url, "--concurrency", "1")
    assert result.exit_code == 1, result.exception
    assert [row[0] for row in rows(out)] == ["a.jpg", "c.jpg"]
    assert rows(tmp_path / "out.errors.csv") == [
        ["b.jpg", "image_unreadable", "The file cannot be read: Input/output error."],
        ["d.jpg", "image_unreadable", "The file cannot be read: No such file or directory."],
    ]


def test_links_that_lead_nowhere_are_rows(tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", "a.jpg"), tmp_path / "out.csv"
    (folder / "b.jpg").symlink_to("b.jpg")
    (folder / "c.jpg").symlink_to("gone.jpg")
    with serving(healthy) as url:
        assert run(folder, out, url).exit_code == 1
    assert rows(tmp_path / "out.errors.csv") == [
        ["b.jpg", "image_unreadable", "The file cannot be read: Too many levels of symbolic links."],
        ["c.jpg", "image_unreadable", "The file cannot be read: No such file or directory."],
    ]


def test_a_name_that_is_no_utf8_is_written_escaped_and_found_again(tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in"), tmp_path / "out.csv"
    (folder / os.fsdecode(b"l\xe4sion.jpg")).write_bytes(b"x")
    (folder / "läsion.jpg").write_bytes(b"x")
    with serving(healthy) as url:
        assert run(folder, out, url).exit_code == 0
        resumed = run(folder, out, url, "--resume")
    assert sorted(row[0] for row in rows(out)) == ["l\\xe4sion.jpg", "läsion.jpg"]
    assert "2 of 2 images are done already." in resumed.output


def test_help_shows_examples() -> None:
    assert "dermserve predict lesions/ --csv out.csv" in CliRunner().invoke(predict, ["--help"]).output
