#!/bin/sh
# The tests that need a GPU, on a machine that has torch for CUDA and perhaps no network.
#
#     sh benchmarks/gpu_tests.sh fetch FOLDER    where there is a network and .venv: wheels of all but torch
#     sh benchmarks/gpu_tests.sh run FOLDER      where the GPU is: install them beside its torch, and test
#
# transformer-lens and what it imports are among the wheels; nothing of the machine's own is changed.
set -eu
cd "$(dirname "$0")/.."
case "$1" in
fetch)
    .venv/bin/python -m pip freeze --exclude-editable | grep -viE '^(torch|triton|nvidia|pyright|ruff|nodejs)' > "$2.txt"
    .venv/bin/python -m pip download --quiet --no-deps --only-binary :all: --dest "$2" --requirement "$2.txt"
    du -sh "$2"
    ;;
run)
    beside=$(mktemp -d)
    trap 'rm -rf "$beside"' EXIT
    python3 -m pip install --quiet --no-index --no-deps --target "$beside" "$2"/*.whl
    export PYTHONPATH="$beside:." PYTHONDONTWRITEBYTECODE=1
    python3 -m pytest -p no:cacheprovider -q -rs tests/sae_core/kernels
    python3 -m pytest -p no:cacheprovider -q -rs -m gpu tests
    ;;
*)
    sed -n '2,8p' "$0"
    exit 2
    ;;
esac
