"""What presets say without a model: names, runs, former names; all without Keras."""

import subprocess
import sys

import pytest

from keras_ci2p import presets
from keras_ci2p.convert import zoo

NO_KERAS = """
import sys
from keras_ci2p import list_presets
from keras_ci2p.convert import zoo_names
from keras_ci2p.export.formats import FORMATS
from keras_ci2p.models.variants import VARIANTS
from keras_ci2p.presets import STORAGES, PresetError, open_preset
assert "animals10" in list_presets() and len(zoo_names()) == 88 and "int8" in STORAGES and "onnx" in FORMATS
assert open_preset("animals10").has_weights
try:
    open_preset("nobody")
except PresetError:
    pass
print([name for name in sys.modules if name.split(".")[0] in ("keras", "torch", "tensorflow", "jax")])
"""


def test_names_of_presets_storages_and_formats_need_no_keras():
    done = subprocess.run([sys.executable, "-c", NO_KERAS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "old, new",
    [
        ("write_preset", "save_preset"),
        ("serialize", "serialize_model"),
        ("name_of", "preset_name"),
        ("check_writable", "check_destination"),
    ],
)
def test_former_names(old, new):
    with pytest.warns(DeprecationWarning, match=f"presets.{old} is now called {new}"):
        assert getattr(presets, old) is getattr(presets, new)


def test_further_sources_are_still_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "_SOURCES", {})
    with pytest.warns(DeprecationWarning):
        presets.add_source(["mine"], lambda name: tmp_path / name)
    assert presets.named_preset("mine") == tmp_path / "mine" and presets.named_preset("nobody") is None


def write(directory, **files):
    presets.save_preset(directory, {"registered_name": "keras_ci2p>Nothing", "config": {}}, None, {}, {}, files)


def test_a_run_stands_for_its_best(tmp_path):
    write(tmp_path / "run" / "best")
    preset = presets.open_preset(tmp_path / "run")
    assert preset.directory == tmp_path / "run" / "best" and preset.run == tmp_path / "run"
    for name in (tmp_path / "run" / "best", str(tmp_path / "run" / "best")):
        assert presets.open_preset(name).run is None
    (tmp_path / "run" / "best" / "metadata.json").unlink()
    with pytest.raises(presets.PresetError, match="best is no preset"):
        presets.open_preset(tmp_path / "run")


def test_what_a_preset_knows_is_carried_over(tmp_path):
    files = {"train_photos.npy": b"1", "split_names.npz": b"2", "of_a_later_version.bin": b"3"}
    metadata = {"training": {"epoch": 3}, "license": "mine", "parameter_count": 7}
    config = {"registered_name": "keras_ci2p>Nothing", "config": {}}
    presets.save_preset(tmp_path / "one", config, None, {}, metadata, files, storage="int8")
    carried = presets.open_preset(tmp_path / "one").carried()
    assert carried == {
        "metadata": {"training": {"epoch": 3}, "license": "mine"},
        "files": files,
        "storage": "int8",
    }


def test_the_zoo_is_one_table():
    assert {"bmshj2018-factorized-mse-5", "cheng2020-attn-mse-6"} <= set(zoo.zoo_names())
