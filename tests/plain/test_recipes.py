import dataclasses
import tomllib

import pytest

from keras_ci2p.data import Augmentation
from keras_ci2p.training import RECIPES, Recipe, read_recipe
from keras_ci2p.training.recipes import write_recipe


def test_the_paper():
    paper = RECIPES["paper"]
    assert (paper.epochs, paper.batch_size, paper.image_size) == (300, 128, 256)
    assert (paper.mixup, paper.cutmix, paper.label_smoothing, paper.drop_path_rate) == (0.8, 1.0, 0.1, 0.1)
    assert paper.augmentation == Augmentation()
    assert (paper.augmentation.randaugment_ops, paper.augmentation.randaugment_magnitude) == (2, 9)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("suffix", [".toml", ".yaml"])
def test_files_give_the_recipe_back(name, suffix, tmp_path):
    path = tmp_path / f"recipe{suffix}"
    if suffix == ".toml":
        write_recipe(path, RECIPES[name])
    else:
        yaml = pytest.importorskip("yaml")
        path.write_text(yaml.safe_dump(RECIPES[name].to_dict()))
    assert read_recipe(path) == RECIPES[name]
    assert read_recipe(str(path)) == RECIPES[name]


def test_to_dict_gives_it_back():
    assert Recipe().override(RECIPES["finetune"].to_dict()) == RECIPES["finetune"]


def test_a_file_changes_its_base(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "quick"\nepochs = 60\n[augmentation]\nerasing = 0.1\ncrop_area = [0.5, 1]\n')
    recipe = read_recipe(path)
    assert recipe.epochs == 60 and recipe.warmup_epochs == 6, "the warm-up keeps its share"
    assert recipe.augmentation.erasing == 0.1 and recipe.augmentation.crop_area == (0.5, 1)
    assert recipe.learning_rate == RECIPES["quick"].learning_rate


def test_strings_from_the_command_line():
    recipe = Recipe().override(
        {
            "epochs": "10",
            "warmup_epochs": "1",
            "clip_norm": "none",
            "patience": "5",
            "cosine_steps": "batch",
            "augmentation.crop_area": "0.3,1",
            "augmentation.crop_aspect": "[0.8, 1.25]",
            "augmentation.solarize_threshold": "100",
        }
    )
    assert recipe == dataclasses.replace(
        Recipe(),
        epochs=10,
        warmup_epochs=1.0,
        patience=5,
        cosine_steps="batch",
        augmentation=Augmentation(crop_area=(0.3, 1.0), crop_aspect=(0.8, 1.25), solarize_threshold=100),
    )


@pytest.mark.parametrize(
    ("given", "weights"),
    [("4,4,16", (4, 4, 16)), ("[4.0, 16]", (4, 16)), ("8", (8,)), (8, (8,)), ([4, 16], (4, 16)), ("", ()), ([], ())],
)
def test_weights_of_feature_maps(given, weights, tmp_path):
    recipe = Recipe().override({"distill_features": given})
    assert recipe.distill_features == weights and all(isinstance(x, float) for x in recipe.distill_features)
    write_recipe(tmp_path / "recipe.toml", recipe)
    assert read_recipe(tmp_path / "recipe.toml") == recipe
    assert Recipe().override(recipe.to_dict()) == recipe


def test_toml_holds_every_number():
    values = tomllib.loads(Recipe().to_toml())
    assert set(values) == {f.name for f in dataclasses.fields(Recipe)}
    assert set(values["augmentation"]) == {f.name for f in dataclasses.fields(Augmentation)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"epochs": 1.5}, "epochs must be an integer"),
        ({"learning_rate": 0}, "learning_rate must be positive"),
        ({"distill_alpha": 1.5}, r"distill_alpha must be in \[0, 1\]"),
        ({"distill_temperature": 0}, "distill_temperature must be positive"),
        ({"distill_features": "4,-1"}, "distill_features must be numbers, each at least 0"),
        ({"distill_features": "4,many"}, "distill_features must be numbers such as"),
        ({"learning_rate": "fast"}, "learning_rate must be a number"),
        ({"label_smoothing": 1}, r"label_smoothing must be in \[0, 1\)"),
        ({"clip_norm": -1}, "clip_grad_norm must be positive or none"),
        ({"cosine_steps": "week"}, '"epoch" or "batch"'),
        ({"mixup": None}, "mixup must be a number"),
        ({"lr": 1}, "no setting lr"),
        ({"augmentation": 3}, "no setting augmentation"),
        ({"augmentation.hue": 1}, "no setting augmentation.hue.*augmentation.erasing"),
        ({"augmentation.erasing": 2}, r"erasing must be in \[0, 1\]"),
        ({"augmentation.crop_area": 1}, "crop_area must be a pair"),
    ],
)
def test_wrong_values(values, message):
    with pytest.raises(ValueError, match=message):
        Recipe().override(values)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "epochs =", "cannot be used"),
        ("a.yaml", "[1, 2", "cannot be used"),
        ("a.yaml", "just words", "no table"),
        ("a.toml", 'base = "mine"', "base must be one of paper"),
        ("a.toml", "epoch = 3", "no setting epoch"),
        ("a.ini", "", "one of paper, paper_literal, quick, finetune, or a .toml"),
    ],
)
def test_wrong_files(name, text, message, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(path)
    with pytest.raises(OSError):
        read_recipe(tmp_path / "absent.toml")
