"""The recipe on the command line."""

import json

import pytest
from test_cli import failed

from keras_ci2p.cli import main
from keras_ci2p.names import DUAL_SCALE_VARIANTS, VARIANTS
from keras_ci2p.training import RECIPES, read_recipe

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once


def shown(capsys, *options):
    assert main(["train", "--show-recipe", *options]) == 0
    return capsys.readouterr().out


def test_show_recipe(capsys, tmp_path):
    path = tmp_path / "paper.toml"
    path.write_text(shown(capsys, "--recipe", "paper"))
    assert read_recipe(path) == RECIPES["paper"]
    options = ["--epochs", "30", "--lr", "2e-4", "--clip-norm", "none", "--set", "augmentation.erasing=0"]
    path.write_text(shown(capsys, "--recipe", str(path), *options, "--set", "beta_2=0.99"))
    changed = {"epochs": 30, "warmup_epochs": 2, "learning_rate": 2e-4, "beta_2": 0.99, "augmentation.erasing": 0}
    assert read_recipe(path) == RECIPES["paper"].override(changed)


def test_a_run_with_its_own_recipe(photos, nano, tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, "nano", nano)
    path, run = tmp_path / "mine.yaml", tmp_path / "run"
    path.write_text("base: quick\nbatch_size: 8\nimage_size: 32\nepochs: 1\nmixup: 0.2\n")
    options = ["--model", "vit", "--variant", "nano", "--recipe", str(path), "--class-weights", "cat=2,dog=0.5"]
    assert main(["train", str(photos), "--out", str(run), *options]) == 0
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert settings["recipe"]["mixup"] == 0.2 and settings["class_weights"] == {"cat": 2, "dog": 0.5}
    # The file that the run leaves is a recipe too, and a run can be the beginning of another.
    again = ["--recipe", str(run / "recipe.toml"), "--init", str(run), "--model", "vit", "--epochs", "1"]
    assert main(["train", str(photos), "--out", str(tmp_path / "tuned"), *again]) == 0
    settings = json.loads((tmp_path / "tuned" / "run.json").read_text())["settings"]
    assert settings["init"] == str(run / "best") and settings["recipe"]["mixup"] == 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "fast"], "one of paper, paper_literal, quick, finetune"),
        (["--set", "erasing"], "NAME=VALUE"),
        (["--set", "erasing=0.1"], "no setting erasing"),
        (["--set", "epochs=many"], "epochs must be an integer"),
        (["--init", "run", "--variant", "tiny"], "size is that of init"),
    ],
)
def test_errors(capsys, tmp_path, options, message):
    assert main(["train", "absent", "--out", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_directory_is_asked_for(capsys):
    assert main(["train", "photos"]) == 2
    assert "--out" in capsys.readouterr().err


def test_dual_scale_on_photos_and_on_latents(photos, nano, nano_compressor, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(DUAL_SCALE_VARIANTS, "nano", {**nano, "early_dim": 16, "merge_at": 1})
    run, latents, second = (str(tmp_path / name) for name in ("run", "latents", "second"))
    options = ["--compressor", str(nano_compressor)]
    model = ["--model", "ci2p_dual", "--variant", "nano", "--epochs", "1", "--batch-size", "8"]
    assert main(["train", str(photos), "--out", run, "--image-size", "32", *options, *model]) == 0
    assert main(["cache", str(photos), latents, "--compressor", run, "--views", "1", "--image-size", "32"]) == 0
    # Also what some recipe has by default, and what the cache has.
    for asked in (["--image-size", "64"], ["--image-size", "256"], ["--set", "augmentation.flip=0.25"]):
        error = failed(capsys, "train", latents, "--out", second, *model, *asked)
        assert "is a latent cache, made with" in error and "can no longer be changed" in error
        assert not (tmp_path / "second").exists()
    assert main(["train", latents, "--out", second, *model, "--image-size", "32"]) == 0
    assert main(["evaluate", second, str(photos)]) == 0
    assert "of 6 images (val)" in capsys.readouterr().out
    preset = json.loads((tmp_path / "second" / "best" / "config.json").read_text())
    assert preset["class_name"] == "CI2PViTDualScaleBackbone"
