"""`keras-ci2p compress` and `decompress`."""

import json
import shutil

import keras
import numpy as np
import pytest
from conftest import NANO, write_photos
from PIL import Image
from skimage import data

from keras_ci2p import CI2PViT, Compressor
from keras_ci2p.cli import main
from keras_ci2p.codec import ImageCodec, read_compressed
from keras_ci2p.convert import to_compressai
from keras_ci2p.convert.state_dict import write_state_dict
from keras_ci2p.data import scan_folder
from keras_ci2p.names import VARIANTS
from keras_ci2p.presets import open_preset

pytestmark = pytest.mark.once
SHIPPED = "bmshj2018-factorized-mse-5-photos"


def test_a_folder_there_and_back(tmp_path, nano_compressor, capsys):
    photos = write_photos(tmp_path / "photos", count=2)
    (photos / "notes.txt").write_text("no image")
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    compress = ["compress", str(photos), str(tmp_path / "small"), "--compressor", str(nano_compressor)]
    assert main([*compress, "--measure"]) == 0
    out = capsys.readouterr().out
    files = sorted((tmp_path / "small").rglob("*.ci2p"))
    assert [str(path.relative_to(tmp_path / "small")) for path in files] == [
        f"{name}/{i:03d}.ci2p" for name in ("bird", "cat", "dog") for i in range(2)
    ]
    sizes = [sum(len(content) for path, content in before.items() if path.suffix == ".png")]
    sizes.append(sum(path.stat().st_size for path in files))
    assert f"6 images: {sizes[0]:,} bytes before, {sizes[1]:,} after ({sizes[1] / sizes[0]:.1%})" in out
    assert f"{8 * sizes[1] / (6 * 48 * 40):.4f} bits per pixel" in out
    assert "PSNR: mean" in out and "MS-SSIM" not in out, "which small images have not"
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before

    restore = ["decompress", str(tmp_path / "small"), str(tmp_path / "restored")]
    assert main(restore) == 2
    assert "of a compressor without a name: give --compressor" in capsys.readouterr().err
    assert main([*restore, "--compressor", str(nano_compressor)]) == 0
    codec = ImageCodec(Compressor.from_preset(nano_compressor))
    for path in files:
        restored = tmp_path / "restored" / path.relative_to(tmp_path / "small").with_suffix(".png")
        np.testing.assert_array_equal(np.asarray(Image.open(restored)), codec.decompress(path.read_bytes()))


def test_the_same_command_goes_on(tmp_path, nano_compressor, capsys):
    photos = write_photos(tmp_path / "photos", count=2)
    command = ["compress", str(photos), str(tmp_path / "small"), "--compressor", str(nano_compressor)]
    assert main(command) == 0
    files = sorted((tmp_path / "small").rglob("*.ci2p"))
    contents = [path.read_bytes() for path in files]
    files[0].unlink()
    times = [path.stat().st_mtime_ns for path in files[1:]]
    (files[1].parent / "000.partial-0").write_bytes(b"what a crash has left")
    capsys.readouterr()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "1 image: " in out and "5 files there already, kept" in out
    assert [path.read_bytes() for path in files] == contents
    assert [path.stat().st_mtime_ns for path in files[1:]] == times
    assert not list((tmp_path / "small").rglob("*partial*"))
    # Of another compressor.
    keras.utils.set_random_seed(5)
    Compressor(quality=None, channels=(8, 12)).save_to_preset(tmp_path / "other")
    other = [*command[:-1], str(tmp_path / "other")]
    assert main(other) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert [path.read_bytes() for path in files] == contents
    assert main([*other, "--overwrite"]) == 0
    assert files[0].read_bytes() != contents[0]


