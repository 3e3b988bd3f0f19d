"""The command `dermserve export`."""

from __future__ import annotations

from pathlib import Path

import click

from dermserve.settings import REPOSITORY_ROOT

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("run", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--target",
    type=click.Choice(["openvino", "tensorrt", "tensorrt-rtx"]),
    default="openvino",
    show_default=True,
    help="openvino serves CPUs; the others build an engine, tensorrt on the machine that will serve it.",
)
@click.option(
    "--precision",
    type=click.Choice(["int8", "fp16", "fp32"]),
    help="Default: int8 for openvino where --data is given, else fp32; fp16 for the others.",
)
@click.option(
    "--data", type=_FOLDER, help="The data that the weights were trained on: INT8 is calibrated and judged on it."
)
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=REPOSITORY_ROOT / "model_repository",
    help="Triton model repository to put it into; default: this checkout's.",
)
@click.option("--images", type=_FOLDER, help="Folder of images for the parity check; default: --data's, or drawn ones.")
@click.option("--count", type=click.IntRange(1), help="Images in that check.  [default: 300, or 64 drawn ones]")
@click.option(
    "--recipe",
    type=click.Path(file_okay=False, path_type=Path),
    help="With --target tensorrt: write a folder to build the engine from inside the serving container.",
)
def export(
    *,
    run: Path | None,
    target: str,
    precision: str | None,
    data: Path | None,
    repository: Path,
    images: Path | None,
    count: int | None,
    recipe: Path | None,
) -> None:
    """Turn a finished training RUN (its folder, or its final.pt) into what Triton serves.

    Writes one ONNX file holding normalisation, network, calibration and roll-up, compares it with PyTorch on images,
    and only then replaces the repository's weights and model card. Without RUN, the repository's own ONNX file is what
    the target is made from. Every engine passes a parity gate, and the card tells how.

    \b
    Examples:
      dermserve export runs/quick
      dermserve export runs/b3 --data ../shared/data        # INT8, too, if it passes the gate
      dermserve export --data ../shared/data                # INT8 from the committed ONNX file
      dermserve export --target tensorrt-rtx
      dermserve export --target tensorrt --recipe /tmp/recipe --images photographs/
    """
    from dermserve.model_card import ModelCard
    from dermserve.settings import Settings

    def say(line: str) -> None:
        click.echo(line, err=True)

    _require_sense(target, precision, data, recipe)
    if run is not None:
        from export.run import install_run  # the only part that needs torch

        install_run(run, repository, images, count, say)
    from export import sets, targets

    if target == "openvino":
        if precision == "fp32" or data is None:
            targets.openvino_fp32(repository, "" if precision else "INT8 needs --data", say)
        else:
            targets.openvino_int8(repository, sets.read(data, ModelCard.read(repository), targets.CALIBRATION), say)
        return
    chosen = sets.chosen(images, data, count, removed=ModelCard.read(repository).remove_artifacts)
    if recipe is not None:
        targets.tensorrt_recipe(repository, recipe, chosen, say)
    else:
        cache = Settings().state_dir / "engines"
        targets.tensorrt(repository, target, "FP32" if precision == "fp32" else "FP16", chosen, cache, say)


def _require_sense(target: str, precision: str | None, data: Path | None, recipe: Path | None) -> None:
    if target == "openvino" and precision == "fp16":
        raise click.UsageError("OpenVINO serves fp32 or int8 here.")
    if target != "openvino" and precision == "int8":
        raise click.UsageError(f"INT8 is made for openvino, not for {target}.")
    if precision == "int8" and data is None:
        raise click.UsageError("INT8 is calibrated and judged on real images: give --data.")
    if recipe is not None and (target != "tensorrt" or precision == "fp32"):
        raise click.UsageError("--recipe is for --target tensorrt in fp16.")
