import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from dermserve import image
from dermserve.errors import StartupError
from training import pixels
from training.data_commands import data


@pytest.fixture
def paths(own_isic: Path) -> list[Path]:
    return sorted((own_isic / "isic2020/train").iterdir())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item for each image that is prepared."""
    made: list[int] = []
    prepare = image.prepare
    image.preprocessing_hash(remove_artifacts=False)  # prepares its probes, once

    def counted(data: bytes, **options: Any) -> image.Prepared:
        made.append(len(data))
        return prepare(data, **options)

    monkeypatch.setattr(image, "prepare", counted)
    return made


def test_the_cache_holds_what_prepare_makes_and_is_made_once(
    paths: list[Path], tmp_path: Path, calls: list[int]
) -> None:
    made = pixels.prepared(paths, tmp_path / "cache")
    assert made.shape == (36, 300, 300, 3)
    for i in (0, 17, 35):
        assert np.array_equal(made[i], image.prepare(paths[i].read_bytes()).pixels)
    calls.clear()
    assert np.array_equal(pixels.prepared(paths, tmp_path / "cache")[35], made[35])
    assert not calls
    leftovers = [path.name for path in (tmp_path / "cache").iterdir() if path.suffix not in {".npy", ".lock"}]
    assert not leftovers


def test_a_copy_elsewhere_with_other_times_finds_it_and_a_changed_image_does_not(
    paths: list[Path], tmp_path: Path, calls: list[int]
) -> None:
    cache = tmp_path / "cache"
    pixels.prepared(paths, cache)
    copies = [tmp_path / "copy" / path.name for path in paths]
    copies[0].parent.mkdir()
    for path, copy in zip(paths, copies, strict=True):
        copy.write_bytes(path.read_bytes())
        os.utime(copy, (1, 1))
    calls.clear()
    pixels.prepared(copies, cache)
    assert not calls
    copies[3].write_bytes(paths[4].read_bytes())
    assert np.array_equal(pixels.prepared(copies, cache)[3], image.prepare(paths[4].read_bytes()).pixels)
    assert len(calls) == 37


def test_a_cache_named_the_former_way_is_found_and_outlives_new_times(
    paths: list[Path], tmp_path: Path, calls: list[int]
) -> None:
    made = pixels.prepared(paths, tmp_path / "new")
    former = tmp_path / "cache" / f"prepared-{pixels._key(paths, False)}.npy"
    former.parent.mkdir()
    np.save(former, np.asarray(made))
    calls.clear()
    pixels.prepared(paths, former.parent)
    for path in paths:
        os.utime(path, (1, 1))
    pixels.prepared(paths, former.parent)
    assert not calls


def test_after_sigkill_it_goes_on_where_it_was(paths: list[Path], tmp_path: Path, calls: list[int]) -> None:
    code = f"""
import os, signal
from pathlib import Path
from dermserve import image
from training import pixels
prepare, made, pixels._FLUSH_EVERY = image.prepare, [], 5
image.preprocessing_hash(remove_artifacts=False)
def counted(data, **options):
    made.append(1)
    if len(made) == 18:
        os.kill(os.getpid(), signal.SIGKILL)
    return prepare(data, **options)
image.prepare = counted
pixels.prepared([Path(path) for path in {[str(path) for path in paths]!r}], Path({str(tmp_path / "cache")!r}), workers=1)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(pixels.__file__).parents[1], check=False)
    assert killed.returncode == -signal.SIGKILL
    partial = next((tmp_path / "cache").glob("*.partial.npy")).stat()
    assert partial.st_blocks * 512 >= partial.st_size, "a full disk would end in a bus error"
    made = pixels.prepared(paths, tmp_path / "cache")
    assert len(calls) == 36 - 15
    for i, path in enumerate(paths):
        assert np.array_equal(made[i], image.prepare(path.read_bytes()).pixels), i


def test_two_at_a_time_make_it_once(paths: list[Path], tmp_path: Path, calls: list[int]) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: pixels.prepared(paths, tmp_path / "cache"), range(2))
    assert np.array_equal(first[7], second[7])
    assert len(calls) == 36


@pytest.mark.parametrize("former", [False, True])
def test_two_at_a_time_link_to_it_once(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, former: bool
) -> None:
    cache = tmp_path / "cache"
    pixels.prepared(paths, cache)
    link = next(path for path in cache.glob("*.npy") if path.is_symlink())
    if former:
        link.resolve().rename(link)
    else:
        link.unlink()
    symlink_to = Path.symlink_to

    def slow(path: Path, target: str) -> None:
        time.sleep(0.3)
        symlink_to(path, target)

    monkeypatch.setattr(Path, "symlink_to", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: pixels.prepared(paths, cache), range(2))
    assert np.array_equal(first[7], second[7])


@pytest.mark.parametrize("size", [0, 50, 5_000_000])
def test_a_partial_array_that_is_not_whole_is_made_anew(
    paths: list[Path], tmp_path: Path, calls: list[int], size: int
) -> None:
    cache = tmp_path / "cache"
    made = np.array(pixels.prepared(paths, cache))
    file = next(path for path in cache.glob("*.npy") if not path.is_symlink())
    partial = file.with_suffix(".partial.npy")
    partial.write_bytes(file.read_bytes()[:size])
    partial.with_suffix("").with_suffix(".done").write_bytes(bytes([1] * 36))
    for path in cache.glob("prepared-*.npy"):
        if path != partial:
            path.unlink()
    calls.clear()
    assert np.array_equal(pixels.prepared(paths, cache), made)
    assert len(calls) == 36


def test_a_full_disk_is_told_before_anything_is_made(
    paths: list[Path], tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StartupError, match=r"cannot take 0\.0 GB of pixels: No space left"):
        pixels.prepared(paths, tmp_path / "cache")
    assert not calls
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}


@pytest.mark.parametrize("fault", ["folder", "dangling link"])
def test_a_file_that_cannot_be_read_is_named(paths: list[Path], tmp_path: Path, fault: str) -> None:
    paths[2].unlink()
    if fault == "folder":
        paths[2].mkdir()
    else:
        paths[2].symlink_to("nowhere.jpg")
    with pytest.raises(StartupError, match=f"{paths[2].name} cannot be read: "):
        pixels.prepared(paths, tmp_path / "cache")


def test_a_damaged_image_is_named(paths: list[Path], tmp_path: Path) -> None:
    content = paths[2].read_bytes()
    paths[2].unlink()  # a hard link to the fixture's
    paths[2].write_bytes(content[:-100])
    with pytest.raises(StartupError, match=paths[2].name):
        pixels.prepared(paths, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_the_command_makes_what_training_asks_for(own_isic: Path, tmp_path: Path, calls: list[int]) -> None:
    from training import datasets, splits

    cache = tmp_path / "cache"
    result = CliRunner().invoke(data, ["prepare", str(own_isic), "--cache", str(cache)])
    assert result.exit_code == 0, result.output
    assert "training and validation: 116 images" in result.output
    parts = splits.split(datasets.read(own_isic), seed=0)
    calls.clear()
    pixels.prepared([record.path for record in (*parts.train, *parts.validation)], cache)
    assert not calls
