#!/bin/sh
# Builds wheel and sdist into DIR, checks them, installs each in an environment of its own and runs the quickstart with it.
# tools/release.sh DIR; needs .venv of tests/run.sh.
set -eu
cd "$(dirname "$0")/.."
mkdir -p "$1"
dist=$(cd "$1" && pwd)
.venv/bin/python -m build --outdir "$dist" .
.venv/bin/python -m pip install --quiet -c constraints.txt twine
.venv/bin/python -m twine check --strict "$dist"/*
for built in "$dist"/*.whl "$dist"/*.tar.gz; do
    clean=$(mktemp -d)
    "${PYTHON:-python3}" -m venv --upgrade-deps "$clean/venv"
    "$clean/venv/bin/python" -m pip install --quiet -c constraints.txt "$built[jax,train]" scikit-image scikit-learn
    cp examples/quickstart.py "$clean"
    (cd "$clean" && KERAS_BACKEND=jax venv/bin/python -c '
import keras_ci2p
assert "site-packages" in keras_ci2p.__file__
keras_ci2p.CI2PViT.from_preset("animals10")' && venv/bin/python quickstart.py)
    rm -rf "$clean"
done
