"""Compressed files beside JPEG, WebP and AVIF: rate and distortion, what a classifier makes of them, and how fast.

    KERAS_BACKEND=torch python benchmarks/compressed.py [rate accuracy speed promised] [--data PHOTOS]
    KERAS_BACKEND=torch python benchmarks/compressed.py --small        # noise: only that it runs

rate: bits per pixel, PSNR and MS-SSIM of the compressors and of Pillow's formats at falling quality, for scikit-image's
photos and for validation photos of PHOTOS.
accuracy: top-1 of a classifier over the bytes of an image, each image as the classifier sees it, `compress --size`; the
files of another compressor than its own are decoded to pixels.
Also of `.ci2p` files of whole photos, and of latents that are cropped or flipped in place of the photo.
speed: images a second of prediction and training, from JPEG files and from `.ci2p` files, in turns. Seconds are those
of the processor, so that other work beside does not count.
promised: bits per pixel by the likelihoods against the files' true size.

benchmarks/results gets compressed.json, to which each part adds its own, and the plots.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import keras
import matplotlib
import numpy as np
from common import add_data_argument, noise_photos, settings_of
from matplotlib.figure import Figure
from PIL import Image

from keras_ci2p import CI2PViT, Compressor, list_presets, utils
from keras_ci2p.backend import environment
from keras_ci2p.codec import ImageCodec, ms_ssim, read_compressed
from keras_ci2p.codec.ms_ssim import LEAST_SIDE
from keras_ci2p.data import CROP_AND_FLIP, ImageManifest, center_crop, image_folder, latent_folder, scan_folder
from keras_ci2p.data.latent_loader import LatentMirror, crop_latents
from keras_ci2p.models.compressor import CHANNELS
from keras_ci2p.training.configs import DEFAULT_COMPRESSOR
from keras_ci2p.training.evaluation import held_out
from keras_ci2p.training.optim import FusedAdamW

RESULTS = Path(__file__).parent / "results"
PARTS = ("rate", "accuracy", "speed", "promised")
OURS, DECODED = ".ci2p", ".ci2p, decoded"
# Pillow's options of each format, and the qualities.
FORMATS = {
    "JPEG": ({"optimize": True}, (90, 70, 40, 20, 10)),
    "WebP": ({"method": 4}, (90, 70, 40, 15, 1)),
    "AVIF": ({"speed": 6}, (75, 60, 45, 30, 15)),
}
SHOWN = ("astronaut", "chelsea", "coffee", "rocket")
COLOURS = {OURS: "tab:red", DECODED: "tab:purple", "JPEG": "tab:blue", "WebP": "tab:green", "AVIF": "tab:orange"}


def main():
    args = parse()
    path = args.out / "compressed.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    with tempfile.TemporaryDirectory() as directory:
        args.work = Path(directory)
        photos = scan_folder(noise_photos(args.work / "noise") if args.small else args.data)
        for part in args.parts:
            measured = MEASURES[part](photos, args)
            result[part] = {**measured, "settings": settings_of(args), **environment()}
            args.out.mkdir(parents=True, exist_ok=True)
            utils.write_json(path, result)
            print(f"\n{part}\n" + TABLES[part](measured), flush=True)
    for part in ("rate", "accuracy"):
        if part in result:
            PLOTS[part](args.out, result[part])
    print(f"written: {path}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    add_data_argument(parser)
    parser.add_argument(
        "--compressors",
        nargs="+",
        default=[name for name in list_presets() if name.startswith(tuple(CHANNELS))],
        metavar="NAME|PATH",
        help="of rates and accuracies, presets; default: all that come with the package",
    )
    parser.add_argument("--images", type=int, default=300, help="validation photos; default: 300")
    parser.add_argument("--model", default="animals10", help="classifier of the accuracies; default: animals10")
    parser.add_argument("--variants", nargs="+", default=["tiny", "base"], help="of the speeds; default: tiny base")
    parser.add_argument("--image-size", type=int, default=256, help="of the speeds; default: 256")
    parser.add_argument("--batch-size", type=int, default=8, help="of the speeds; default: 8")
    parser.add_argument("--rounds", type=int, default=3, help="of the speeds; default: 3")
    parser.add_argument("--small", action="store_true", help="noise, few images: only that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part: {', '.join(sorted(unknown))}")
    args.parts = args.parts or list(PARTS)
    if args.small:
        args.images, args.variants, args.image_size, args.batch_size, args.rounds = 2, ["tiny"], 64, 2, 2
        args.compressors = args.compressors[:2]
    return args


def open_codec(name=DEFAULT_COMPRESSOR):
    return ImageCodec(Compressor.from_preset(name), name)


def coders(codecs):
    """`(format, quality, encode, decode)` of each way to write an image, the best quality of a format first."""
    for codec in sorted(codecs, key=lambda codec: codec.compressor.quality, reverse=True):
        yield OURS, codec.compressor.quality, codec.compress, codec.decompress
    for name, (options, qualities) in FORMATS.items():
        for quality in qualities:
            yield name, quality, lambda image, n=name, q=quality, o=options: encoded(image, n, q, o), decoded


def encoded(image, name, quality, options):
    content = io.BytesIO()
    Image.fromarray(image).save(content, name, quality=quality, **options)
    return content.getvalue()


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


# === Rate and distortion ===


def measure_rate(photos, args):
    import skimage.data

    codecs = list(map(open_codec, args.compressors))
    sets = {
        "scikit-image": [skimage.data.astronaut()[:176, :192]]
        if args.small
        else [getattr(skimage.data, name)() for name in SHOWN],
        "validation photos": [np.asarray(image) for image in opened(photos, args.images)],
    }
    return {"sets": {name: {"images": len(some), "rows": rates_of(some, codecs)} for name, some in sets.items()}}


def opened(photos, count):
    chosen = held_out(photos, "val", count)
    return [chosen.open(i) for i in range(len(chosen))]


def rates_of(images, codecs):
    """Of each format and quality the means over images of bits per pixel, PSNR, and MS-SSIM where they are large."""
    rows = []
    for name, quality, encode, decode in coders(codecs):
        bits, decibels, similarities = [], [], []
        for image in images:
            content = encode(image)
            restored = decode(content)
            bits.append(8 * len(content) / image[..., 0].size)
            error = np.square(image.astype("float32") - restored).mean(dtype="float64")
            decibels.append(10 * np.log10(255**2 / max(error, 1e-3)))
            if min(image.shape[:2]) >= LEAST_SIDE:
                similarities.append(ms_ssim(image, restored))
        rows.append(
            {
                "format": name,
                "quality": quality,
                "bpp": float(np.mean(bits)),
                "psnr": float(np.mean(decibels)),
                "ms_ssim": float(np.mean(similarities)) if similarities else None,
            }
        )
        print(rows[-1], flush=True)
    return rows


def table_of_rates(measured):
    lines = []
    for name, some in measured["sets"].items():
        lines += [
            f"{name}, {some['images']} images",
            "| format | quality | bits per pixel | PSNR | MS-SSIM |",
            "|---" * 5 + "|",
        ]
        for row in some["rows"]:
            similarity = "" if row["ms_ssim"] is None else f"{row['ms_ssim']:.4f}"
            lines.append(
                f"| {row['format']} | {row['quality']} | {row['bpp']:.3f} | {row['psnr']:.2f} | {similarity} |"
            )
    return "\n".join(lines)


def plot_rates(out, measured):
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots(2, len(measured["sets"]), squeeze=False)
    for column, (name, some) in enumerate(measured["sets"].items()):
        for axis, key, label in zip(axes[:, column], ("psnr", "ms_ssim"), ("PSNR in dB", "MS-SSIM in dB"), strict=True):
            for form, colour in COLOURS.items():
                rows = [row for row in some["rows"] if row["format"] == form and row[key] is not None]
                if not rows:
                    continue
                values = [row[key] if key == "psnr" else -10 * np.log10(1 - row[key]) for row in rows]
                marker = {"marker": "*", "markersize": 14} if form == OURS else {"marker": "o", "markersize": 4}
                axis.plot([row["bpp"] for row in rows], values, color=colour, label=form, **marker)
            axis.set(xlabel="bits per pixel", ylabel=label, xlim=(0, None))
            axis.grid(alpha=0.3)
        axes[0, column].set_title(f"{name} ({some['images']})")
    axes[0, 0].legend(frameon=False)
    save(figure, out / "compressed_rate.svg")


def save(figure, path):
    # No date and no random names, so that the same numbers give the same file.
    with utils.atomic_file(path) as temporary, matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(temporary, metadata={"Date": None})
    print(f"written: {path}")


# === Accuracy over bytes ===


def measure_accuracy(photos, args):
    codec, model = open_codec(), CI2PViT.from_preset(args.model)
    others = [open_codec(name) for name in args.compressors if name != DEFAULT_COMPRESSOR]
    size = 64 if args.small else model.image_shape[0]
    if args.small:
        model = CI2PViT((size, size, 3), variant="tiny", class_names=photos.class_names, compressor=codec.compressor)
    chosen = held_out(photos, "val", args.images)
    labels = np.array([model.class_names.index(chosen.class_names[label]) for label in chosen.labels])
    whole = [np.asarray(chosen.open(i)) for i in range(len(chosen))]
    crops = np.stack([center_crop(Image.fromarray(image), size) for image in whole])

    def row(name, quality, contents, outputs):
        share = float(np.mean(outputs.argmax(-1) == labels))
        agree = float(np.mean(outputs.argmax(-1) == truth))
        rows.append({"format": name, "quality": quality, "bytes": sum(map(len, contents)) / len(labels), "top1": share})
        rows[-1]["agree"] = agree
        print(rows[-1], flush=True)

    rows = []
    pixels = model.predict(crops, batch_size=16, verbose=0)
    truth = pixels.argmax(-1)
    row("pixels", None, [image.tobytes() for image in crops], pixels)
    files = None
    for name, quality, encode, decode in coders([codec, *others]):
        contents = [encode(image) for image in crops]
        if encode == codec.compress:
            files = contents
            outputs = model.latent_classifier.predict(latents_of(codec, files), batch_size=16, verbose=0)
            row(name, quality, contents, outputs)
        outputs = model.predict(np.stack(list(map(decode, contents))), batch_size=16, verbose=0)
        row(DECODED if name == OURS else name, quality, contents, outputs)
    return {
        "images": len(labels),
        "image_size": size,
        "rows": rows,
        "whole": whole_photos(model, codec, whole, labels, truth),
        "views": views(model, codec, whole, crops, files, labels),
    }


def latents_of(codec, contents):
    return np.concatenate([codec.latents(content) for content in contents])


def whole_photos(model, codec, images, labels, truth):
    """Of files of whole photos: all tokens, and the central ones, as many as the model's images have."""
    files = [codec.compress(image) for image in images]
    latents = [codec.latents(content)[0] for content in files]
    grids = {
        "all whole tokens": lambda grid: [side // 2 * 2 for side in grid],
        "the central square": lambda grid: [min(grid) // 2 * 2] * 2,
        "as many as the model's": lambda grid: [
            min(own, side // 2 * 2) for own, side in zip(model.latent_classifier.input_shape[1:3], grid, strict=True)
        ],
    }
    rows = []
    for name, grid_of in grids.items():
        outputs = []
        for some in latents:
            grid = grid_of(some.shape[:2])
            network = model.latent_classifier_of(tuple(grid))
            outputs.append(network.predict_on_batch(crop_latents(some, grid)[None])[0].argmax())
        outputs = np.array(outputs)
        rows.append(
            {"latents": name, "top1": float(np.mean(outputs == labels)), "agree": float(np.mean(outputs == truth))}
        )
        print(rows[-1], flush=True)
    return {"bytes": sum(map(len, files)) / len(files), "rows": rows}


def views(model, codec, images, crops, files, labels):
    """Augmentations of latents beside the same ones of pixels, all coded: top-1, and how often both agree."""
    with tempfile.TemporaryDirectory() as directory:
        # Fitted to other images than it is measured on.
        half = len(files) // 2
        names = [f"{i}{OURS}" for i in range(half)]
        for name, content in zip(names, files, strict=False):
            (Path(directory) / name).write_bytes(content)
        manifest = ImageManifest(Path(directory), ("a",), tuple(names), (0,) * half, ("",) * half)
        mirror = LatentMirror.fit(codec, manifest)
    latents, labels = latents_of(codec, files[half:]), labels[half:]
    rows = crops.shape[1] // 16
    larger = np.stack([center_crop(Image.fromarray(image), crops.shape[1] + 32) for image in images[half:]])
    cases = {
        "flip: reversed columns": (crops[half:, :, ::-1], latents[:, :, ::-1]),
        "flip: `LatentMirror`": (None, np.stack([mirror(some) for some in latents])),
        "crop by a latent": (
            larger[:, 16:-16, 16:-16],
            np.stack([crop_latents(some, (rows, rows)) for some in latents_of(codec, map(codec.compress, larger))]),
        ),
    }
    found, expected = [], None
    for name, (of_pixels, of_latents) in cases.items():
        if of_pixels is not None:
            coded = latents_of(codec, [codec.compress(image) for image in of_pixels])
            expected = model.latent_classifier.predict(coded, batch_size=16, verbose=0).argmax(-1)
        outputs = model.latent_classifier.predict(np.ascontiguousarray(of_latents), batch_size=16, verbose=0).argmax(-1)
        of_pixels, of_latents, agree = (
            float(np.mean(mine == theirs))
            for mine, theirs in ((expected, labels), (outputs, labels), (outputs, expected))
        )
        row = {"view": name, "images": len(labels), "of_pixels": of_pixels, "of_latents": of_latents, "agree": agree}
        found.append(row)
        print(found[-1], flush=True)
    return found


def table_of_accuracies(measured):
    lines = [
        f"{measured['images']} images of {measured['image_size']} px",
        "| format | quality | bytes an image | top-1 | as of the pixels |",
        "|---" * 5 + "|",
    ]
    for row in measured["rows"]:
        shares = f"{row['top1']:.1%} | {row['agree']:.1%}"
        lines.append(f"| {row['format']} | {row['quality'] or ''} | {row['bytes']:,.0f} | {shares} |")
    lines += [f"\nwhole photos, {measured['whole']['bytes']:,.0f} bytes each", "| latents | top-1 | as of the pixels |"]
    lines += ["|---" * 3 + "|"]
    lines += [f"| {row['latents']} | {row['top1']:.1%} | {row['agree']:.1%} |" for row in measured["whole"]["rows"]]
    lines += ["\n| view | images | top-1 of pixels | of latents | both say the same |", "|---" * 5 + "|"]
    lines += [
        f"| {row['view']} | {row['images']} | {row['of_pixels']:.1%} | {row['of_latents']:.1%} | {row['agree']:.1%} |"
        for row in measured["views"]
    ]
    return "\n".join(lines)


def plot_accuracies(out, measured):
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for form, colour in COLOURS.items():
        rows = [row for row in measured["rows"] if row["format"] == form]
        if not rows:
            continue
        marker = {"marker": "*", "markersize": 16} if form == OURS else {"marker": "o", "markersize": 4}
        axis.plot(
            [row["bytes"] for row in rows], [100 * row["top1"] for row in rows], color=colour, label=form, **marker
        )
    pixels = next(row for row in measured["rows"] if row["format"] == "pixels")
    axis.set_xlim(500, None)
    axis.axhline(100 * pixels["top1"], color="grey", linestyle="--", linewidth=0.8, label="as they are")
    axis.set(
        xlabel=f"bytes an image of {measured['image_size']} px",
        ylabel=f"top-1 of {measured['images']} photos, %",
        xscale="log",
    )
    ticks = [size for size in (500, 1000, 2000, 4000, 8000, 16000) if size < 1.2 * max(axis.get_xlim())]
    axis.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    save(figure, out / "compressed_accuracy.svg")


# === Speed ===


def measure_speed(photos, args):
    codec = open_codec()
    files, images = args.work / "files", args.work / "images"
    count = max(4 * args.batch_size, 16)
    chosen = held_out(photos, "val", count)
    for i in range(len(chosen)):
        image = center_crop(chosen.open(i), args.image_size)
        for root, suffix, content in (
            (files, OURS, codec.compress(image)),
            (images, ".jpg", encoded(image, "JPEG", 90, {})),
        ):
            path = root / f"{i % 2}" / f"{i}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    options = {"image_size": args.image_size, "batch_size": args.batch_size, "split": "all", "num_threads": 1}
    flips = {"augment": CROP_AND_FLIP} | {**options, "split": "train"}
    sources = {
        "JPEG": (image_folder(images, augment=False, **options), image_folder(images, **flips)),
        OURS: (
            latent_folder(files, compressor=codec.compressor, augment=False, **options),
            latent_folder(files, compressor=codec.compressor, **flips),
        ),
    }
    return {"image_size": args.image_size, "variants": {v: speeds_of(v, sources, codec, args) for v in args.variants}}


def speeds_of(variant, sources, codec, args):
    """Images a second of each source and the ratios, one entry a round: predicted, trained, and loaded alone."""
    model = CI2PViT((args.image_size,) * 2 + (3,), variant=variant, num_classes=2, compressor=codec.compressor)
    networks = {"JPEG": model, OURS: model.latent_classifier}
    for network in networks.values():
        # The rate of learning makes no difference here.
        network.compile(FusedAdamW(1e-6), keras.losses.CategoricalCrossentropy(from_logits=True))
    speeds = {f"{what} {source}": [] for what in ("predict", "train", "load") for source in sources}
    for number in range(args.rounds + 1):
        for source, (whole, training) in sources.items():
            seconds = {
                "predict": spent(lambda s=source, d=whole: networks[s].predict(first(d), verbose=0)),
                "train": spent(
                    lambda s=source, d=training: networks[s].fit(
                        d.repeat(), steps_per_epoch=1, shuffle=False, verbose=0
                    )
                ),
                "load": spent(lambda d=whole: first(d)),
            }
            for what, each in seconds.items():
                # The first round compiles.
                if number:
                    speeds[f"{what} {source}"].append(args.batch_size / each)
        print(variant, number, {name: values[-1:] for name, values in speeds.items()}, flush=True)
    gains = {
        what: [ours / theirs for ours, theirs in zip(speeds[f"{what} {OURS}"], speeds[f"{what} JPEG"], strict=True)]
        for what in ("predict", "train", "load")
    }
    return {
        "images_per_second": {name: spread(values) for name, values in speeds.items()},
        "gain": {name: spread(values) for name, values in gains.items()},
    }


def first(dataset):
    return next(iter(dataset))[0]


def spent(action):
    """Seconds of the processor, of all threads."""
    began = time.process_time()
    action()
    return time.process_time() - began


def spread(values):
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def table_of_speeds(measured):
    lines = [f"{measured['image_size']} px", "| | images/s from JPEG | from .ci2p | times as fast |", "|---" * 4 + "|"]
    for variant, row in measured["variants"].items():
        for what, gain in row["gain"].items():
            theirs, ours = (row["images_per_second"][f"{what} {source}"]["median"] for source in ("JPEG", OURS))
            lines.append(
                f"| {variant}, {what} | {theirs:.2f} | {ours:.2f} | {gain['median']:.2f} "
                f"({gain['least']:.2f}..{gain['most']:.2f}) |"
            )
    return "\n".join(lines)


# === What the likelihoods promise ===


def measure_promised(photos, args):
    codec = open_codec()
    side = 64 if args.small else 256
    images = [center_crop(image, side) for image in opened(photos, min(args.images, 100))]
    promised = stored = files = 0
    for image in images:
        content = codec.compress(image)
        _, likelihoods = codec.compressor.entropy_bottleneck(codec.latents(content), training=False)
        promised -= float(np.log2(keras.ops.convert_to_numpy(likelihoods).astype("float64")).sum())
        stored += 8 * sum(map(len, read_compressed(content).strings))
        files += 8 * len(content)
    pixels = len(images) * side**2
    return {
        "images": len(images),
        "image_size": side,
        "promised_bpp": promised / pixels,
        "strings_bpp": stored / pixels,
        "files_bpp": files / pixels,
        "more_than_promised": stored / promised - 1,
        "header_bytes": (files - stored) / 8 / len(images),
    }


def table_of_promises(measured):
    return (
        f"{measured['images']} images of {measured['image_size']} px: promised {measured['promised_bpp']:.4f} bits per "
        f"pixel, strings {measured['strings_bpp']:.4f} ({measured['more_than_promised']:+.2%}), files "
        f"{measured['files_bpp']:.4f} (headers of {measured['header_bytes']:.0f} bytes)"
    )


MEASURES = {
    "rate": measure_rate,
    "accuracy": measure_accuracy,
    "speed": measure_speed,
    "promised": measure_promised,
}
TABLES = {
    "rate": table_of_rates,
    "accuracy": table_of_accuracies,
    "speed": table_of_speeds,
    "promised": table_of_promises,
}
PLOTS = {"rate": plot_rates, "accuracy": plot_accuracies}

if __name__ == "__main__":
    main()
