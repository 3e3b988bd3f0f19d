import hashlib
import itertools
import pickle

import numpy as np
import pytest

from benchmarks.images import endless, pictures, stamped
from dermserve import image, sample
from dermserve.errors import StartupError


@pytest.fixture(scope="module")
def lesion():
    return sample.jpeg(0)


def test_a_stamp_changes_the_bytes_and_not_one_pixel(lesion):
    marked = stamped(lesion, "number 7")

    assert marked != lesion
    assert b"number 7" in marked
    assert np.array_equal(image.decode(marked), image.decode(lesion))


def test_a_stamp_leaves_the_jfif_header_first(lesion):
    marked = stamped(lesion, "x")

    assert marked[:4] == lesion[:4] == b"\xff\xd8\xff\xe0"


def test_no_two_files_of_a_run_or_of_two_runs_are_alike(lesion):
    files = [*itertools.islice(endless([lesion]), 50), *itertools.islice(endless([lesion]), 50)]

    assert len({hashlib.sha256(file).digest() for file in files}) == 100


@pytest.mark.parametrize(("data", "text"), [(b"\x89PNG\r\n\x1a\n", "x"), (b"\xff\xd8\xff\xd9", "x" * 70_000)])
def test_what_cannot_hold_a_stamp_is_refused(data, text):
    with pytest.raises(ValueError, match=r"JPEG|bytes"):
        stamped(data, text)


def test_a_copy_in_another_process_begins_a_run_of_its_own(lesion):
    files = endless([lesion])

    copy = pickle.loads(pickle.dumps(files))

    assert next(copy) != next(files)


def test_a_folder_gives_its_jpegs_and_is_named_without_its_path(lesion, tmp_path):
    (tmp_path / "b.jpg").write_bytes(lesion)
    (tmp_path / "a.JPEG").write_bytes(lesion + b"\0")
    (tmp_path / "notes.txt").write_text("no picture")

    found = pictures(tmp_path)

    assert found.files == [lesion + b"\0", lesion]
    assert found.source.startswith(f"2 JPEGs of {tmp_path.name}/")


def test_a_folder_without_a_jpeg_is_refused(tmp_path):
    with pytest.raises(StartupError, match="no JPEG"):
        pictures(tmp_path)
