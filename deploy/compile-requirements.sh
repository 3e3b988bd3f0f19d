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