def test_single_files(tmp_path, nano_compressor, capsys):
    image = tmp_path / "a.jpg"
    Image.fromarray(data.chelsea()[:70, :90]).save(image)
    compressor = ["--compressor", str(nano_compressor)]
    assert main(["compress", str(image), str(tmp_path / "b.ci2p"), *compressor, "--size", "32"]) == 0
    assert read_compressed((tmp_path / "b.ci2p").read_bytes()).height == 32
    assert main(["decompress", str(tmp_path / "b.ci2p"), str(tmp_path / "b.webp"), *compressor]) == 0
    assert Image.open(tmp_path / "b.webp").size == (32, 32)
    # Nothing replaces the image.
    before = image.read_bytes()
    assert main(["compress", str(image), str(image), *compressor]) == 2
    assert main(["compress", str(image), str(image), *compressor, "--overwrite"]) == 2
    assert main(["decompress", str(tmp_path / "b.ci2p"), str(image), *compressor]) == 0
    assert image.read_bytes() == before
    capsys.readouterr()


def test_what_cannot_be_done_is_told_and_the_rest_is_done(tmp_path, nano_compressor, capsys):
    photos = write_photos(tmp_path / "photos", count=2)
    (photos / "cat" / "000.png").write_bytes((photos / "cat" / "001.png").read_bytes()[:200])
    compressor = ["--compressor", str(nano_compressor)]
    assert main(["compress", str(photos), str(tmp_path / "small"), *compressor]) == 2
    output = capsys.readouterr()
    assert "cat/000.png: " in output.err and "1 file not done" in output.out and "5 images: " in output.out
    damaged = tmp_path / "small" / "dog" / "000.ci2p"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    assert main(["decompress", str(tmp_path / "small"), str(tmp_path / "restored"), *compressor]) == 2
    output = capsys.readouterr()
    assert "dog/000.ci2p: " in output.err and "damaged" in output.err and "(4 files)" in output.out
    assert main(["compress", str(tmp_path / "nowhere"), str(tmp_path / "small"), *compressor]) == 2
    assert "There is no file or folder" in capsys.readouterr().err
    shutil.copy(photos / "dog" / "001.png", photos / "dog" / "001.webp")
    assert main(["compress", str(photos), str(tmp_path / "more"), *compressor]) == 2
    assert "would both become" in capsys.readouterr().err


def test_files_of_the_shipped_compressor_name_it(tmp_path, capsys):
    """And those for a classifier are of its compressor."""
    image = tmp_path / "cat.png"
    Image.fromarray(data.chelsea()[:200, :176]).save(image)
    assert main(["compress", str(image), str(tmp_path / "a"), "--measure"]) == 0
    assert "MS-SSIM: mean 0.9" in capsys.readouterr().out
    assert main(["compress", str(image), str(tmp_path / "b"), "--compressor", "animals10"]) == 0
    content = (tmp_path / "a" / "cat.ci2p").read_bytes()
    assert read_compressed(content).name == SHIPPED and (tmp_path / "b" / "cat.ci2p").read_bytes() == content
    analysis = CI2PViT.from_preset("animals10").compressor
    assert read_compressed(content).compressor == analysis.weights_hash()[:16]
    assert main(["decompress", str(tmp_path / "a"), str(tmp_path / "restored")]) == 0
    restored = np.asarray(Image.open(tmp_path / "restored" / "cat.png"), "float32")
    assert 10 * np.log10(255**2 / np.square(restored - data.chelsea()[:200, :176]).mean()) > 31
    assert open_preset("animals10").metadata["compressor"] == SHIPPED


def predicted(capsys, *arguments):
    assert main(["predict", *map(str, arguments), "--json"]) == 0
    output = capsys.readouterr()
    return [
        {row["class"]: row["probability"] for row in result["top"]} for result in json.loads(output.out)
    ], output.err


def test_predicts_without_pixels(tmp_path, capsys, monkeypatch):
    image = tmp_path / "cat.png"
    Image.fromarray(data.chelsea()[:, 30:330]).save(image)
    assert main(["compress", str(image), str(tmp_path / "crop.ci2p"), "--size", "128"]) == 0
    assert main(["compress", str(image), str(tmp_path / "whole.ci2p")]) == 0
    capsys.readouterr()
    (from_pixels,), _ = predicted(capsys, "animals10", image)
    monkeypatch.setattr(Compressor, "decode", None)
    (crop, whole), errors = predicted(capsys, "animals10", tmp_path / "crop.ci2p", tmp_path / "whole.ci2p")
    assert "warning" not in errors
    # What the classifier was trained on is not quantised.
    assert crop["cat"] == pytest.approx(from_pixels["cat"], abs=0.05) and crop["cat"] > 0.8
    assert max(whole, key=whole.get) == "cat"


