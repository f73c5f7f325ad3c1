#!/bin/sh
# Sets up everything in .venv and runs the tests on all three backends (or those in $BACKENDS), a file at a time in each
# of $WORKERS processes; arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv --upgrade-deps .venv
.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
# To compare with: without their own requirements, which are gigabytes that the tests do not need.
.venv/bin/python -m pip install --quiet -c constraints.txt --no-deps timm torchvision keras-hub
# Many tests compile the same small models, and would wait longer for the compiler's optimisations than they run; with
# its older emitters, and one piece of code a program, XLA needs half the time. What was compiled once serves later runs too.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/keras_ci2p-tests/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
export XLA_FLAGS="${XLA_FLAGS:---xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1}" TF_CPP_MIN_LOG_LEVEL=3
workers=${WORKERS:-2}
# The models are too small to share out their products, and the processes would wait for each other.
[ "$workers" = 1 ] || export OMP_NUM_THREADS=1
failed=
tests() {
    echo "== tests on $KERAS_BACKEND"
    began=$(date +%s)
    # 5: the arguments name no test for this backend.
    .venv/bin/python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@" || [ $? = 5 ] || failed="$failed $KERAS_BACKEND"
    echo "== tests on $KERAS_BACKEND: $(($(date +%s) - began)) s"
}
# What needs no backend, once; the rest on each.
export KERAS_BACKEND=numpy
tests "$@"
for backend in ${BACKENDS:-torch jax tensorflow}; do
    KERAS_BACKEND=$backend
    tests --ignore=tests/plain "$@"
done
[ -z "$failed" ] || { echo "Failed on:$failed"; exit 1; }
