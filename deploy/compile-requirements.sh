#!/bin/sh
# Pin every dependency with its hashes, for Linux and Python 3.11 and 3.12; no index address is written.
set -eu
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo .tools/bin/uv)
for name in serve dev; do
    "$uv" pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
        $([ "$name" = dev ] && echo --extra dev -c requirements/serve.txt) \
        pyproject.toml -o "requirements/$name.txt"
done
# The other servers contradict some of the developer's pins; the heavy packages are kept alike, so that both environments
# share them on the disk.
grep -E '^(torch|torchvision|triton|timm|nvidia-[a-z0-9-]+|cuda-[a-z-]+|numpy|onnx|openvino|pillow|simplejpeg|fastapi|uvicorn)==' \
    requirements/dev.txt | sed 's/ *\\$//' | "$uv" pip compile --quiet --upgrade --universal \
    --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
    --extra peers -c - pyproject.toml -o requirements/peers.txt