def test_predicts_from_latents_as_the_model_does(tmp_path, nano, nano_compressor, capsys):
    """Of the central whole tokens; a file of another compressor is decoded."""
    model = CI2PViT((64, 64, 3), num_classes=3, compressor=str(nano_compressor), **nano)
    model.save_to_preset(tmp_path / "model", metadata={"compressor": str(nano_compressor)})
    codec = ImageCodec(Compressor.from_preset(nano_compressor))
    image = data.chelsea()[:120, :100]
    (tmp_path / "own.ci2p").write_bytes(codec.compress(image))
    keras.utils.set_random_seed(5)
    other = ImageCodec(Compressor(quality=None, channels=(8, 12)))
    (tmp_path / "other.ci2p").write_bytes(other.compress(image))
    (tmp_path / "tiny.ci2p").write_bytes(codec.compress(image[:16]))
    files = [tmp_path / "own.ci2p", tmp_path / "own.ci2p"]
    (own, _), errors = predicted(capsys, tmp_path / "model", *files)
    # 8 x 7 latents, of which 2 x 2 make a token.
    resized = CI2PViT.from_preset(tmp_path / "model", image_shape=(128, 96, 3))
    logits = resized.latent_classifier.predict_on_batch(codec.latents((tmp_path / "own.ci2p").read_bytes())[:, :, :6])
    expected = np.exp(logits[0] - logits[0].max())
    np.testing.assert_allclose([own[str(i)] for i in range(3)], expected / expected.sum(), rtol=1e-4)
    assert "warning" not in errors
    for path, words in (("other.ci2p", "without a name"), ("tiny.ci2p", "smaller than 32 pixels")):
        assert main(["predict", str(tmp_path / "model"), str(tmp_path / path)]) == 2
        assert words in capsys.readouterr().err
    # Given, it is found; and images may be among the files, in any order.
    other.compressor.save_to_preset(tmp_path / "compressor")
    Image.fromarray(other.decompress((tmp_path / "other.ci2p").read_bytes())).save(tmp_path / "decoded.png")
    files = [tmp_path / name for name in ("other.ci2p", "decoded.png", "own.ci2p", "other.ci2p")]
    given = ["--compressor", tmp_path / "compressor"]
    (decoded, expected, of_own, again), errors = predicted(capsys, tmp_path / "model", *files, *given)
    assert "which were decoded to pixels and encoded anew: 1" in errors
    assert decoded == pytest.approx(expected) and again == decoded and of_own == pytest.approx(own)
    (alone,), _ = predicted(capsys, tmp_path / "model", tmp_path / "decoded.png")
    assert alone == pytest.approx(expected)


