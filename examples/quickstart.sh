#!/bin/sh
# Sets up everything in .venv and runs quickstart.py; arguments go to it. Needs Python 3.11 or newer.
set -eu
cd "$(dirname "$0")/.."
data=${1:-}
if [ -n "$data" ]; then
    case $data in /*) ;; *) data=$OLDPWD/$data ;; esac
    shift
    set -- "$data" "$@"
fi
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv --upgrade-deps .venv
.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[jax,train]' scikit-image scikit-learn
exec .venv/bin/python examples/quickstart.py "$@"
