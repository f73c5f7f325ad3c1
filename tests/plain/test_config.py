"""Settings: checks, files, records and command lines of all that are declared."""

import argparse
import dataclasses
import importlib
import json
import shlex

import numpy as np
import pytest

from keras_ci2p.config import Config, shell_words
from keras_ci2p.data.augmentation import CROP_AND_FLIP, Augmentation
from keras_ci2p.setting import setting
from keras_ci2p.training.configs import CompareConfig, CompressorTrainConfig, TrainConfig
from keras_ci2p.training.recipes import RECIPES, LatentCacheConfig, Recipe, add_recipe_flags, read_recipe
from keras_ci2p.training.run_dir import RunError, check_config

CONFIGS = (CompareConfig, CompressorTrainConfig, LatentCacheConfig, TrainConfig)

# A value that is not the default, for every setting, and what must go with it.
VALUES = {
    Augmentation: {
        "crop_area": (0.123456789, 0.9),
        "crop_aspect": (0.1, 1 / 3),
        "flip": 1 / 3,
        "randaugment_ops": 5,
        "randaugment_probability": 0.75,
        "randaugment_magnitude": 1e-7,
        "randaugment_std": 1e22,
        "grayscale": 0.3,
        "blur": 0.7,
        "blur_radius": (1e-5, 3.0),
        "solarize": 1.0,
        "solarize_threshold": 7,
        "erasing": 0.9,
        "erasing_area": (0.1, 0.2),
        "erasing_aspect": (2 / 3, 7.0),
    },
    Recipe: {
        "epochs": 7,
        "batch_size": 3,
        "image_size": 64,
        "mixup": 0.1 + 0.2,
        "cutmix": 0.3,
        "mix_probability": 0.5,
        "label_smoothing": 0.0,
        "drop_path_rate": 1 / 7,
        "learning_rate": 1.2345678901234567e-5,
        "warmup_epochs": 2 / 3,
        "warmup_init_ratio": 0.001,
        "min_lr_ratio": 0.0,
        "cosine_epochs": 12.5,
        "lr_update": "epoch",
        "weight_decay": 0.0,
        "beta_1": 0.95,
        "beta_2": 0.98,
        "epsilon": 1e-7,
        "clip_grad_norm": None,
        "grad_accum_steps": 4,
        "ema_momentum": 0.9999,
        "ema_warmup": {"ema_momentum": 0.9, "ema_warmup": True},
        "distill_alpha": 0.7,
        "distill_temperature": 2.5,
        "distill_features": (1.23456789,),
        "patience": 3,
        "augmentation": Augmentation(),
    },
    TrainConfig: {
        "data": "my images",
        "model": "ci2p_dual",
        "variant": "base",
        "recipe": RECIPES["paper"],
        "seed": 2**32 - 1,
        "init": {"init": "a run", "variant": None},
        "compressor": "none",
        "freeze_compressor": False,
        "teacher": "tea cher.onnx",
        "teacher_size": {"teacher": "t", "teacher_size": 96},
        "teacher_range": {"teacher": "t", "teacher_range": (-1.0, 1.0)},
        "teacher_features": {"teacher": "t", "teacher_features": ("a b", "c")},
        "dtype": "mixed_bfloat16",
        "matmul_precision": "bfloat16",
        "augment": "device",
        "in_memory": {"augment": "device", "in_memory": True},
        "class_weights": {"cat": 1.23456789, "a=b": 1e-9, "dog": 2.0},
        "devices": 3,
        "num_workers": 2,
        "deterministic": True,
        "tensorboard": True,
        "max_minutes": 0.1,
    },
    LatentCacheConfig: {
        "views": 9,
        "image_size": (64, 96),
        "augmentation": CROP_AND_FLIP,
        "store": "rounded",
        "seed": 5,
        "batch_size": 7,
        "shard_records": 11,
    },
    CompressorTrainConfig: {
        "data": "tfds:name",
        "architecture": "bmshj2018-factorized-relu",
        "quality": 8,
        "metric": "ms-ssim",
        "lmbda": 0.0123456789,
        "steps": 1,
        "steps_per_epoch": 2,
        "crop_size": 64,
        "batch_size": 4,
        "learning_rate": 1 / 3,
        "auxiliary_learning_rate": 5.0,
        "clip_grad_norm": None,
        "seed": 3,
        "init": "a compressor",
        "val_images": 4,
        "val_size": 32,
        "dtype": "mixed_float16",
        "num_workers": 1,
        "deterministic": True,
    },
    CompareConfig: {
        "backends": ("jax", "torch"),
        "model": "vit",
        "variant": "tiny",
        "image_size": 64,
        "batch_size": 3,
        "steps": 4,
        "data": "a b",
        "dtype": "mixed_bfloat16",
        "seed": 8,
    },
}
# More values of settings with several forms.
MORE = [
    (TrainConfig, {"class_weights": "balanced"}),
    (TrainConfig, {"class_weights": {"cats, dogs": 0.5, "{": 2.0}}),
    (TrainConfig, {"class_weights": {"$DATA": 0.0}}),
    (TrainConfig, {"devices": "all"}),
    (TrainConfig, {"freeze_compressor": True}),
    (TrainConfig, {"teacher": "none"}),
    (TrainConfig, {"teacher": "t", "teacher_features": ()}),
    (TrainConfig, {"teacher": "t", "teacher_features": ("a,b", "c")}),
    (TrainConfig, {"teacher": "t", "teacher_range": ((0.0, 0.5, 1.0), (255.0, 254.5, 1 / 3))}),
    (TrainConfig, {"recipe": Recipe(epochs=31, distill_features=())}),
    (TrainConfig, {"recipe": RECIPES["quick"].override({"epochs": 60})}),
    (TrainConfig, {"recipe": dataclasses.replace(RECIPES["quick"], epochs=60)}),
    (TrainConfig, {"compressor": "-odd name"}),
    (LatentCacheConfig, {"image_size": 96}),
]


