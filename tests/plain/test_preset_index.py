"""What presets say without a model: names, runs, former names; all without Keras."""

import subprocess
import sys

import pytest

from keras_ci2p import presets
from keras_ci2p.names import zoo_names

NO_KERAS = """
import sys
from keras_ci2p import list_presets
from keras_ci2p.convert import zoo_names
from keras_ci2p.export.formats import FORMATS
from keras_ci2p.names import VARIANTS
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


def test_what_was_meant(tmp_path, monkeypatch):
    """A name that is nearly one, a home directory, the parts of a run, files and addresses."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write("~/run/best")
    (tmp_path / "run" / "checkpoints").mkdir()
    for name in ("~/run", "~/run/best"):
        assert presets.open_preset(name).directory == tmp_path / "run" / "best"
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "run.json").touch()
    (tmp_path / "presets" / "one").mkdir(parents=True)
    write(tmp_path / "presets" / "one")
    (tmp_path / "photo.png").touch()
    for name, told in (
        ("animals-10", "Did you mean 'animals10'?"),
        ("CI2P_ViT_Base", "Did you mean 'ci2p_vit_base'?"),
        ("bmshj2018-factorised-mse-5", "Did you mean 'bmshj2018-factorized-mse-5'?"),
        ("something else", r"Unknown preset 'something else'\. Known: "),
        (tmp_path / "run" / "checkpoints", f"Did you mean {tmp_path}/run/best?"),
        (tmp_path / "rum", f"Did you mean '{tmp_path}/run'?"),
        ("~/run/bset", f"Did you mean '{tmp_path}/run/best'?"),
        (tmp_path / "presets", f"Did you mean {tmp_path}/presets/one?"),
        (tmp_path / "new", "a training run that has not ended its first epoch"),
        ("model.keras", "model.keras is no preset, .* keras.models.load_model opens such a file"),
        (tmp_path / "photo.png", "photo.png is no preset, .*`keras-ci2p convert`"),
        ("hf://someone/model", "opened by KerasHub, after `import keras_ci2p.hub`"),
    ):
        with pytest.raises(presets.PresetError, match=told.replace("?", r"\?")):
            presets.open_preset(name)


MISPLACED = {
    "a pointer of Git LFS to the file: fetch that by `git lfs pull`": b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n",
    "a web page: download the file itself, by its direct address": b"<!DOCTYPE html><html><body>Sign in</body></html>",
}


@pytest.mark.parametrize("name", ["metadata.json", "config.json", "model.weights.h5", "of_its_own.bin"])
@pytest.mark.parametrize("kind", MISPLACED)
def test_what_lies_in_the_place_of_a_file(tmp_path, name, kind):
    """A clone without Git LFS, and downloads behind a page."""
    write(tmp_path / "preset", **{"model.weights.h5": b"weights", "of_its_own.bin": b"1"})
    (tmp_path / "preset" / name).write_bytes(MISPLACED[kind])
    with pytest.raises(presets.PresetError, match=f"{name} is {kind}"):
        presets.open_preset(tmp_path / "preset")


def test_the_hash_of_a_preset_is_of_what_it_holds(tmp_path):
    for name, text in (("one", b"1"), ("same", b"1"), ("other", b"2")):
        write(tmp_path / name, **{"file.bin": text})
    one, same, other = (presets.open_preset(tmp_path / name).sha256 for name in ("one", "same", "other"))
    assert one == same != other


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
    assert {"bmshj2018-factorized-mse-5", "cheng2020-attn-mse-6"} <= set(zoo_names())