def test_evaluates_and_trains_without_pixels(tmp_path, capsys, monkeypatch):
    """The commands on a folder that `compress` has written; the shipped compressor is found by its name."""
    monkeypatch.setitem(VARIANTS, "nano", NANO)
    photos = write_photos(tmp_path / "photos", count=5)
    assert main(["compress", str(photos), str(tmp_path / "small"), "--size", "64"]) == 0
    run = ["--variant", "nano", "--image-size", "64", "--epochs", "1", "--batch-size", "4", "--out"]
    assert main(["train", str(tmp_path / "small"), *run, str(tmp_path / "run")]) == 0
    assert "crop_area and crop_aspect do not apply" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["compressor"] == SHIPPED and record["data"]["compressed"]
    monkeypatch.setattr(Compressor, "decode", None)
    assert main(["evaluate", str(tmp_path / "run"), str(tmp_path / "small"), "--worst", "0"]) == 0
    assert "of 3 images (val)" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "evaluation" / "report.json").read_text())
    model = CI2PViT.from_preset(tmp_path / "run" / "best")
    images = scan_folder(tmp_path / "small").split("val")
    codec = ImageCodec(Compressor.from_preset(SHIPPED))
    outputs = model.latent_classifier.predict(np.concatenate([codec.latents(images.read(i)) for i in range(3)]))
    assert report["top1"] == pytest.approx(np.mean(outputs.argmax(-1) == images.labels))
    assert main(["train", str(tmp_path / "small"), *run, str(tmp_path / "other"), "--recipe", "paper"]) == 2
    assert "augmentation.randaugment_ops=2" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "small"), *run, str(tmp_path / "other"), "--image-size", "96"]) == 2
    assert "smaller than 96 x 96 pixels" in capsys.readouterr().err
    for option, words in (
        (["--model", "vit"], "holds .ci2p files; train the model ci2p"),
        (["--teacher", "efficientnet-lite2"], "teacher goes with pixels"),
        (["--augment", "device"], "augment='device'"),
        (["--no-freeze-compressor"], "its compressor cannot be trained"),
    ):
        assert main(["train", str(tmp_path / "small"), *run, str(tmp_path / "other"), *option]) == 2
        assert words in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), str(tmp_path / "small"), "--without-copies"]) == 2
    assert "--without-copies) needs pixels" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_predicts_from_the_latents_of_a_hyperprior(tmp_path, nano, capsys):
    """Those that see a pixel of the image; the rest is padding up to 64 pixels."""
    keras.utils.set_random_seed(4)
    compressor = Compressor("mbt2018-mean", quality=None, channels=(8, 12))
    last = compressor.analysis.stages[-1]
    last.kernel.assign(100 * last.kernel)
    compressor.save_to_preset(tmp_path / "compressor")
    name = str(tmp_path / "compressor")
    CI2PViT((64, 64, 3), num_classes=3, compressor=name, **nano).save_to_preset(
        tmp_path / "model", metadata={"compressor": name}
    )
    image = data.chelsea()[:70, :100]
    Image.fromarray(image).save(tmp_path / "a.png")
    compress = ["compress", str(tmp_path / "a.png"), str(tmp_path / "a.ci2p")]
    assert main([*compress, "--compressor", str(tmp_path / "model")]) == 0
    capsys.readouterr()
    (own,), errors = predicted(capsys, tmp_path / "model", tmp_path / "a.ci2p")
    assert "which were decoded" not in errors
    # 128 x 128 pixels, of which rows from 29 and columns from 14 are the image: 6 x 8 latents.
    symbols, strings = compressor.encode_images(image[None], compressor.integer_synthesis())
    _, latents = compressor.decode_strings(strings, symbols[1].shape[1:3], compressor.integer_synthesis())
    resized = CI2PViT.from_preset(tmp_path / "model", image_shape=(96, 128, 3))
    logits = resized.latent_classifier.predict_on_batch(latents[:, 1:7])
    expected = np.exp(logits[0] - logits[0].max())
    np.testing.assert_allclose([own[str(i)] for i in range(3)], expected / expected.sum(), rtol=1e-4)


def test_tables_of_a_checkpoint(tmp_path, capsys):
    trained, before = Compressor(quality=None, channels=(3, 4)), Compressor(quality=None, channels=(3, 4))
    tables = ("_offset", "_quantized_cdf", "_cdf_length")
    stale = to_compressai(trained) | {
        key: value for key, value in to_compressai(before).items() if key.endswith(tables)
    }
    checkpoint, image = tmp_path / "model.safetensors", tmp_path / "a.png"
    write_state_dict(checkpoint, stale)
    Image.fromarray(data.chelsea()[:32, :32]).save(image)
    given = ["--compressor", str(checkpoint)]
    compress = ["compress", str(image), str(tmp_path / "old.ci2p"), *given]
    assert main([*compress, "--tables", "checkpoint"]) == 0
    assert "made before" not in capsys.readouterr().err
    restore = ["decompress", str(tmp_path / "old.ci2p"), str(tmp_path / "b.png"), *given]
    assert main(restore) == 2
    errors = capsys.readouterr().err
    assert "made before its last training" in errors and "--tables checkpoint" in errors.splitlines()[-1]
    assert main([*restore, "--tables", "checkpoint"]) == 0
    assert main([*compress[:3], "--tables", "checkpoint"]) == 2
    assert "no file of a CompressAI checkpoint" in capsys.readouterr().err
