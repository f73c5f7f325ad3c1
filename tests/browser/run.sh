#!/bin/sh
# The page of `keras-ci2p demo` in headless Chromium, beside ONNX Runtime in Python: tests/browser/run.sh
# $SHOTS, a directory, gets pictures of the page.
# Needs the environment of tests/run.sh, npm (for ONNX Runtime Web) and Chromium, which Debian's users get here.
set -eu
cd "$(dirname "$0")/../.."
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [ -z "$chromium" ]; then
    apt-get install --yes --quiet chromium >/dev/null
    chromium=$(command -v chromium)
fi
.venv/bin/python -m pip install --quiet -c constraints.txt playwright
export KERAS_BACKEND=torch CHROMIUM="$chromium" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest -p no:xdist tests/browser/page.py "$@"
