"""A folder to carry into the serving container: the FP16 file, a script that builds the plan there, and its check.

Triton's container has `trtexec` and `python3` but neither dermserve's exporters nor the images of the parity check, and
a plan belongs to the TensorRT and the GPU that it was built on. So the script builds there, lets the engine answer the
images that it finds beside itself, compares with the answers of the FP32 reference, and only then names it `model.plan`.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from export import graph, half
from export.cache import require_room, write
from export.engine import BATCHES

_FILE: Final = "model.fp16.onnx"


@dataclass(frozen=True)
class Recipe:
    """`command` is the build alone, for a person who does it by hand; `script` does all of it."""

    script: Path
    command: str


def recipe(
    onnx: Path,
    folder: Path,
    pixels: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    *,
    limit: float = 0.005,
    sha256: str | None = None,
) -> Recipe:
    """Write the folder: `model.fp16.onnx`, `build.sh`, `expected.json` and the images as raw bytes.

    Args:
        onnx: the exported FP32 file.
        folder: made if missing.
        pixels: uint8 [N, 300, 300, 3], images to check the engine with, 270 KB each.
        probabilities: float32 [N, 4], the FP32 reference's answers to them.
        limit: largest |Δp| that the check accepts.
        sha256: what `onnx` must hash to, as the model card has it.

    Raises:
        StartupError: the ONNX file is damaged or foreign, or the folder cannot be written.
    """
    content = half.convert(graph.read(onnx, sha256)).SerializeToString(deterministic=True)
    require_room(folder, len(content) + pixels.nbytes)
    counts = _batches(len(pixels))
    write(folder / _FILE, content)
    for index, end in enumerate(np.cumsum(counts)):
        write(folder / f"pixels-{index}.bin", pixels[end - counts[index] : end].tobytes())
    expected = {"limit": limit, "batches": counts, "probabilities": probabilities.astype(float).round(7).tolist()}
    write(folder / "expected.json", json.dumps(expected).encode())
    script = folder / "build.sh"
    checks = "\n".join(f"answer {index} {_shape(count)}" for index, count in enumerate(counts))
    digest = hashlib.sha256(content).hexdigest()
    build = command("$target/model.plan.partial")
    write(script, _SCRIPT.format(digest=digest, file=_FILE, build=build, checks=checks).encode())
    return Recipe(script, command("model.plan"))


def command(plan: str) -> str:
    """The `trtexec` line that builds `plan`, for TensorRT 10 and 11 (which ignores `--stronglyTyped`: it always is)."""
    shapes = zip(("min", "opt", "max"), BATCHES, strict=True)
    return " ".join([
        "trtexec", f"--onnx={shlex.quote(_FILE)}", f'--saveEngine="{plan}"', "--stronglyTyped", "--noTF32",
        *(f"--{kind}Shapes={_shape(batch)}" for kind, batch in shapes),
        "--timingCacheFile=timing.cache", "--skipInference",
    ])  # fmt: skip


def _shape(batch: int) -> str:
    return f"{graph.INPUT}:{batch}x300x300x3"


def _batches(images: int) -> list[int]:
    """One image alone, then full batches and a rest: the engine's smallest and largest batch both answer."""
    rest = images - 1
    largest = BATCHES[-1]
    return [1] + [largest] * (rest // largest) + ([rest % largest] if rest % largest else [])


_SCRIPT: Final = """\
#!/bin/sh
# Builds model.plan from {file} with this machine's TensorRT and GPU, and checks its answers before it gets its name.
# Run it inside the container that will serve:
#   sh build.sh /models/classifier/1
set -eu
PATH=$PATH:/usr/src/tensorrt/bin
target=$(cd "${{1:?usage: sh build.sh FOLDER_OF_THE_PLAN}}" && pwd)
cd "$(dirname "$0")"

run() {{
    "$@" >>build.log 2>&1 && return
    echo "build.sh: $1 failed; the end of build.log:" >&2
    tail -n 5 build.log >&2
    exit 1
}}

answer() {{
    run trtexec --loadEngine="$target/model.plan.partial" --shapes="$2" --loadInputs=pixels:"pixels-$1.bin" \\
        --exportOutput="answers-$1.json" --iterations=1 --duration=0 --warmUp=0
}}

trap 'rm -f "$target/model.plan.partial" answers-*.json' EXIT
: >build.log
echo "{digest}  {file}" | run sha256sum -c -
run {build}
{checks}
python3 - <<'CHECK'
import json, sys

expected = json.load(open("expected.json"))
found = []
for index, count in enumerate(expected["batches"]):
    try:
        # trtexec writes "nan" and "inf", which are no JSON: an engine that overflows ends here, whatever the output.
        outputs = {{output["name"]: output["values"] for output in json.load(open(f"answers-{{index}}.json"))}}
    except ValueError as error:
        sys.exit(f"build.sh: the engine's answers are no numbers ({{error}})")
    values = outputs["probabilities"]
    assert len(values) == 4 * count, f"{{len(values)}} values for {{count}} images"
    found += [values[start : start + 4] for start in range(0, len(values), 4)]
pairs = [(a, b) for ours, theirs in zip(found, expected["probabilities"]) for a, b in zip(ours, theirs)]
largest = max(abs(a - b) for a, b in pairs)
print(f"largest |dp| {{largest:.5f}} on {{len(found)}} images (allowed: {{expected['limit']}})")
if not largest <= expected["limit"]:
    sys.exit("build.sh: the engine's answers differ too much; nothing was installed")
CHECK
mv "$target/model.plan.partial" "$target/model.plan"
echo "$target/model.plan"
"""
