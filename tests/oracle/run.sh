#!/bin/sh
# Compares with the real CompressAI, in an environment of its own (two minutes): tests/oracle/run.sh
# CompressAI pins numpy < 2, and torchvision has no CPU build whose operators match; see oracle.py.
set -eu
cd "$(dirname "$0")/../.."
venv=${ORACLE_VENV:-.venv-oracle}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv --upgrade-deps "$venv"
"$venv/bin/python" -m pip install --quiet torch==2.13.0 'numpy<2' 'keras>=3.15' 'pillow<13' scipy einops tqdm pytorch-msssim \
    pybind11 matplotlib pandas tomli requests typing_extensions torch-geometric
"$venv/bin/python" -m pip install --quiet --no-deps torchvision==0.28.0 compressai==1.2.8
export KERAS_BACKEND=torch PYTHONPATH=.:tests:tests/helpers OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$venv/bin/python" tests/oracle
