"""Which images a call names, and what the tables call them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dermserve.errors import RequestInvalid
from dermserve.predict import predict
from dermserve.predict.inputs import SUFFIXES, enlist, sources
from dermserve.predict.journal import Journal
from dermserve.settings import REPOSITORY_ROOT
from tests.dermserve.test_client import serving
from tests.dermserve.test_predict_resume import by_content, figures


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "s/2/b.jpg",
        "s/2/a.png",
        "s/1/c.dcm",
        "s/1/deep/d.JPG",
        "s/1.jpg",
        "s/notes.txt",
        "s/10/e.jpeg",
        "s/2/IM0001",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("0.5")
    return tmp_path


def names(paths: list[str], lists: tuple[str, ...] = (), journal: Path = Path("journal")) -> list[str]:
    one = Journal(journal)
    try:
        enlist(one, sources(paths, lists))
        return [item.name for item in one.pending(0)]
    finally:
        one.close()


def test_a_folder_is_ordered_as_its_paths_are(tree: Path) -> None:
    found = names(["s"])
    assert found == [
        str(path.relative_to("s")) for path in sorted(Path("s").rglob("*")) if path.suffix.lower() in SUFFIXES
    ]
    assert found == ["1/c.dcm", "1/deep/d.JPG", "1.jpg", "10/e.jpeg", "2/a.png", "2/b.jpg"]


@pytest.mark.parametrize(("pattern", "found"), [
    ("s/*/*.jpg", ["2/b.jpg"]),
    ("s/?", ["1/c.dcm", "1/deep/d.JPG", "2/a.png", "2/b.jpg"]),
    ("s/**", ["1/c.dcm", "1/deep/d.JPG", "1.jpg", "10/e.jpeg", "2/a.png", "2/b.jpg"]),
    ("s/*", ["1/c.dcm", "1/deep/d.JPG", "1.jpg", "10/e.jpeg", "2/a.png", "2/b.jpg"]),
    ("s/*.txt", ["notes.txt"]),
    ("s/**/IM*", ["2/IM0001"]),
    ("[s]/2/*", ["s/2/a.png", "s/2/b.jpg"]),
])  # fmt: skip
def test_patterns(tree: Path, pattern: str, found: list[str]) -> None:
    assert names([pattern]) == found


def test_a_pattern_without_a_match_and_a_path_that_is_not_there(tree: Path) -> None:
    with pytest.raises(RequestInvalid, match=r"s/\*\.bmp matches no image"):
        names(["s/*.bmp"])
    with pytest.raises(click.UsageError, match="'gone' does not exist"):
        names(["gone"])


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tree: Path) -> None:
    Path("s/[1].jpg").touch()
    assert names(["s/[1].jpg"]) == ["[1].jpg"]


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
@pytest.mark.parametrize("last", [True, False])
def test_lists_keep_their_order_and_their_words(tree: Path, separator: str, last: bool) -> None:
    wanted = [
        "s/2/b.jpg",
        "s/notes.txt",
        "s/with\nline.jpg" if separator == "\0" else "s/ä b.jpg",
        str(tree / "s/1.jpg"),
    ]
    Path("list").write_bytes((separator.join(wanted) + (separator if last else "")).encode())
    assert names(["s/2/a.png"], ("list",)) == ["a.png", *wanted]


def test_a_long_list_is_cut_nowhere(tree: Path) -> None:
    wanted = [f"folder-{'x' * (number % 97)}/{number}.jpg" for number in range(20_000)]
    Path("list").write_text("\n".join(wanted))
    one = Journal(Path("journal"))
    enlist(one, sources([], ["list"]))
    found, after = [], 0
    while page := one.pending(after):
        found += [item.name for item in page]
        after = page[-1].position
    one.close()
    assert found == wanted


@pytest.mark.parametrize(("paths", "message"), [
    (["s/2/a.png", "s/2/a.png"], "/s/2/a.png is given twice."),
    (["s", "s/1.jpg"], "/s/1.jpg is given twice."),
])  # fmt: skip
def test_the_same_image_twice_is_refused(tree: Path, paths: list[str], message: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        names(paths)
    assert message in caught.value.detail
    assert names(["s"]), "nothing of it was kept"


def test_a_list_and_an_image_on_stdin(tree: Path) -> None:
    out = tree / "out.csv"
    with serving(by_content) as url:
        listed = CliRunner().invoke(
            predict, ["--from-file", "-", "--csv", str(out), "--url", url], input="s/2/b.jpg\0s/1.jpg\0"
        )
        assert listed.exit_code == 0, listed.output
        assert list(figures(out)) == ["s/2/b.jpg", "s/1.jpg"]
        image = CliRunner().invoke(predict, ["-", "--csv", str(tree / "one.csv"), "--url", url], input="0.75")
        assert image.exit_code == 0, image.output
        assert figures(tree / "one.csv") == {"-": "0.750000"}


@pytest.mark.parametrize("arguments", [
    ["s"], ["--csv", "o.csv"], ["s", "--csv", "o.csv", "--jsonl", "o.csv"], ["s", "--watch", "s", "--csv", "o.csv"],
    ["-", "--from-file", "-", "--csv", "o.csv"], ["gone.jpg", "--csv", "o.csv"],
])  # fmt: skip
def test_a_call_that_makes_no_sense_is_usage(tree: Path, arguments: list[str]) -> None:
    assert CliRunner().invoke(predict, arguments).exit_code == 2
    assert not Path("o.csv.journal").exists()


def test_a_folder_that_cannot_be_listed_is_a_row(tree: Path) -> None:
    out = tree / "out.csv"
    command = [sys.executable, "-m", "dermserve", "predict", f"{tree}/s", "--csv", str(out)]
    if os.geteuid() == 0:  # who may list every folder otherwise
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--", *command]
    Path("s/1").chmod(0)
    try:
        with serving(by_content) as url:
            done = subprocess.run(
                [*command, "--url", url], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False
            )
    finally:
        Path("s/1").chmod(0o755)
    assert done.returncode == 1, done.stderr
    assert list(figures(out)) == ["1.jpg", "10/e.jpeg", "2/a.png", "2/b.jpg"]
    with (tree / "out.errors.csv").open() as file:
        assert file.read().splitlines()[1:] == ["1/,image_unreadable,The file cannot be read: Permission denied."]
    with serving(by_content) as url:
        again = CliRunner().invoke(predict, [f"{tree}/s", "--csv", str(out), "--url", url, "--resume"])
    assert again.exit_code == 0, again.output
    assert sorted(figures(out)) == sorted(["1.jpg", "10/e.jpeg", "2/a.png", "2/b.jpg", "1/c.dcm", "1/deep/d.JPG"])


def test_many_images_need_no_memory_for_each(tree: Path) -> None:
    script = (
        "from pathlib import Path; from dermserve.predict.inputs import SUFFIXES, enlist, sources\n"
        "from dermserve.predict.journal import Journal\n"
        "one = Journal(Path('journal')); enlist(one, sources([], ['list']))\n"
        # `getrusage` begins with the size of the process that starts this one.
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM:')))"
    )

    def peak_kb(count: int) -> int:
        Path("list").write_text("".join(f"archive/patient-{number:07d}/image.jpg\n" for number in range(count)))
        Path("journal").unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT)}
        return int(
            subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True).stdout
        )

    assert peak_kb(120_000) - peak_kb(20_000) < 30_000, "less than 300 bytes an image, cache and all"
