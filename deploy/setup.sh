#!/bin/sh
# setup.sh serve|dev: make .venv/ hold what requirements/NAME.txt pins, plus this checkout itself.
# setup.sh peers:     the same in .venv-peers/, for the servers that `dermserve bench peers` compares with.
# setup.sh system:    the operating system packages that the tests use; installed only when run as root.
# Called by the Makefile. Needs Python 3.11 or 3.12; fetches uv with pip if it is missing.
set -eu
cd "$(dirname "$0")/.."

find_python() {
    for name in ${PYTHON:-} python3.12 python3.11 python3; do
        # The resolved path: a shim on PATH would resolve differently in another folder.
        path=$("$name" -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 12) and print(sys.executable)' 2>/dev/null) || continue
        [ -n "$path" ] && echo "$path" && return
    done
    echo "dermserve needs Python 3.11 or 3.12; none was found on PATH (set PYTHON=/path/to/python)." >&2
    exit 1
}

find_uv() {
    if command -v uv >/dev/null 2>&1; then
        command -v uv
    else
        # --target works where the system's Python refuses to be installed into (PEP 668).
        [ -x .tools/bin/uv ] || "$1" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target .tools uv >&2
        echo .tools/bin/uv
    fi
}

# The packages of "$@" that are not there yet.
missing_packages() {
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || printf '%s ' "$package"
    done
}

install_packages() {
    command -v apt-get >/dev/null 2>&1 || return 0
    missing=$(missing_packages "$@")
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ]; then
        echo "Not installed, because this is not root: $missing (apt-get install $missing)" >&2
        return 0
    fi
    echo "Installing $missing" >&2
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

if [ "$1" = system ]; then
    install_packages chromium fonts-dejavu-core libfaketime dcmtk orthanc orthanc-dicomweb dicom3tools
    exit 0
fi

python=$(find_python)
# Triton's python backend loads Python as a shared library, which Debian keeps in a package of its own.
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if ! [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')/libpython$version.so.1.0" ]; then
    install_packages "libpython$version"
fi
uv=$(find_uv "$python")
venv=.venv
[ "$1" != peers ] || venv=.venv-peers  # their requirements contradict the developer's
[ -x $venv/bin/python ] || "$uv" venv --quiet --python "$python" $venv
echo "Installing requirements/$1.txt into $venv (the first time takes a few minutes) ..." >&2
# Byte code is compiled now, not at every start: some environments forbid Python to write it later.
"$uv" pip install --quiet --python $venv/bin/python --compile-bytecode --require-hashes -r "requirements/$1.txt"
"$uv" pip install --quiet --python $venv/bin/python --no-deps -e .
