import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from dermserve.errors import DermserveError
from dermserve.image import prepare, preprocessing_hash
from dermserve.model_card import ModelCard
from training import adapt, batches, card, datasets, evaluate, splits
from training.commands import train
from training.config import Config
from training.inference import predict
from training.loop import Images
from training.model import create_model, load_checkpoint

TINY = [
    *("--preset", "quick", "--resolution", "32", "--epochs", "3"),
    *("--set", "architecture=test_efficientnet", "--set", "batch_size=16", "--set", "ema_decay=0.5"),
    *("--set", "bootstrap=20", "--set", "threads=1"),
]


def invoke(data: Path, out: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(train, ["--data", str(data), "--out", str(out), *arguments])
    if isinstance(result.exception, DermserveError):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def data(isic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`isic` with a test set beside it, made of copies under other ids."""
    root = tmp_path_factory.mktemp("data")
    shutil.copytree(isic, root, dirs_exist_ok=True)
    some = [record for record in datasets.read(isic).records if record.dataset == "isic2020"]
    (root / "external-test/images").mkdir(parents=True)
    lines = ["image,melanoma"]
    for record in some:
        name = record.name.replace("ISIC_9", "TEST_")
        shutil.copy(record.path, root / "external-test/images" / f"{name}.jpg")
        lines.append(f"{name},{int(record.leaf == 'MEL')}")
    (root / "external-test/labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    result = invoke(data, out, *TINY)
    assert result.exit_code == 0, result.output
    return out


def test_the_card_becomes_a_model_card_once_the_weights_are_exported(finished: Path) -> None:
    content = json.loads((finished / "card.json").read_text())
    card = ModelCard.model_validate(content | {"weights_sha256": "0" * 64})
    assert card.preprocessing == preprocessing_hash()
    assert set(card.operating_points) == {"sensitivity_95", "sensitivity_90", "balanced"}
    assert {"val", "external-test"} <= set(card.metrics)
    assert card.metrics["external-test"]["roc_auc"].images == 36
    assert card.training["images"] == {
        "train": 116 - card.metrics["val"]["roc_auc"].images,
        "val": card.metrics["val"]["roc_auc"].images,
    }
    assert [entry["name"] for entry in card.data] == ["HAM10000", "ISIC2017", "ISIC2020"]
    assert sum(entry["images"] for entry in card.data) == 116
    assert card.training["start"] == "random weights"
    text = " ".join(card.limits)
    for claim in ("Research use only", "V–VI", "random weights", "on a CPU", "116 of the 58,457", "reduced copies"):
        assert claim in text
    # The test set is made of copies of labelled images under other ids.
    for claim in ("36 of the 36 images of external-test", "of them one in training"):
        assert claim in text


def test_the_figures_in_the_card_are_those_of_the_weights(finished: Path, data: Path) -> None:
    card = json.loads((finished / "card.json").read_text())
    model, metadata = load_checkpoint(finished / "final.pt")
    assert metadata["temperature"] == card["temperature"]
    assert metadata["preprocessing"] == preprocessing_hash()
    parts = splits.split(datasets.read(data), seed=0)
    pixels = np.stack([prepare(record.path.read_bytes()).pixels for record in parts.validation])
    logits = predict(model, pixels, np.arange(len(pixels)), 300, torch.device("cpu"))
    scores = evaluate.softmax(logits, card["temperature"])[:, 0]
    truth = np.array([record.leaf == "MEL" for record in parts.validation])
    assert evaluate.roc_auc(truth, scores) == pytest.approx(card["metrics"]["val"]["roc_auc"]["value"])
    point = card["operating_points"]["sensitivity_95"]
    reached = (scores[truth] >= point["threshold"] - 1e-6).mean()
    assert reached == pytest.approx(point["sensitivity"]["value"])
    assert reached >= 0.95


def test_the_card_knows_the_images_and_what_was_measured_on_them(finished: Path, data: Path) -> None:
    content = json.loads((finished / "card.json").read_text())
    card = ModelCard.model_validate(content | {"weights_sha256": "0" * 64})
    parts = splits.split(datasets.read(data), seed=0)
    assert card.seen is not None
    train, validation = ([record.name for record in part] for part in (parts.train, parts.validation))
    assert card.seen.trained_on([*train, *validation]) == train
    assert card.seen.fixed_on([*train, *validation]) == validation
    assert set(card.evaluations) == set(card.metrics)
    assert card.evaluations["val"].role.startswith("validation")
    assert card.evaluations["external-test"].role.startswith("test")
    leaves = card.evaluations["val"].leaves
    assert leaves is not None
    assert sum(map(sum, leaves.confusion)) == len(validation)
    assert sum(leaves.confusion[0]) == sum(record.leaf == "MEL" for record in parts.validation)
    points = card.evaluations["val"].operating_points
    for name, point in card.operating_points.items():
        assert points[name].sensitivity == point.sensitivity
        assert points[name].threshold == point.threshold
    assert any(limit.startswith("Measured: ROC-AUC") for limit in card.limits)


def test_the_card_names_where_the_weights_began() -> None:
    about = {"inherited": {"steps": 3000, "side": 128, "images": 11220}}
    config = Config.model_validate(
        {"stages": [{"resolution": 32, "epochs": 1}], "pretrained": False, "initial_weights": "some/where/start.pt"}
    )
    text = card.start(config, about)
    for claim in (
        "ImageNet",
        "EfficientNet-Lite2",
        "distillation in 3,000 steps at 128 px",
        "Google, Apache-2.0",
        "start.pt",
    ):
        assert claim in text
    assert "some/where" not in text
    assert "another run" in card.start(config, {"temperature": 1.0})
    assert "ImageNet" not in card.start(config, {"temperature": 1.0})
    inherited = config.model_copy(update={"initial_weights": "runs/inherited.pt"})
    assert "EfficientNet-Lite2" in card.start(inherited, None)
    assert card.start(config.model_copy(update={"initial_weights": None}), None) == "random weights"
    assert "timm" in card.start(config.model_copy(update={"initial_weights": None, "pretrained": True}), None)


def test_the_resolved_configuration_lies_beside_the_weights(finished: Path) -> None:
    config = Config.model_validate_json((finished / "config.json").read_text())
    assert config.architecture == "test_efficientnet"
    assert [(stage.resolution, stage.epochs) for stage in config.stages] == [(32, 3)]


def test_a_second_run_needs_resume_and_then_only_finishes(finished: Path, data: Path) -> None:
    with pytest.raises(DermserveError, match="already holds a run: pass --resume"):
        invoke(data, finished, *TINY)
    before = torch.load(finished / "final.pt", weights_only=True)["state_dict"]
    (finished / "final.pt").unlink()
    assert invoke(data, finished, "--resume").exit_code == 0
    after = torch.load(finished / "final.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(before[name], after[name]) for name in before)
    refused = invoke(data, finished, "--resume", "--set", "lr=1")
    assert "leave out --set" in refused.output


def test_limit_takes_fewer_images_and_wandb_records_offline(data: Path, tmp_path: Path) -> None:
    result = invoke(data, tmp_path / "limited", *TINY, "--limit", "24", "--epochs", "11", "--set", "wandb=offline")
    assert result.exit_code == 0, result.output
    [record] = (tmp_path / "limited/wandb").glob("offline-run-*/*.wandb")
    logged = record.read_bytes()
    for key in ("train/images", "train/loss", "train/rate", "validation/val_auc", "validation/val_loss"):
        assert key.encode() in logged, key
    # What the network was shown at the start of its only stage: 16 augmented images of 32 px in a grid of 4 × 4.
    [shown] = record.parent.glob("files/media/images/**/*.png")
    grid = np.asarray(Image.open(shown))
    assert grid.shape == (4 * 34 + 2, 4 * 34 + 2, 3)
    assert grid[2:34, 2:34].std() > 5
    card = json.loads((tmp_path / "limited/card.json").read_text())
    assert card["training"]["images"]["train"] == 24
    assert "external-test" not in card["metrics"]


def test_no_picture_is_logged_where_none_is_wanted(data: Path, tmp_path: Path) -> None:
    quiet = ("--set", "wandb=offline", "--set", "wandb_images=0")
    assert invoke(data, tmp_path / "quiet", *TINY, "--limit", "24", "--epochs", "1", *quiet).exit_code == 0
    assert not list((tmp_path / "quiet/wandb").rglob("*.png"))


def test_a_preset_that_starts_from_inherited_weights_says_how_to_make_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DermserveError, match=r"runs/inherited\.pt: make them with `dermserve inherit --data DIR"):
        invoke(data, tmp_path / "runs/cpu", "--preset", "cpu")
    assert not (tmp_path / "runs").exists(), "nothing may be prepared or written before"


def test_a_test_set_that_overlaps_the_labelled_images_is_refused(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "data"
    shutil.copytree(data, own)
    table = own / "external-test/labels.csv"
    shutil.copy(own / "isic2020/train/ISIC_9000000.jpg", own / "external-test/images")
    table.write_text(table.read_text() + "ISIC_9000000,1\n")
    with pytest.raises(DermserveError, match="1 images of the test set external-test are labelled for training"):
        invoke(own, tmp_path / "out", *TINY)


def test_a_damaged_image_is_named(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "data"
    shutil.copytree(data, own)
    image = own / "isic2020/train/ISIC_9000000.jpg"
    image.write_bytes(image.read_bytes()[:400])
    with pytest.raises(DermserveError, match=r"1 images cannot be used: ISIC_9000000\.jpg"):
        invoke(own, tmp_path / "out", *TINY)


def test_batch_norm_gets_the_exact_statistics_of_the_images() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 300, 300, 3), np.uint8)
    config = Config.model_validate({"stages": [{"resolution": 32, "epochs": 1}], "adapt_images": 8})
    images = Images(pixels, np.zeros(8, np.int64), np.full(8, 1 / 8), np.arange(8), np.arange(8))
    model = create_model(architecture="test_efficientnet")
    seen = []
    model.conv_stem.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert adapt.reestimate_batch_norm(model, images, config, torch.device("cpu")) == 8
    assert torch.allclose(model.bn1.running_mean, seen[0].mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(model.bn1.running_var, seen[0].var((0, 2, 3)), rtol=1e-3)
    assert model.bn1.momentum == pytest.approx(0.1)


def test_the_prior_of_balanced_sampling_is_taken_back() -> None:
    records = [
        datasets.Record(str(i), Path(), leaf, "", "A")
        for i, leaf in enumerate(["MEL"] * 10 + ["NV"] * 80 + ["DF"] * 10)
    ]
    weights = batches.balanced_weights(records, melanoma_share=0.5, leaf_exponent=0.0)  # 50 %, 25 %, 25 %
    model = create_model(architecture="test_efficientnet").eval()
    before = model.classifier.bias.detach().clone()
    adapt.add_to_bias(model, adapt.prior_shift(records, weights))
    odds = (model.classifier.bias.detach() - before).exp()
    # A lesion that looked 50 : 25 : 25 under the drawn prior is 10 : 80 : 10 under the natural one.
    assert (0.5 * odds[0], 0.25 * odds[1], 0.25 * odds[5]) == pytest.approx((0.1, 0.8, 0.1), rel=1e-5)
    assert odds[2] == 1
