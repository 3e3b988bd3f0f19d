from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from dermserve.errors import RequestInvalid
from dermserve.predict import _addresses, errors_path, find_inputs, predict


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


@pytest.mark.parametrize("url", ["http://localhost:8000", "localhost", ","])
def test_an_address_that_is_not_host_and_port_is_refused(url: str) -> None:
    with pytest.raises(RequestInvalid):
        _addresses(url)


def test_resuming_into_a_file_of_another_kind_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    out = tmp_path / "patients.csv"
    out.write_text("name,born\nx,1\n")
    result = CliRunner().invoke(predict, [str(tmp_path), "--csv", str(out), "--resume"])
    assert isinstance(result.exception, RequestInvalid)
    assert out.read_text() == "name,born\nx,1\n"


def test_help_shows_examples() -> None:
    assert "dermserve predict lesions/ --csv out.csv" in CliRunner().invoke(predict, ["--help"]).output
