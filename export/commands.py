"""The command `dermserve export`."""

from __future__ import annotations

from pathlib import Path

import click

from dermserve.settings import REPOSITORY_ROOT


@click.command()
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--target",
    type=click.Choice(["openvino", "tensorrt", "tensorrt-rtx"]),
    default="openvino",
    show_default=True,
    help="openvino reads the ONNX file itself; the others also build an engine from it.",
)
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=REPOSITORY_ROOT / "model_repository",
    help="Triton model repository to put it into; default: this checkout's.",
)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of images for the parity check; default: generated ones.",
)
@click.option("--count", default=64, show_default=True, type=click.IntRange(1), help="Images in the parity check.")
def export(run: Path, target: str, repository: Path, images: Path | None, count: int) -> None:
    """Turn a finished training RUN (its folder, or its final.pt) into what Triton serves.

    Writes one ONNX file holding normalisation, network, calibration and roll-up, compares it with PyTorch on images,
    and only then replaces the repository's weights and model card.

    \b
    Examples:
      dermserve export runs/quick
      dermserve export runs/b3 --images ../shared/data/isic2017-test/images --count 300
      dermserve export runs/b3 --target tensorrt-rtx
    """
    import tempfile

    from dermserve import sample
    from dermserve.errors import StartupError
    from dermserve.image import prepare
    from export import engine, parity
    from export.onnx import ServedModel, export_onnx
    from export.repository import install, read_training_card
    from training.model import load_checkpoint

    checkpoint = run / "final.pt" if run.is_dir() else run
    training_card = read_training_card(checkpoint.with_name("card.json"))
    network, metadata = load_checkpoint(checkpoint)
    if images is None:
        source, encoded = "generated lesion images", (sample.jpeg(seed) for seed in range(count))
    else:
        files = sorted(file for file in images.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not files:
            raise StartupError(f"{images} holds no JPEG or PNG image.")
        source = f"every {max(1, len(files) // count)}th image of {images.name}, sorted by name"
        encoded = (file.read_bytes() for file in files[:: max(1, len(files) // count)][:count])
    repository.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=repository, prefix=".export-") as folder:
        onnx = Path(folder) / "model.onnx"
        click.echo(f"Exporting {checkpoint} …", err=True)
        model = ServedModel(network, training_card["temperature"], metadata.get("ood"))
        sha256 = export_onnx(model, onnx)
        removed = bool(training_card.get("remove_artifacts", False))
        pixels = [prepare(data, remove_artifacts=removed).pixels for data in encoded]
        click.echo(f"Comparing with PyTorch on {len(pixels)} images …", err=True)
        found = parity.measure(model, onnx, pixels, source)
        click.echo(
            f"largest |Δp| {found.largest:.2e}, mean {found.mean:.2e}, largest |Δcam| {found.largest_cam:.2e}, "
            f"same order: {found.same_order}"
        )
        parity.require(found)
        bytes_ = onnx.stat().st_size
        notes = {"parity": found.as_dict(), "cam_limit": found.cam_limit, "onnx_bytes": bytes_}
        card = install(onnx, sha256, training_card, notes, repository)
    click.echo(f"{card.name} {card.version} ({sha256[:12]}, {bytes_ / 1e6:.1f} MB) is in {repository}")
    if target != "openvino":
        path = engine.build(repository, target)
        click.echo(f"engine: {path} ({path.stat().st_size / 1e6:.1f} MB)")
