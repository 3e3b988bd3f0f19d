"""Large JPEGs are decoded at a reduced size; nothing else about them changes, and nothing at all about smaller ones."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from dermserve import crop, image, jpeg, sample
from dermserve.errors import ImageUndecodable
from dermserve.model_card import ModelCard
from dermserve.settings import Settings
from tests.dermserve.encoded import corners, dicom, encode, swapped_profile
from tests.dermserve.test_image import assert_upright

TRAINED_WITH = "4e868b8fae1f31214334321a6d88e24db4d897c9b36af56322887ed00cf3eaa8"
"""The hash in the card of the committed weights when they were trained: over the two smaller probes alone."""

EVERY_25TH = "572536d779766f2ea13737e0173bdfb1c2ece8a04e1723fed632ee0989a841cc"
"""Of every 25th image of ../shared/data, prepared by the code that trained the committed weights (commit ade1483)."""


def lesion(width: int, height: int, **options: object) -> bytes:
    """A drawn lesion at the size of a photograph, with the noise of a sensor."""
    drawn = np.asarray(Image.fromarray(sample.draw(1)).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(0).normal(0, 4, drawn.shape)
    return encode(np.clip(drawn + noise, 0, 255).astype(np.uint8), quality=90, subsampling=2, **options)


def round_view(width: int, height: int, share: float) -> np.ndarray:
    """A light disc on black, `share` of the height wide."""
    rows, columns = np.mgrid[:height, :width]
    inside = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (share * height / 2) ** 2
    return np.where(inside[..., None], np.array((210, 170, 150), np.uint8), np.uint8(3))


@pytest.fixture
def divisors(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """By how much each decoding divided the sides."""
    seen: list[int] = []
    whole = jpeg.decode

    def watched(data: bytes, divisor: int = 1, profile: bytes | None = None) -> np.ndarray:
        pixels = whole(data, divisor, profile)
        width, height = jpeg.dimensions(data)
        assert sorted(pixels.shape[:2]) == sorted((-(-height // divisor), -(-width // divisor)))
        seen.append(divisor)
        return pixels

    monkeypatch.setattr(jpeg, "decode", watched)
    return seen


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (600, 450, 1),
        (1024, 768, 1),
        (1600, 1199, 1),
        (1600, 1200, 2),
        (3000, 2000, 2),
        (4000, 3000, 4),
        (5001, 4801, 8),
    ],
)
def test_a_photograph_is_decoded_as_small_as_twice_the_network_s_side_allows(
    divisors: list[int], width: int, height: int, expected: int
) -> None:
    image.prepare(encode(Image.new("RGB", (width, height), (200, 160, 150)), quality=50, subsampling=2))
    assert divisors == [expected]


@pytest.mark.parametrize(
    ("width", "height", "share", "expected"),
    # Of a disc the crop keeps 87 %: 630, 504 and 272 pixels at a quarter of the size.
    [(3200, 2900, 1.0, [4]), (3200, 2900, 0.8, [4, 2]), (3000, 2500, 0.5, [4, 1])],
)
def test_a_small_round_view_is_decoded_again_at_a_larger_size(
    divisors: list[int], width: int, height: int, share: float, expected: list[int]
) -> None:
    view = encode(round_view(width, height, share), quality=80)
    found = image.prepare(view).region
    assert divisors == expected
    assert found == pytest.approx(image.fit(image.decode(view)).region, abs=0.01)
    kept = min((found.right - found.left) * width, (found.bottom - found.top) * height) / expected[-1]
    assert expected[-1] == 1 or kept >= 599


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_the_reduced_picture_is_the_whole_one_within_a_few_grey_levels(
    divisors: list[int], options: dict[str, object]
) -> None:
    data = lesion(3600, 2700, **options)
    reduced, whole = image.prepare(data), image.fit(image.decode(data))
    assert divisors == [4, 1]
    assert reduced.region == pytest.approx(whole.region, abs=0.01)
    difference = np.abs(reduced.pixels.astype(int) - whole.pixels)
    assert difference.max() <= 8
    assert difference.mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_large_pictures_stand_upright_too(divisors: list[int], orientation: int) -> None:
    turn = [None, None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_270][orientation]  # fmt: skip
    stored = Image.fromarray(corners(1300, 1500))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_upright(image.prepare(encode(stored if turn is None else stored.transpose(turn), exif=exif)).pixels)
    assert divisors == [2]


def test_a_large_picture_s_colour_profile_is_applied() -> None:
    red = image.prepare(encode(np.full((1300, 1500, 3), (200, 60, 60), np.uint8), icc_profile=swapped_profile()))
    assert red.pixels[0, 0, 2] > 150 > red.pixels[0, 0, 0], "red and blue are exchanged by this profile"


def test_a_jpeg_inside_dicom_is_prepared_like_the_jpeg_itself(divisors: list[int]) -> None:
    pixels = np.asarray(Image.fromarray(sample.draw(2)).resize((1700, 1300)))
    inside, bare = image.prepare(dicom(pixels, jpeg=True)), image.prepare(encode(pixels, subsampling=1))
    assert np.array_equal(inside.pixels, bare.pixels)
    assert divisors == [2, 2]


def test_large_grey_and_cmyk_jpegs_are_accepted() -> None:
    large = Image.fromarray(corners(1300, 1500))
    assert_upright(image.prepare(encode(large.convert("CMYK"), "JPEG")).pixels, tolerance=12)
    assert image.prepare(encode(large.convert("L"), "JPEG")).pixels.std() > 5


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 4}])
def test_damage_is_judged_alike_at_every_size(options: dict[str, object]) -> None:
    data = lesion(1300, 1250, **options)
    scan = data.index(b"\xff\xda") + 14
    rng = np.random.default_rng(4)
    refused = 0
    for kind in ("cut", "cut and closed", "overwritten", "ended early") * 3:
        damaged, at = bytearray(data), int(rng.integers(scan, len(data) - 600))
        if kind == "overwritten":
            damaged[at : at + 300] = rng.integers(0, 255, 300, dtype=np.uint8).tobytes()
        elif kind == "ended early":
            damaged[at : at + 2] = b"\xff\xd9"
        else:
            damaged[at:] = b"\xff\xd9" if kind == "cut and closed" else b""
        outcomes = {_outcome(bytes(damaged), divisor) for divisor in (1, 2, 4, 8)}
        assert len(outcomes) == 1, (kind, at)
        refused += outcomes == {"refused"}
        if outcomes == {"refused"}:
            with pytest.raises(ImageUndecodable):
                image.prepare(bytes(damaged))
    assert refused >= 9


def _outcome(data: bytes, divisor: int) -> str:
    try:
        jpeg.decode(data, divisor)
    except Exception:
        return "refused"
    return "accepted"


def test_the_committed_weights_were_trained_by_what_smaller_images_still_get() -> None:
    """The hash grew by two large probes; over the two that it had, it must be what the weights were trained with."""
    assert image._digest(("probe.jpg", "probe.png"), remove_artifacts=False) == TRAINED_WITH
    assert ModelCard.read(Settings().model_repository).preprocessing == image.preprocessing_hash()


def test_real_images_are_prepared_to_the_very_pixels_of_training(shared_data) -> None:
    files = sorted(path for path in shared_data.rglob("*") if path.suffix == ".jpg")
    assert len(files) == 13_926
    digest = hashlib.sha256()
    for file in files[::25]:
        pixels, region = image.prepare(file.read_bytes())
        digest.update(pixels.tobytes() + np.asarray(region, "<f8").tobytes())
    assert digest.hexdigest() == EVERY_25TH


@pytest.mark.parametrize(("module", "name", "value"), [(image, "LEAST_SIDE", 900), (crop, "_LEAST_KEPT", 1.0)])
def test_the_hash_covers_the_reduction(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, value: float
) -> None:
    before = image.preprocessing_hash()
    monkeypatch.setattr(module, name, value)
    assert image.preprocessing_hash.__wrapped__() != before
