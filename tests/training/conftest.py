"""A tiny ISIC 2019 + 2020 folder in the official layouts, drawn on the spot."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CODES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")


def draw(path: Path, seed: int, melanoma: bool) -> None:
    """A blob on skin; melanomas are darker, so that a network has something to learn."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :64]
    blob = np.exp(-(((x - 32) / rng.uniform(8, 14)) ** 2 + ((y - 24) / rng.uniform(8, 12)) ** 2))
    depth = (150 if melanoma else 60) + rng.uniform(-20, 20)
    pixels = np.array([220, 180, 160]) - depth * blob[..., None] + rng.normal(0, 4, (48, 64, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_2019(root: Path, lesions: int = 40) -> None:
    """Two images a lesion; every fourth lesion is a melanoma, every second image has a `_downsampled` id."""
    truth, metadata = [], []
    for i in range(2 * lesions):
        lesion = i // 2
        code = "MEL" if lesion % 4 == 0 else CODES[1 + lesion % 7]
        name = f"ISIC_{i:07d}" + ("_downsampled" if i % 2 else "")
        truth.append({"image": name} | {other: float(other == code) for other in CODES})
        prefix = "HAM_" if lesion % 2 else "MSK4_"
        metadata.append(
            {"image": name, "age_approx": 50, "anatom_site_general": "", "lesion_id": f"{prefix}{lesion}", "sex": ""}
        )
        draw(root / "ISIC_2019_Training_Input" / f"{name}.jpg", i, code == "MEL")
    write(root / "ISIC_2019_Training_GroundTruth.csv", truth)
    write(root / "ISIC_2019_Training_Metadata.csv", metadata)


def make_2020(root: Path, patients: int = 12) -> None:
    """Three images a patient; the first image of every second patient is a melanoma."""
    rows = []
    for i in range(3 * patients):
        patient, melanoma = i // 3, i % 6 == 0
        diagnosis = "melanoma" if melanoma else ("nevus", "unknown")[i % 2]
        name = f"ISIC_{9000000 + i}"
        rows.append(
            {
                "image_name": name,
                "patient_id": f"IP_{patient}",
                "sex": "",
                "age_approx": "",
                "anatom_site_general_challenge": "",
                "diagnosis": diagnosis,
                "benign_malignant": "malignant" if melanoma else "benign",
                "target": int(melanoma),
            }
        )
        draw(root / "train" / f"{name}.jpg", 1000 + i, melanoma)
    write(root / "train.csv", rows)
    # Patients 0 and 1 share a picture, and so do a lesion of 2019 and patient 5.
    pairs = [("ISIC_9000000", "ISIC_9000003"), ("ISIC_0000000", "ISIC_9000015"), ("ISIC_1", "ISIC_2")]
    write(root / "ISIC_2020_Training_Duplicates.csv", [{"image_name_1": a, "image_name_2": b} for a, b in pairs])


@pytest.fixture(scope="session")
def isic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 images of 2019 (sources HAM10000 and ISIC2017) and 36 of 2020. Read only: copy before changing."""
    root = tmp_path_factory.mktemp("isic")
    make_2019(root / "isic2019")
    make_2020(root / "isic2020")
    return root


@pytest.fixture
def own_isic(isic: Path, tmp_path: Path) -> Path:
    """A copy of `isic` that a test may damage (tables are copied, images linked)."""
    for path in isic.rglob("*.*"):
        target = tmp_path / "isic" / path.relative_to(isic)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            target.write_bytes(path.read_bytes())
        else:
            target.hardlink_to(path)
    return tmp_path / "isic"
