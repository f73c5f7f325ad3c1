"""Folders that are split already, on the command line."""

import json
import shutil

import pytest
from conftest import NANO, write_photos
from PIL import Image
from test_cli import failed

from keras_ci2p.cli import main
from keras_ci2p.compare import CompareConfig, make_images
from keras_ci2p.data import image_folder
from keras_ci2p.data.manifest import NAMES_FILE
from keras_ci2p.data.overlap import TRAIN_HASHES_FILE
from keras_ci2p.names import VARIANTS
from keras_ci2p.presets import open_preset

pytestmark = pytest.mark.once

OPTIONS = "--variant nano --model vit --image-size 32 --epochs 1 --batch-size 8 --lr 3e-3"


def write_split(root):
    """Three classes; 8 photos of each for training, 2 for validation, 3 for the test, whose names go on counting."""
    first = 0
    for split, count in (("train", 8), ("val", 2), ("test", 3)):
        write_photos(root / split, ("ant", "bee", "cow"), count, size=(48 + first, 40))
        for path in sorted((root / split).glob("*/*.png"), reverse=True):
            path.rename(path.with_name(f"{first + int(path.stem):03d}.png"))
        first += count
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`(photos, run, what train printed)`, made once."""
    root = tmp_path_factory.mktemp("trained")
    photos = write_split(root / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "nano", NANO)
        printed = []
        patch.setattr("builtins.print", lambda *values, **_: printed.append(" ".join(map(str, values))))
        assert main(["train", str(photos), "--out", str(root / "run"), *OPTIONS.split()]) == 0
    return photos, root / "run", printed


def evaluate(capsys, model, photos, split, out):
    """`(the report, what was said on standard error)`."""
    assert main(["evaluate", str(model), str(photos), "--split", split, "--out", str(out)]) == 0
    return json.loads((out / "report.json").read_text()), capsys.readouterr().err


def test_train_tells_what_it_trains_on(trained):
    photos, run, printed = trained
    assert printed[0] == "3 classes: ant 8, bee 8, cow 8; 24 train, 6 val, 9 test"
    assert open_preset(run / "best").metadata["training"]["train_photos"] == 24


def test_evaluate(trained, tmp_path, capsys):
    photos, run, _ = trained
    for split, count, seen in (("val", 6, 0), ("test", 9, 0), ("all", 39, 24)):
        report, error = evaluate(capsys, run, photos, split, tmp_path)
        assert report["images"] == count and report["split"] == split
        assert (f"{seen} of these {count} images were trained on: " in error) == bool(seen)
    shutil.copytree(photos / "train", tmp_path / "plain")
    assert "no image of the split test" in failed(
        capsys, "evaluate", str(run), str(tmp_path / "plain"), "--split", "test"
    )


def test_classes_that_are_called_otherwise(trained, tmp_path, capsys):
    """By the option, a file, and what the preset says of its classes; without one of them."""
    photos, run, _ = trained
    expected, _ = evaluate(capsys, run, photos, "val", tmp_path / "out")
    names = {"ant": "formica", "bee": "ape", "cow": "mucca"}
    shutil.copytree(photos / "val", tmp_path / "other")
    for name, other in names.items():
        (tmp_path / "other" / name).rename(tmp_path / "other" / other)
    command = ["evaluate", str(run), str(tmp_path / "other"), "--split", "all"]
    assert "does not know ape, formica, mucca, and has ant, bee, cow instead. Say" in failed(capsys, *command)
    pairs = [f"{other}={name}" for name, other in names.items()]
    (tmp_path / "names.txt").write_text("\n".join(pairs) + "\n\n", encoding="utf-8")
    preset = shutil.copytree(run / "best", tmp_path / "preset")
    metadata = json.loads((preset / "metadata.json").read_text())
    (preset / "metadata.json").write_text(json.dumps({**metadata, "class_aliases": {v: k for k, v in names.items()}}))
    by_preset = ["evaluate", str(preset), *command[2:]]
    for way in (
        [*command, "--class-map", ",".join(pairs)],
        [*command, "--class-map", str(tmp_path / "names.txt")],
        by_preset,
    ):
        assert main([*way, "--out", str(tmp_path / "out")]) == 0
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["confusion"] == expected["confusion"] and report["class_names"] == ["ant", "bee", "cow"]
    shutil.rmtree(tmp_path / "other" / "mucca")
    assert main([*by_preset, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "other has no images of cow: the figures tell nothing of them" in said.err and "cow         0" in said.out
    for wrong in ("ape", "=bee", "ape=bee=cow", ","):
        with pytest.raises(SystemExit):
            main([*command, "--class-map", wrong])
        assert "must be NAME=OTHER,... or a file" in capsys.readouterr().err


def test_photos_encoded_anew_are_known_by_name(trained, tmp_path, capsys):
    photos, run, _ = trained
    anew = shutil.copytree(photos, tmp_path / "anew")
    for path in sorted(anew.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".webp"), lossless=True)
        path.unlink()
    _, error = evaluate(capsys, run, anew, "val", tmp_path / "out")
    assert "trained on" not in error
    # Half of what it was trained on becomes validation.
    for path in sorted((anew / "train").glob("*/00[0-3].webp")):
        path.rename(anew / "val" / path.parent.name / path.name)
    _, error = evaluate(capsys, run, anew, "val", tmp_path / "out")
    assert "12 of these 18 images were trained on (12 are known by class and name alone)" in error
    refused = failed(capsys, "publish", str(run), str(tmp_path / "preset"), "--data", str(anew))
    assert "12 of the 18 validation images" in refused and "class and name alone" in refused


def test_what_is_known_goes_on_with_the_weights(trained, tmp_path):
    photos, run, _ = trained
    publish = ["publish", str(run), str(tmp_path / "published"), "--data", str(photos), "--storage", "int8"]
    assert main(publish) == 0
    assert main(["convert", str(tmp_path / "published"), str(tmp_path / "converted")]) == 0
    assert main(["convert", str(run), str(tmp_path / "converted_run")]) == 0
    assert main(["quantize", str(run), str(tmp_path / "quantized")]) == 0
    assert main(["quantize", str(tmp_path / "published"), str(tmp_path / "compact")]) == 0
    training = open_preset(run).metadata["training"]
    for name in ("published", "converted", "converted_run", "quantized", "compact"):
        preset = open_preset(tmp_path / name)
        assert preset.metadata["training"] == training
        is_compact = name in ("published", "converted", "compact")
        assert preset.storage == ("int8" if is_compact else "float32")
        for file in (TRAIN_HASHES_FILE, NAMES_FILE):
            assert file in preset.metadata["files"]
            assert (preset.directory / file).read_bytes() == (run / "best" / file).read_bytes()
    card = (tmp_path / "published" / "README.md").read_text()
    assert "The data are split already" in card and "a fifth" not in card
    report = json.loads((tmp_path / "published" / "report.json").read_text())
    assert [(row["train"], row["val"]) for row in report["data"]["classes"]] == [(8, 2)] * 3


def test_a_run_that_knows_no_names_learns_them_when_it_is_published(trained, tmp_path, capsys):
    photos, run, _ = trained
    old = shutil.copytree(run, tmp_path / "old")
    (old / "best" / NAMES_FILE).unlink()
    metadata = json.loads((old / "best" / "metadata.json").read_text())
    del metadata["files"][NAMES_FILE]
    (old / "best" / "metadata.json").write_text(json.dumps(metadata))
    assert main(["publish", str(old), str(tmp_path / "published"), "--data", str(photos)]) == 0
    assert (tmp_path / "published" / NAMES_FILE).read_bytes() == (run / "best" / NAMES_FILE).read_bytes()
    assert NAMES_FILE in open_preset(tmp_path / "published").metadata["files"]
    # Other data tell nothing of what it was trained on.
    other = write_photos(tmp_path / "other", ("ant", "bee", "cow"), 5, size=(40, 40))
    assert main(["publish", str(old), str(tmp_path / "elsewhere"), "--data", str(other)]) == 0
    assert not (tmp_path / "elsewhere" / NAMES_FILE).exists()


def test_compare_takes_the_split(trained):
    photos, *_ = trained
    settings = CompareConfig(model="vit", data=str(photos), image_size=32, batch_size=6, steps=3)
    held_out = make_images(settings)["held_out"]
    expected, _ = next(iter(image_folder(photos / "val", split="all", image_size=32, batch_size=6)))
    assert (held_out == expected.astype("uint8")).all() and len(held_out) == 6


def test_cache(trained, tmp_path, capsys, monkeypatch):
    """The latents are those of the folder's own split, and what is trained on them knows the names."""
    photos, *_ = trained
    monkeypatch.setitem(VARIANTS, "nano", NANO)
    latents, run = str(tmp_path / "latents"), str(tmp_path / "run")
    assert main(["cache", str(photos), latents, "--image-size", "32", "--views", "1"]) == 0
    capsys.readouterr()
    assert main(["train", latents, "--out", run, *["--variant", "nano", "--epochs", "1", "--batch-size", "8"]]) == 0
    assert capsys.readouterr().out.startswith("3 classes: ant 8, bee 8, cow 8; 24 train, 6 val\n")
    report, error = evaluate(capsys, run, photos, "all", tmp_path / "out")
    assert report["images"] == 39 and "24 of these 39 images were trained on:" in error
