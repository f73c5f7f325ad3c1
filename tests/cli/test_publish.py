"""Publishing on the command line."""

import importlib
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import yaml
from conftest import NANO, write_photos
from test_cli import failed

from keras_ci2p import Compressor, ViT
from keras_ci2p.backend import environment
from keras_ci2p.cli import main
from keras_ci2p.data.manifest import NAMES_FILE
from keras_ci2p.data.overlap import TRAIN_HASHES_FILE
from keras_ci2p.names import VARIANTS
from keras_ci2p.presets import open_preset
from keras_ci2p.training import evaluate
from keras_ci2p.training.model_card import classifier_card, training_commands
from keras_ci2p.training.run_dir import recipe_of
from keras_ci2p.utils import require

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once

publishing = importlib.import_module("keras_ci2p.training.publish")

FILES = {
    "README.md",
    "config.json",
    "confusion.png",
    "curves.png",
    "history.csv",
    "metadata.json",
    "model.weights.h5",
    "recipe.toml",
    "report.json",
    "task.json",
    "task.weights.h5",
    NAMES_FILE,
    TRAIN_HASHES_FILE,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained run, made once."""
    directory = tmp_path_factory.mktemp("trained")
    photos = write_photos(directory / "photos")
    options = "--variant nano --model vit --image-size 32 --epochs 1 --batch-size 8 --lr 3e-3"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "nano", NANO)
        assert main(["train", str(photos), "--out", str(directory / "run"), *options.split()]) == 0
    return directory / "run"


@pytest.fixture
def run_dir(trained, tmp_path):
    """A copy of the run, for each test to change."""
    return shutil.copytree(trained, tmp_path / "run")


def read_card(directory):
    """Front matter and text."""
    _, head, text = (directory / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def rows(text, name):
    """The rows of all tables that begin with `name`."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines]


def row(text, name):
    """The only one."""
    (cells,) = rows(text, name)
    return cells


def test_publish(run_dir, photos, tmp_path, capsys, monkeypatch):
    (tmp_path / "notes.md").write_text("Knows *colours* only.")
    dest = tmp_path / "small"
    options = ["--storage", "int8", "--name", "colours", "--notes", str(tmp_path / "notes.md")]
    assert main(["publish", str(run_dir), str(dest), "--data", str(photos), *options]) == 0
    printed = capsys.readouterr().out

    assert {path.name for path in dest.iterdir()} == FILES
    preset = open_preset(dest)
    best = open_preset(run_dir / "best")
    assert preset.storage == "int8" and preset.metadata["training"] == best.metadata["training"]
    assert (dest / TRAIN_HASHES_FILE).read_bytes() == (run_dir / "best" / TRAIN_HASHES_FILE).read_bytes()
    assert (dest / "history.csv").read_bytes() == (run_dir / "history.csv").read_bytes()

    report = json.loads((dest / "report.json").read_text())
    measured = evaluate(ViT.from_preset(dest), photos, verbose=0)
    assert {key: report[key] for key in measured} == measured
    assert report["original"]["top1"] == evaluate(ViT.from_preset(best), photos, verbose=0)["top1"]
    assert report["bytes"] < report["original"]["bytes"]
    assert f"{report['bytes']:,} bytes (int8)" in printed and f"top-1: {report['top1']:.2%}" in printed

    head, text = read_card(dest)
    assert head["license"] == "apache-2.0" and head["library_name"] == "keras"
    (result,) = head["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [report["top1"], report["top5"]]
    assert row(text, "top-1") == [f"{100 * report['top1']:.2f} % of 6 validation images"]
    assert row(text, "this preset, int8")[0] == f"{100 * report['top1']:.2f} %"
    assert row(text, "what it was made from, float32")[0] == f"{100 * report['original']['top1']:.2f} %"
    for entry in report["per_class"]:
        shares = ["-" if entry[key] is None else f"{100 * entry[key]:.2f} %" for key in ("recall", "precision")]
        assert rows(text, entry["name"]) == [["2", *shares], ["8", "2"]]
    assert report["data_sha256"] in text and "Knows *colours* only." in text
    seconds = np.genfromtxt(dest / "history.csv", delimiter=",", names=True)["seconds"].sum()
    assert report["run"]["hours"] == pytest.approx(seconds / 3600)
    assert str(tmp_path.parent) not in text + json.dumps(report)

    # The card's command gives the settings of the run again.
    (command,) = [line for line in text.splitlines() if "keras-ci2p train " in line]
    given = []
    monkeypatch.setattr(
        importlib.import_module("keras_ci2p.training.train"), "train", lambda settings, *_, **__: given.append(settings)
    )
    words = shlex.split(command.replace("$DATA", str(photos)))[2:]
    monkeypatch.chdir(dest)
    assert main(words) == 0
    settings = json.loads((run_dir / "run.json").read_text())["settings"]
    assert given[0].to_dict() == {**settings, "data": str(photos)}


def test_a_card_may_be_edited_and_a_preset_published_again(run_dir, photos, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["publish", str(run_dir), str(first), "--data", str(photos)]) == 0
    (first / "README.md").write_text("Mine.")
    assert open_preset(first).storage == "float16"
    for _ in range(2):
        assert main(["publish", str(first), str(second), "--data", str(photos), "--storage", "int8"]) == 0
    assert {path.name for path in second.iterdir()} == FILES
    reports = [json.loads((path / "report.json").read_text()) for path in (first, second)]
    assert reports[0]["run"] == reports[1]["run"] and reports[1]["original"]["storage"] == "float16"
    assert {path.name for path in tmp_path.iterdir()} == {"first", "photos", "run", "second"}


MEASURED = {
    "images": 6,
    "top1": 0.5,
    "top5": 1.0,
    "per_class": [
        {"name": "bird", "images": 2, "recall": 1.0, "precision": 2 / 3},
        {"name": "cat", "images": 2, "recall": 0.5, "precision": 1 / 3},
        {"name": "dog", "images": 2, "recall": 0.0, "precision": None},
    ],
    "confusion": [[2, 0, 0], [1, 1, 0], [0, 2, 0]],
    "class_names": ["bird", "cat", "dog"],
    "split": "val",
    "data_sha256": "0123",
}


def test_a_preset_that_comes_from_no_run(nano, photos, tmp_path, monkeypatch):
    stored = {**MEASURED, "top1": 2 / 6, "confusion": [[2, 0, 0], [2, 0, 0], [0, 2, 0]]}
    measurements = iter([MEASURED, stored])
    monkeypatch.setattr(publishing, "evaluate", lambda *_, **__: next(measurements))
    model = ViT((32, 32, 3), num_classes=3, **nano)
    model.save_to_preset(tmp_path / "preset", metadata={"note": "kept"})
    assert main(["publish", str(tmp_path / "preset"), str(tmp_path / "out"), "--data", str(photos)]) == 0
    assert open_preset(tmp_path / "out").metadata["note"] == "kept"
    _, text = read_card(tmp_path / "out")
    assert "No record of the training" in text
    assert row(text, "top-1") == ["33.33 % of 6 validation images"]
    assert row(text, "this preset, float16")[0] == "33.33 %"
    assert row(text, "what it was made from, float32")[0] == "50.00 %"
    assert "differ by 1; up to 1 were allowed" in text
    assert rows(text, "dog") == [["2", "0.00 %", "-"], ["2"]]


def test_the_architecture_in_the_card():
    sizes = {"num_layers": 12, "hidden_dim": 192, "num_heads": 3, "mlp_dim": 768, "early_dim": 48, "merge_at": 6}
    compressor = {"architecture": "bmshj2018-factorized", "num_filters": 128, "latent_channels": 192, "frozen": True}
    here = {"bytes": 1234567, "storage": "int8"}
    model = {"class": "CI2PViTDualScale", "image_shape": [None, 128, 3], "parameters": 7654321, **sizes}
    report = {
        "name": "animals",
        **here,
        "model": {**model, "compressor": {**compressor, "origin": {"name": "a.pth"}}},
        **MEASURED,
        "original": {**MEASURED, **here, "difference": 0, "allowed": 1},
        "data": {"name": "tfds:animals10", "sha256": "0123", "classes": [{"name": "cat", "train": None, "val": 2}]},
        "training": {"epoch": 3, "train_photos": 1000, "train_sha256": "4567"},
        "run": None,
        **environment(),
    }
    text = classifier_card(report, notes="")
    assert row(text, "architecture") == [
        "CI2PViTDualScale: 12 blocks, 192 wide, 3 heads, MLP 768; the first 6 blocks 48 wide"
    ]
    assert row(text, "compressor") == ["bmshj2018-factorized, 128 and 192 channels, kept as it was; from a.pth"]
    assert row(text, "image size") == ["any x 128"] and row(text, "parameters") == ["7,654,321"]
    assert "other data: 1,000 images, SHA-256 `4567`" in text and "DATA=tfds:animals10\n" in text


class TestRefused:
    def publish(self, capsys, source, photos, dest):
        return failed(capsys, "publish", str(source), str(dest), "--data", str(photos))

    def test_paths(self, run_dir, photos, tmp_path, capsys):
        assert "exists and is no preset" in self.publish(capsys, run_dir, photos, photos)
        assert "is no preset" in self.publish(capsys, photos, photos, tmp_path / "out")
        (run_dir / "history.csv").unlink()
        assert "has no history.csv" in self.publish(capsys, run_dir, photos, tmp_path / "out")
        assert {path.name for path in tmp_path.iterdir()} == {"photos", "run"}

    def test_photos_that_were_trained_on(self, run_dir, photos, tmp_path, capsys):
        for path in sorted(photos.glob("*/00[0-5].png")):
            path.unlink()
        assert "were trained on" in self.publish(capsys, run_dir, photos, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("problem", ["worse", "failing"])
    def test_a_compact_model_that_is_not_the_original(self, run_dir, photos, tmp_path, capsys, monkeypatch, problem):
        ViT.from_preset(run_dir / "best").save_to_preset(tmp_path / "out")
        before = (tmp_path / "out" / "metadata.json").read_bytes()
        measurements = []

        def measure(*args, **kwargs):
            report = evaluate(*args, **kwargs)
            if measurements and problem == "failing":
                raise OSError("disk full")
            right = 6 - 3 * len(measurements)
            measurements.append(report)
            return {**report, "top1": right / 6}

        monkeypatch.setattr(publishing, "evaluate", measure)
        message = "3 of 6 images, of which at most 1" if problem == "worse" else "disk full"
        assert message in self.publish(capsys, run_dir, photos, tmp_path / "out")
        assert (tmp_path / "out" / "metadata.json").read_bytes() == before
        assert {path.name for path in tmp_path.iterdir()} == {"out", "photos", "run"}


def test_a_run_on_stored_latents():
    """Its recipe has the image size and the augmentation of the cache, and there are two commands."""
    recipe = {"image_size": 256, "epochs": 3, "augmentation": {"flip": 0.5}}
    latents = {"views": 4, "store": "rounded", "seed": 7, "image_size": [128, 128], "augmentation": {"flip": 0.25}}
    weights = {"cat": 2.0, "dog": 1.23456789}
    settings = {"variant": "tiny", "seed": 2, "recipe": recipe, "class_weights": weights, "dtype": "float32"}
    record = {"settings": settings, "data": {"latents": latents}, "backend": "jax"}
    assert recipe_of(record).image_size == 128 and recipe_of(record).augmentation.flip == 0.25
    assert training_commands(record) == [
        'KERAS_BACKEND=jax keras-ci2p cache "$DATA" latents --compressor "$COMPRESSOR" --recipe recipe.toml --views 4 '
        "--store rounded --seed 7",
        "KERAS_BACKEND=jax keras-ci2p train latents --recipe recipe.toml --variant tiny "
        "--seed 2 --class-weights cat=2,dog=1.23456789 --out run",
    ]


class TestTeacher:
    """What a card says of the teacher of a run, and the commands that ask it again."""

    TEACHER = {
        "name": "efficientnet-lite2",
        "sha256": "89ab",
        "license": "Apache-2.0",
        "image_size": [192, 192],
        "value_range": [0, 255],
        "features": [{"name": "features_16", "channels": 128}, {"name": "features_32", "channels": 128}],
        "val_top1": 0.975,
    }

    def record(self, teacher, **data):
        latents = {"views": 4, "store": "rounded", "seed": 7, "image_size": [128, 128], "augmentation": {}}
        recipe = {"distill_alpha": 0.5, "distill_temperature": 2.0}
        settings = {"variant": "tiny", "seed": 2, "recipe": recipe, "matmul_precision": "bfloat16"}
        return {"settings": settings, "data": {"latents": latents, "teacher": teacher, **data}, "backend": "torch"}

    def test_commands_of_a_run_on_latents_with_more_views(self):
        made, *others = training_commands(self.record(self.TEACHER, views=10))
        assert made.endswith('--recipe recipe.toml --views 4 --store rounded --seed 7 --teacher "$TEACHER"')
        assert others == [
            'KERAS_BACKEND=torch keras-ci2p cache "$DATA" latents --more-views 6 --teacher "$TEACHER"',
            "KERAS_BACKEND=torch keras-ci2p train latents --recipe recipe.toml --variant tiny "
            "--seed 2 --matmul-precision bfloat16 --out run",
        ]
        small = {**self.TEACHER, "image_size": [160, 160]}
        assert training_commands(self.record(small))[0].endswith('--teacher "$TEACHER" --teacher-size 160')

    def test_commands_with_a_teacher_of_another_origin(self):
        other = {**self.TEACHER, "name": "resnet", "value_range": [-1.0, 1.0]}
        made, _ = training_commands(self.record(other))
        asked = '"$TEACHER" --teacher-size 192 --teacher-range=-1,1 --teacher-features features_16,features_32'
        assert made.endswith(f"--teacher {asked}")
        triples = {**other, "value_range": [[0, 0, 0], [1, 1, 2]], "image_size": [64, 96], "features": []}
        asked = "--teacher-range '[[0.0, 0.0, 0.0], [1.0, 1.0, 2.0]]'"
        assert training_commands(self.record(triples))[0].endswith(f'--seed 7 --teacher "$TEACHER" {asked}')

    def test_card_of_a_run_on_latents(self):
        model = {"class": "CI2PViT", "image_shape": [128, 128, 3], "parameters": 1, "compressor": None}
        here = {"bytes": 1, "storage": "int8"}
        environment_of_run = {**environment(), "hours": 1.0}
        record = {**self.record(self.TEACHER, views=10), **environment_of_run}
        record["settings"] = {**record["settings"], "dtype": "float32"}
        report = {
            "name": "animals",
            **here,
            "model": {**model, **VARIANTS["tiny"]},
            **MEASURED,
            "original": {**MEASURED, **here, "difference": 0, "allowed": 1},
            "data": {"name": "photos", "sha256": "0123", "classes": [{"name": "cat", "train": 9, "val": 2}]},
            "training": {"epoch": 3, "train_photos": 20865, "train_sha256": "4567"},
            "run": record,
            **environment(),
        }
        text = classifier_card(report, notes="")
        assert (
            "\nCI2P-ViT tiny, trained on 20,865 images while imitating the teacher efficientnet-lite2 (ImageNet's "
            "features, a linear probe for these classes; top-1 97.50 % itself): an RGB image in, one of 3 classes out:"
        ) in text
        assert row(text, "teacher") == ["efficientnet-lite2"] and row(text, "teacher's licence") == ["Apache-2.0"]
        assert row(text, "teacher's SHA-256") == ["`89ab`"]
        assert row(text, "teacher's own top-1") == ["97.50 % of the run's validation images"]
        assert row(text, "imitated") == [
            "its probabilities at temperature 2, 50 % of the classification loss; its feature maps "
            "features_16 times 8, features_32 times 16"
        ]
        assert row(text, "trained on stored latents") == ["10 augmented views of each image, rounded, seed 7"]
        assert "distill_alpha = 0.5" in text and row(text, "precision of products") == ["bfloat16"]
        assert "\nTEACHER=...  # the teacher efficientnet-lite2, SHA-256 89ab; or the name efficientnet-lite2" in text
        assert '"knowledge-distillation"' in text
        # Begun with another run, without a teacher.
        del record["data"]["teacher"]
        record["settings"].update(init="$INIT", variant=None)
        text = classifier_card(report, notes="")
        assert "\nCI2P-ViT tiny, fine-tuned on 20,865 images: an RGB image in" in text
        assert row(text, "began with")[0].startswith("the weights of another run or preset, `INIT` below")
        assert "teacher" not in text.lower().replace("distill", "") and "knowledge-distillation" not in text

    def test_publish(self, trained, photos, tmp_path, monkeypatch):
        """Of a run that asked a teacher while it was fine-tuned."""
        run, dest = tmp_path / "run", tmp_path / "published"
        options = ["--init", str(trained), "--model", "vit", "--teacher", str(trained), "--teacher-size", "64"]
        recipe = ["--image-size", "32", "--epochs", "1", "--batch-size", "8", "--set", "distill_alpha=0.75"]
        assert main(["train", str(photos), "--out", str(run), *options, *recipe]) == 0
        assert main(["publish", str(run), str(dest), "--data", str(photos)]) == 0
        (dest / "README.md").write_text("")
        # What is published again still knows it.
        assert main(["publish", str(dest), str(tmp_path / "again"), "--data", str(photos), "--storage", "int8"]) == 0
        report = json.loads((tmp_path / "again" / "report.json").read_text())
        teacher = report["run"]["data"]["teacher"]
        assert teacher["sha256"] == json.loads((run / "run.json").read_text())["data"]["teacher"]["sha256"]
        head, text = read_card(tmp_path / "again")
        assert "knowledge-distillation" in head["tags"]
        itself = f"top-1 {100 * teacher['val_top1']:.2f} % itself"
        assert f"ViT, fine-tuned on 24 images while imitating the teacher {teacher['name']} ({itself}): " in text
        assert row(text, "teacher's licence") == ["not stated in its file"]
        assert str(tmp_path.parent) not in text + json.dumps(report)
        # The card's command gives the settings of the run again.
        (command,) = [line for line in text.splitlines() if "keras-ci2p train " in line]
        given = []
        monkeypatch.setattr(
            importlib.import_module("keras_ci2p.training.train"),
            "train",
            lambda settings, *_, **__: given.append(settings),
        )
        for name, value in (("DATA", photos), ("INIT", trained), ("TEACHER", trained)):
            assert f'"${name}"' in command and f"\n{name}=" in text
            command = command.replace(f"${name}", str(value))
        monkeypatch.chdir(tmp_path / "again")
        assert main(shlex.split(command)[2:]) == 0
        assert given[0].to_dict() == json.loads((run / "run.json").read_text())["settings"]


def test_a_compressor(photos, tmp_path, capsys):
    run = tmp_path / "run"
    compressor = Compressor("bmshj2018-factorized", quality=None, channels=(4, 6))
    compressor.save_to_preset(run / "best", metadata={"training": {"step": 5}})
    settings = {"data": str(photos), "lmbda": 0.01, "steps": 5, "quality": None, "val_pictures": 4, "val_size": 32}
    config = {"settings": {**settings, "seed": 0, "dtype": "float32"}, "backend": "jax", "cores": 2, "versions": {}}
    (run / "run.json").write_text(json.dumps({**config, "data": {}}))
    (run / "history.csv").write_text("step,seconds\n5,36\n")
    (run / "curves.png").write_bytes(b"picture")
    assert main(["publish", str(run), str(tmp_path / "out"), "--data", str(photos), "--storage", "int8"]) == 0
    assert "PSNR in dB" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["images"] == 4 and report["lmbda"] == 0.01 and report["run"]["hours"] == 0.01
    head, text = read_card(tmp_path / "out")
    assert row(text, "this preset, int8")[0] == f"{report['psnr']:.2f}"
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == report["psnr"]
    command = re.search("KERAS_BACKEND=jax keras-ci2p train-compressor .*", text)[0]
    options = "--quality 5 --lmbda 0.01 --steps 5 --seed 0 --val-images 4 --val-size 32 --out run"
    assert command.endswith(f'"$DATA" {options}')
    Compressor.from_preset(tmp_path / "out")
    # What the card prints can be run: public functions alone.
    assert "from keras_ci2p.data import scan_images; data = scan_images(os.environ['DATA'])" in text


def test_a_run_without_pictures(run_dir, photos, tmp_path, capsys, monkeypatch):
    """As trained, and published, where matplotlib is not installed."""
    (run_dir / "curves.png").unlink()
    monkeypatch.setattr("keras_ci2p.plots._figure", lambda *size, **options: require("matplotlib_of_nobody", "train"))
    assert main(["publish", str(run_dir), str(tmp_path / "small"), "--data", str(photos)]) == 0
    told = capsys.readouterr().err
    assert "has no curves.png" in told and "confusion.png is not drawn: This needs the package" in told
    assert {path.name for path in (tmp_path / "small").iterdir()} == FILES - {"confusion.png", "curves.png"}
    _, text = read_card(tmp_path / "small")
    assert "![" not in text and "\n\n\n" not in text


def test_the_card_of_many_classes_is_no_longer_than_that_of_some(run_dir, photos, tmp_path):
    assert main(["publish", str(run_dir), str(tmp_path / "small"), "--data", str(photos)]) == 0
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    sizes = []
    for count in (101, 5000):
        names = [f"class {i:05}" for i in range(count)]
        report["class_names"] = names
        report["per_class"] = [{"name": n, "images": 9, "recall": 1.0, "precision": 1.0} for n in names]
        report["per_class"][77] |= {"recall": 0.125, "precision": None}
        report["data"]["classes"] = [{"name": n, "train": 8, "val": 9} for n in names]
        card = classifier_card(report, "")
        assert row(card, "class 00077") == ["9", "12.50 %", "-"]
        assert row(card, "all") == [f"{8 * count:,}", f"{9 * count:,}"]
        sizes.append(len(card))
    assert sizes[1] - sizes[0] < 100
