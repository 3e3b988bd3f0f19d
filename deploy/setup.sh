#!/bin/sh
# Make .venv/ hold exactly what requirements/$1.txt pins, plus this checkout itself. Called by the Makefile.
# Needs Python 3.11 or 3.12; fetches uv with pip if it is missing. Nothing outside the checkout is touched, but for
# the operating system packages of `setup.sh system`, which are installed only when run as root.
set -eu
cd "$(dirname "$0")/.."

find_python() {
    for name in ${PYTHON:-} python3.12 python3.11 python3; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            # The resolved path: a shim on PATH would resolve differently in another folder.
            "$name" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    echo "dermserve needs Python 3.11 or 3.12; none was found on PATH (set PYTHON=/path/to/python)." >&2
    exit 1
}

find_uv() {
    if command -v uv >/dev/null 2>&1; then
        echo uv
    else
        # --target works where the system's Python refuses to be installed into (PEP 668).
        [ -x .tools/bin/uv ] || "$1" -m pip install --quiet --target .tools uv >&2
        echo .tools/bin/uv
    fi
}

python=$(find_python)
uv=$(find_uv "$python")
[ -x .venv/bin/python ] || "$uv" venv --quiet --python "$python" .venv
echo "Installing requirements/$1.txt into .venv (the first time takes a few minutes)" >&2
# Byte code is compiled now, not at every start: some environments forbid Python to write it later.
"$uv" pip install --quiet --python .venv/bin/python --compile-bytecode --require-hashes -r "requirements/$1.txt"
"$uv" pip install --quiet --python .venv/bin/python --no-deps -e .