def changed(cls, name, value):
    """Keyword arguments with which a setting has `value`."""
    needed = {"data": "images"} if cls in (TrainConfig, CompressorTrainConfig) else {}
    return {**needed, **(value if isinstance(value, dict) and name in value else {name: value})}


def cases():
    for cls, values in VALUES.items():
        for name, value in values.items():
            arguments = changed(cls, name, value)
            if cls is Augmentation:
                yield LatentCacheConfig, {"augmentation": Augmentation(**arguments)}
                yield TrainConfig, {"data": "d", "recipe": Recipe(augmentation=Augmentation(**arguments))}
            elif cls is Recipe:
                yield TrainConfig, {"data": "d", "recipe": dataclasses.replace(RECIPES["quick"], **arguments)}
            else:
                yield cls, arguments
    for cls, arguments in MORE:
        yield cls, {**({"data": "d"} if cls is TrainConfig else {}), **arguments}


def parse(cls, words):
    """The config that a command line gives."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    cls.add_flags(parser)
    if cls is LatentCacheConfig:
        add_recipe_flags(parser, "")
    return cls.from_args(parser.parse_args(words))


def test_every_setting_is_here():
    for cls, values in VALUES.items():
        assert set(values) == {field.name for field in dataclasses.fields(cls)}
        needed = {"data": "images"} if cls in (TrainConfig, CompressorTrainConfig) else {}
        for name, value in values.items():
            base = RECIPES["quick"] if cls is Recipe else cls(**needed)
            arguments = changed(cls, name, value)
            assert getattr(dataclasses.replace(base, **arguments) if cls is Recipe else cls(**arguments), name) != (
                getattr(base, name)
            ), name


@pytest.mark.parametrize(("cls", "arguments"), cases())
def test_command_line(cls, arguments):
    """The words of a command, through a shell, give an equal config; so do records and TOML."""
    config = cls(**arguments)
    words = config.command_line()
    assert parse(cls, words) == config
    assert parse(cls, shlex.split(shell_words(words))) == config
    assert cls.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.differences(config.to_dict()) == []


def test_a_time_limit_chooses_the_epochs():
    config = TrainConfig("d", max_minutes=3.0, recipe=RECIPES["quick"].override({"epochs": 60, "mixup": 0.5}))
    again = parse(TrainConfig, config.command_line())
    assert again.max_minutes == 3 and again.recipe == dataclasses.replace(config.recipe, epochs=30, warmup_epochs=3.0)


def test_placeholders_are_variables_and_nothing_else_is():
    words = TrainConfig("$DATA", compressor="$HOME/x").command_line()
    assert shell_words(words, TrainConfig.placeholders().values()).startswith('"$DATA" --compressor ')
    assert "'$HOME/x'" in shell_words(words, TrainConfig.placeholders().values())


WRONG = [
    *((cls, {"seed": value}) for cls in CONFIGS for value in (-1, 2**32, 0.5, "0", True)),
    *((cls, {"batch_size": value}) for cls in CONFIGS if cls is not TrainConfig for value in (0, -3, 1.5, None)),
    (CompressorTrainConfig, {"learning_rate": -1}),
    (CompressorTrainConfig, {"learning_rate": float("nan")}),
    (CompressorTrainConfig, {"auxiliary_learning_rate": 0}),
    (CompressorTrainConfig, {"quality": 99}),
    (CompressorTrainConfig, {"quality": 0}),
    (CompressorTrainConfig, {"lmbda": -0.1}),
    (CompressorTrainConfig, {"clip_grad_norm": 0}),
    (CompressorTrainConfig, {"num_workers": -3}),
    (CompressorTrainConfig, {"architecture": "mbt2018"}),
    (CompressorTrainConfig, {"crop_size": 100}),
    (CompressorTrainConfig, {"crop_size": 80, "architecture": "mbt2018-mean"}),
    (CompressorTrainConfig, {"metric": "ssim"}),
    (CompressorTrainConfig, {"val_size": 160, "metric": "ms-ssim"}),
    (CompressorTrainConfig, {"val_size": 0}),
    (CompressorTrainConfig, {"val_images": 0}),
    (TrainConfig, {"class_weights": {"cat": -1.0}}),
    (TrainConfig, {"class_weights": {"cat": float("inf")}}),
    (TrainConfig, {"class_weights": {}}),
    (TrainConfig, {"class_weights": "even"}),
    (TrainConfig, {"num_workers": -1}),
    (TrainConfig, {"devices": 0}),
    (TrainConfig, {"devices": "some"}),
    (TrainConfig, {"max_minutes": 0}),
    (TrainConfig, {"max_minutes": float("inf")}),
    (TrainConfig, {"teacher_size": 0, "teacher": "t"}),
    (TrainConfig, {"teacher_range": (0, 1, 2), "teacher": "t"}),
    (TrainConfig, {"model": "resnet"}),
    (TrainConfig, {"augment": "gpu"}),
    (TrainConfig, {"matmul_precision": "half"}),
    (TrainConfig, {"deterministic": 1}),
    (TrainConfig, {"recipe": {"epochs": 3}}),
    (TrainConfig, {"freeze_compressor": True, "model": "vit"}),
    (TrainConfig, {"freeze_compressor": False, "model": "vit"}),
    (TrainConfig, {"compressor": "x", "model": "vit"}),
    (TrainConfig, {"in_memory": True}),
    (TrainConfig, {"teacher_size": 64}),
    (TrainConfig, {"teacher_range": (0, 1), "teacher": "none"}),
    (LatentCacheConfig, {"views": 0}),
    (LatentCacheConfig, {"image_size": 40}),
    (LatentCacheConfig, {"image_size": (64, 0)}),
    (LatentCacheConfig, {"store": "int4"}),
    (LatentCacheConfig, {"shard_records": 0}),
    (CompareConfig, {"steps": 2}),
    (CompareConfig, {"image_size": -32}),
    (CompareConfig, {"backends": ()}),
    (CompareConfig, {"backends": ("torch", "torch")}),
    (CompareConfig, {"backends": ("numpy",)}),
]


@pytest.mark.parametrize(("cls", "arguments"), WRONG)
def test_wrong_values(cls, arguments):
    needed = {"data": "images"} if cls in (TrainConfig, CompressorTrainConfig) else {}
    with pytest.raises(ValueError, match="Received") as raised:
        cls(**{**needed, **arguments})
    assert next(iter(arguments)) in str(raised.value)


def test_every_number_is_checked():
    """No number may be negative, and none has no range."""
    for cls in VALUES:
        for field in dataclasses.fields(cls):
            known = field.metadata["setting"]
            if field.type in (int, float) or field.type in (int | None, float | None):
                lowest = known.at_least if known.at_least is not None else known.above
                assert lowest is not None and lowest >= 0, f"{cls.__name__}.{field.name}"


def test_integers_and_paths_of_any_kind(tmp_path):
    config = TrainConfig(tmp_path, seed=np.int64(3), teacher="t", teacher_size=np.int32(64))
    assert config.data == str(tmp_path) and type(config.seed) is int and config.teacher_size == 64
    assert Recipe(learning_rate=np.float32(0.5), warmup_epochs=3).to_dict()["warmup_epochs"] == 3.0
    json.dumps(config.to_dict())


OLD_NAMES = {
    Recipe: {
        "clip_norm": ("clip_grad_norm", 2.0),
        "accumulate": ("grad_accum_steps", 3),
        "ema": ("ema_momentum", 0.5),
        "cosine_steps": ("lr_update", "batch"),
        "warmup_start": ("warmup_init_ratio", 0.25),
        "final_learning_rate": ("min_lr_ratio", 0.5),
    },
    TrainConfig: {"minutes": ("max_minutes", 3.0)},
    CompressorTrainConfig: {"clip_norm": ("clip_grad_norm", 2.0), "val_pictures": ("val_images", 3)},
}


@pytest.mark.parametrize("cls", OLD_NAMES)
def test_names_of_0_1_0(cls):
    needed = {} if cls is Recipe else {"data": "d"}
    for old, (new, value) in OLD_NAMES[cls].items():
        config = cls(**needed, **{old: value})
        assert getattr(config, new) == value and new in config.to_dict() and old not in config.to_dict()
        with pytest.warns(DeprecationWarning, match=f"{old} is now called {new}"):
            assert getattr(config, old) == value
        assert cls.from_dict({**needed, old: value}) == config
        assert cls(**needed).override({old: str(value)}) == config
        assert dataclasses.replace(cls(**needed), **{old: value}) == config
        stored = config.to_dict()
        del stored[new]
        assert config.differences({**stored, old: value}) == []
        assert [name for name, _, _ in config.differences(stored)] == [new]
        with pytest.raises(TypeError, match="received both"):
            cls.from_dict({**needed, old: value, new: value})
    with pytest.raises(AttributeError, match="nothing"):
        _ = cls(**needed).nothing


def test_classes_and_methods_of_0_1_0():
    training, compare = importlib.import_module("keras_ci2p.training"), importlib.import_module("keras_ci2p.compare")
    for package, old, new in (
        (training, "TrainSettings", TrainConfig),
        (training, "CacheSettings", LatentCacheConfig),
        (training, "CompressorSettings", CompressorTrainConfig),
        (compare, "CompareSettings", CompareConfig),
    ):
        with pytest.warns(DeprecationWarning, match=f"{old} is now called {new.__name__}"):
            assert getattr(package, old) is new
    with pytest.warns(DeprecationWarning, match="to_dict"):
        assert Augmentation().as_dict() == Augmentation().to_dict()


def test_differences():
    then = TrainConfig("d", num_workers=3, class_weights={"cat": 2.0, "dog": 1.0}).to_dict()
    now = TrainConfig("d", devices="all", recipe=RECIPES["quick"].override({"mixup": 0.5}))
    assert now.differences(then) == [
        ("recipe.mixup", 0.0, 0.5),
        ("class_weights", {"cat": 2.0, "dog": 1.0}, None),
    ]
    # What is not told, since it was no setting then, counts as the default.
    del then["matmul_precision"], then["recipe"]["mix_probability"]
    assert len(now.differences(then)) == 2
    assert [name for name, _, _ in TrainConfig("d", matmul_precision="bfloat16").differences(then)] == [
        "matmul_precision",
        "class_weights",
    ]


def test_of_paths_only_whether_they_are_given_is_compared():
    """What they hold is compared elsewhere; a run that shall be longer is a new one."""
    then = {"settings": TrainConfig("photos", teacher="t.onnx", compressor="x").to_dict()}
    check_config(TrainConfig("/other/photos/", teacher="../t.onnx", compressor="y"), then)
    for now, told in (
        (TrainConfig("photos", teacher="t.onnx"), "compressor: 'x', now None"),
        (TrainConfig("photos", teacher="t.onnx", compressor="none"), "compressor: 'x', now 'none'"),
        (TrainConfig("photos", compressor="x"), "teacher: 't.onnx', now None"),
    ):
        with pytest.raises(RunError, match=told) as error:
            check_config(now, then)
        assert "--init" not in str(error.value)
    longer = TrainConfig("p", teacher="t", compressor="x", recipe=RECIPES["quick"].override({"epochs": 40}))
    with pytest.raises(RunError, match="recipe.epochs: 30, now 40.*To train its model further, .* --init RUN"):
        check_config(longer, then)
    with pytest.raises(RunError, match="steps: 5, now 6.*--init RUN"):
        check_config(CompressorTrainConfig("p", steps=6), {"settings": CompressorTrainConfig("p", steps=5).to_dict()})


def test_a_setting_that_is_nearly_one():
    with pytest.raises(ValueError, match="no setting learning_rat. Did you mean 'learning_rate'[?] Known are"):
        RECIPES["quick"].override({"learning_rat": 1})
    with pytest.raises(ValueError, match="no setting augmentation.flop. Did you mean 'flip'[?]"):
        RECIPES["quick"].override({"augmentation.flop": 1})
    with pytest.raises(ValueError, match="Did you mean 'finetune'[?]"):
        read_recipe("fine-tune")


def test_a_compressor_to_begin_with_has_its_own_quality():
    """0.1.0, which knew no metric, recorded the default quality, which did not count."""
    config = CompressorTrainConfig("d", init="x")
    assert (config.architecture, config.quality) == (None, None)
    assert CompressorTrainConfig("d").quality == 5
    recorded = {**config.to_dict(), "architecture": "bmshj2018-factorized", "quality": 5}
    assert CompressorTrainConfig.from_dict(recorded).quality == 5
    old = {name: value for name, value in recorded.items() if name != "metric"}
    assert config.differences(old) == [] and CompressorTrainConfig.from_dict(old) == config


def test_the_compressor_that_is_meant(tmp_path):
    default = "bmshj2018-factorized-mse-5-photos"
    assert TrainConfig("d").for_data(False).compressor == default
    assert TrainConfig("d").for_data(True).compressor is None
    assert TrainConfig("d", init="x").for_data(False).compressor is None
    assert TrainConfig("d", model="vit").for_data(False).compressor is None
    assert TrainConfig("d", compressor="none").for_data(False).compressor == "none"
    for wrong, is_cache, message in (
        ({"compressor": "none"}, True, "that of init or data"),
        ({"compressor": "none", "init": "x"}, False, "that of init or data"),
        ({"teacher": "t", "teacher_size": 64}, True, "teacher_size goes with a teacher that is asked while training"),
        ({"teacher": "t", "num_workers": 1}, False, "threads of this process"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig("d", **wrong).for_data(is_cache)
    # Nothing of the disk is looked at before.
    (tmp_path / "latents.json").touch()
    assert TrainConfig(tmp_path, compressor="none").compressor == "none"


def test_documented():
    for cls in VALUES:
        for field in dataclasses.fields(cls):
            assert f"\n    {field.name}: " in cls.__doc__ and field.metadata["setting"].help
        assert cls.__doc__.index("Attributes:") < cls.__doc__.index("Raises:")


def test_tables_that_are_written_twice():
    """Those of modules that import Keras are the same in those that do not."""
    configs = importlib.import_module("keras_ci2p.training.configs")
    embedding = importlib.import_module("keras_ci2p.layers.embedding")
    distortion = importlib.import_module("keras_ci2p.models.rate_distortion")
    recipes = importlib.import_module("keras_ci2p.training.recipes")
    assert embedding.PATCH_SIZE == recipes._PATCH_SIZE
    assert list(distortion.LAMBDAS) == list(configs.QUALITIES)


class Inner(Config):
    """Inner.

    Raises:
        ValueError: Wrong.
    """

    size: int = setting(3, "a size", at_least=1)


class Outer(Config):
    """Outer.

    Raises:
        ValueError: Wrong.
    """

    inner: Inner = setting(Inner(), "an inner one")
    name: str = setting("x", "a name", "--name")


def test_inner_configs():
    assert Outer().override({"inner.size": "5", "name": "y"}) == Outer(Inner(5), "y")
    assert Outer().override({"inner": {"size": 5}}).inner.size == 5
    assert tuple(Outer(Inner(5)).lasting().items()) == (("inner.size", 5), ("name", "x"))
    assert Outer(Inner(5)).to_toml() == 'name = "x"\n\n[inner]\nsize = 5\n'
    for values, message in (
        ({"inner.width": 1}, "no setting inner.width. Known are: inner.size"),
        ({"inner": 3}, "no setting inner. Known are: inner.size, name"),
        ({"inner.size": 0}, "size must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Outer().override(values)
