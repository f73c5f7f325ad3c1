#!/bin/sh
# Sets up everything in .venv and runs the tests on all three backends (or those in $BACKENDS), a file at a time in each
# of $WORKERS processes; arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
# To compare with: without their own requirements, which are gigabytes that the tests do not need.
.venv/bin/python -m pip install --quiet -c constraints.txt --no-deps timm torchvision keras-hub
# Many tests compile the same small models, and would wait longer for the compiler's optimisations than they run.
export JAX_COMPILATION_CACHE_DIR="$PWD/.venv/jax-cache" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export XLA_FLAGS="${XLA_FLAGS:---xla_backend_optimization_level=0}"
workers=${WORKERS:-2}
# The models are too small to share out their products, and the processes would wait for each other.
[ "$workers" = 1 ] || export OMP_NUM_THREADS=1
# Files without a backend: once is enough.
plain="cli/test_data data/test_animals10_lists data/test_augmentation data/test_decode data/test_folder data/test_mixing
    data/test_near_copies data/test_seen data/test_source data/test_split_folders data/test_transforms data/test_workers
    training/test_hardware training/test_recipe"
failed= again=
for backend in ${BACKENDS:-torch jax tensorflow}; do
    echo "== tests on $backend"
    KERAS_BACKEND=$backend .venv/bin/python -m pytest -n "$workers" --dist loadfile $again "$@" || failed="$failed $backend"
    again=$(for file in $plain; do printf -- '--ignore=tests/%s.py ' "$file"; done)
done
[ -z "$failed" ] || { echo "Failed on:$failed"; exit 1; }
