#!/bin/sh
# The lowest versions that pyproject.toml promises, on torch, in an environment of its own (about two minutes):
# tests/oldest/run.sh. No training, and nothing that needs the packages of others.
set -eu
cd "$(dirname "$0")/../.."
venv=${OLDEST_VENV:-.venv-oldest}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv --upgrade-deps "$venv"
# "numpy>=2.0.2" becomes "numpy==2.0.2".
lowest=$("$venv/bin/python" -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["torch"], *extras["train"], *extras["convert"]]:
    name, separator, version = requirement.partition(">=")
    assert separator, f"{requirement} has no lowest version"
    print(f"{name}=={version}")')
# scipy: a test compares with it.
"$venv/bin/python" -m pip install --quiet $lowest pytest scipy
"$venv/bin/python" -m pip list --format=freeze | grep -iE "^($(echo "$lowest" | sed 's/==.*//' | paste -sd '|'))=="
export KERAS_BACKEND=torch PYTHONPATH=$PWD OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$venv/bin/python" -m pytest tests/plain tests/convert tests/data/test_loader.py tests/test_presets.py \
    tests/test_weight_storage.py \
    --ignore tests/plain/test_tfds.py --ignore tests/plain/test_animals10.py --ignore tests/plain/test_data_command.py \
    --ignore tests/plain/test_transforms_operations.py --ignore tests/convert/test_pretrained_vit.py \
    --deselect tests/plain/test_sources.py::test_sets_of_tfds \
    --deselect tests/plain/test_state_dict.py::test_mutated_checkpoints -k "not golden and not reference and not shipped" "$@"
