"""Commands that make files of others: `convert`, `export`, `demo`, `publish` and `quantize`."""

import collections
import shlex
import sys

from keras_ci2p.cli.evaluate_commands import MODEL_HELP, add_rescan, check_inputs, refuse_given
from keras_ci2p.export.formats import FORMATS, IMAGES, INPUTS, INT8_FORMATS, LATENTS
from keras_ci2p.setting import integer
from keras_ci2p.utils import user_path
from keras_ci2p.weight_storage import STORAGES

CONVERT = """\
Convert weights between PyTorch checkpoints and presets.

SOURCE is a checkpoint of CompressAI or of the paper's code (.pth.tar, .pth, .safetensors; which one is read off its
keys), or a preset. DEST is a new preset directory, or with --to compressai or mmpretrain a file (.pth or .safetensors).
The weights are found in whatever dicts and behind whatever prefixes they lie; of several, --key takes one. No code in a
file is executed. A file can be checked first against a published checksum (--sha256): only that finds a
flipped bit in a safetensors file."""

EXPORT = """\
Write a model for another runtime: onnx (.onnx), tf_saved_model (directory), openvino (directory), torch (.pt2) or
litert (.tflite). It takes float32 images (batch, height, width, 3), RGB in 0..255, in batches of any size; or, with
--input latents, what the model's compressor makes of them, as .ci2p files hold it.

The file is run by its runtime and must give the model's logits within 1e-4; otherwise nothing is written. What Keras's
backend cannot write, another one that is installed writes.

With --int8, onnx and openvino hold 8-bit weights and compute with 8-bit activations, a third of the size and, where the
processor multiplies such integers fast (VNNI), about twice the speed. The ranges are taken from training images of
--data; top-1 on its validation images must be within 0.5 points of the float model's."""

DEMO = """\
Write a web page that shows what a classifier sees in an image: the model runs in the browser, by ONNX Runtime Web on
one thread, and images are sent nowhere. DEST is a directory for any server of static files (python -m http.server),
or, where it ends in .html, one file of everything that opens by itself.

ONNX Runtime Web comes from npm the first time, and is then kept; without npm --runtime says where it is."""

PUBLISH = """\
Turn a training run into a preset to ship: compact weights, measured again on the validation images of DATA, with a
model card.

DEST gets the preset and README.md (the card), report.json, confusion.png, and of a run history.csv, curves.png and
recipe.toml. It is refused where the compact weights are not as good as the run's, or where DATA has validation images
that were trained on. Compressors can be published too."""

QUANTIZE = """\
Quantise the transformer's products to int8, without training. DEST is a preset like any other; `keras-ci2p evaluate
DEST DATA` tells what it has lost.

That saves memory, not time: Keras multiplies such integers slower than floats on a CPU. For speed: `keras-ci2p export
--int8`."""


KINDS = ("preset", "compressai", "mmpretrain")
_REPLACED = "directory of the preset; one that is there is replaced"


def add_convert(add):
    parser = add("convert", "convert weights from and to PyTorch", CONVERT, convert)
    parser.add_argument("source", metavar="SOURCE", help="checkpoint, training run, preset or its name")
    parser.add_argument("dest", metavar="DEST", help="what to write; it must not exist")
    parser.add_argument("--to", choices=KINDS, default=KINDS[0], help=f"default: {KINDS[0]}")
    parser.add_argument(
        "--quality", type=integer(at_least=1), metavar="N", help="quality of a CompressAI checkpoint, if known"
    )
    parser.add_argument(
        "--image-size", type=integer(at_least=1), metavar="N", help="of the paper's models; default: 256"
    )
    parser.add_argument("--key", metavar="KEY", help="which weights of a checkpoint to take, such as model_ema")
    parser.add_argument(
        "--num-classes",
        type=integer(at_least=1),
        metavar="N",
        help="of the paper's models: classes of a fresh head in place of the checkpoint's",
    )
    parser.add_argument(
        "--sha256", metavar="HEX", help="first digits that the SHA-256 of a checkpoint SOURCE must have"
    )


def convert(args):
    from keras_ci2p import utils

    source, dest = user_path(args.source), user_path(args.dest)
    if dest.exists() and not (dest.is_dir() and utils.is_empty(dest)):
        raise FileExistsError(f"{dest} exists already; choose another name.")
    sha256, mapped, ignored, further = None, [], {}, {}
    if source.is_file():
        sha256 = utils.file_sha256(source)
        if args.sha256 and not sha256.startswith(args.sha256.lower()):
            raise ValueError(f"{source} is not the expected file: its SHA-256 does not begin with {args.sha256}.")
        model, mapped, ignored = _read_checkpoint(source, sha256, args)
    else:
        model, further = _read_preset(args)
    if args.to == "preset":
        model.save_to_preset(dest, **further)
    else:
        mapped = _write_checkpoint(model, dest, args.to)
    print(f"{type(model).__name__}, {len(mapped) or len(model.weights)} weights")
    for part, count in collections.Counter(_part(key) for key in mapped).items():
        print(f"converted: {part} ({count} entries)")
    for reason, keys in sorted(ignored.items()):
        parts = collections.Counter(map(_part, keys))
        print(f"left out, {reason}: " + ", ".join(f"{part} ({count})" for part, count in parts.items()))
    if sha256:
        print(f"SHA-256 of {source}: {sha256}")
    print(f"written: {dest}")


def _read_checkpoint(path, sha256, args):
    """`(model, keys used, {reason: keys left out})`."""
    from keras_ci2p.convert import compressai, mmpretrain
    from keras_ci2p.convert.state_dict import read_state_dict

    state = read_state_dict(path, compressai.LAYOUT | mmpretrain.LAYOUT, args.key)
    if state.where:
        others = f"; also there, for --key: {', '.join(state.others)}" if state.others else ""
        print(f"weights: {state.where}{others}")
    if state.layout in compressai.LAYOUT:
        reason = f"{path} is a checkpoint of CompressAI, which takes images of any size and has no classes"
        refuse_given(args, ["image_size", "num_classes"], reason)
        model = compressai.from_compressai(state, args.quality, source={"name": path.name, "sha256": sha256})
        used = [entry.key for entry in compressai.compressai_entries(model)]
        reasons = {key: compressai.unused_reason(key, model.architecture) for key in compressai.normalise_keys(state)}
    else:
        refuse_given(args, ["quality"], f"{path} is a checkpoint of the paper's code, not of CompressAI")
        size = args.image_size
        model = mmpretrain.from_mmpretrain(state, image_shape=size and (size, size, 3), num_classes=args.num_classes)
        used = [entry.key for entry in mmpretrain.mmpretrain_entries(model) if entry.key in state]
        reasons = {key: mmpretrain.unused_reason(key) for key in state}
    if args.num_classes:
        used = [key for key in used if not key.startswith("head.")]
        print(f"head: new, for {args.num_classes} classes; train it")
    ignored = {}
    for key in sorted(reasons.keys() - set(used)) + state.beside:
        ignored.setdefault(reasons.get(key) or "not part of the model", []).append(key)
    return model, used, ignored


def _part(key):
    """The part of the model that an entry belongs to: `g_a`, or `backbone.transformer` and the like."""
    parts = key.split(".")
    return ".".join(parts[: 2 if parts[0] == "backbone" else 1])


def _read_preset(args):
    """The model, and what else of its preset `save_to_preset` is to write again."""
    from keras_ci2p.models.ci2p_vit import open_preset_model
    from keras_ci2p.presets import open_preset

    preset = open_preset(args.source)
    reason = f"{args.source} is a preset, not a checkpoint file"
    refuse_given(args, ["sha256"], f"{reason}, and is checked by the checksums in it")
    refuse_given(args, ["quality", "image_size", "key", "num_classes"], reason)
    model, preset = open_preset_model(preset)
    return model, preset.carried()


def _write_checkpoint(model, dest, kind):
    """Writes a checkpoint and returns its keys."""
    from keras_ci2p.convert.compressai import to_compressai
    from keras_ci2p.convert.mmpretrain import to_mmpretrain
    from keras_ci2p.convert.state_dict import write_state_dict
    from keras_ci2p.models.compressor import Compressor

    if isinstance(model, Compressor) != (kind == "compressai"):
        raise ValueError(f"A {type(model).__name__} cannot be written as a checkpoint of {kind}.")
    state = to_compressai(model) if kind == "compressai" else to_mmpretrain(model)
    write_state_dict(dest, state)
    return list(state)


def add_export(add):
    parser = add(
        "export",
        "write a model for ONNX Runtime, TensorFlow, OpenVINO, PyTorch or LiteRT",
        EXPORT,
        export,
        prepare_export,
    )
    parser.add_argument("model", metavar="RUN|PRESET", help=MODEL_HELP)
    parser.add_argument("dest", metavar="DEST", help="file or directory to write")
    parser.add_argument("--format", required=True, choices=tuple(FORMATS))
    parser.add_argument(
        "--image-size", type=integer(at_least=1), metavar="N", help="height and width; default: the model's"
    )
    parser.add_argument(
        "--opset", type=integer(at_least=1), metavar="N", help="version of ONNX's operators, at least 18"
    )
    parser.add_argument(
        "--outputs",
        type=lambda text: text.split(","),
        metavar="NAMES",
        help="logits,attention: the file also tells where the model looks, by token; default: logits",
    )
    parser.add_argument(
        "--input",
        choices=INPUTS,
        default=IMAGES,
        help="latents: the classifier after the compressor, for those who have compressed files; default: images",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an exported model at DEST")
    _add_int8(parser, f", for {' and '.join(INT8_FORMATS)}")


def _add_int8(parser, formats=""):
    parser.add_argument("--int8", action="store_true", help=f"8-bit weights and activations{formats}")
    parser.add_argument("--data", metavar="DATA", help="of --int8: the images of the training, as in train")


def prepare_model(args):
    check_inputs([args.model])


def prepare_export(args):
    if args.int8 and args.input != IMAGES:
        raise ValueError(f"--int8 writes a file that takes images. Received: --input {args.input}")
    if args.int8 and args.format not in INT8_FORMATS:
        raise ValueError(f"--int8 is for --format {' and '.join(INT8_FORMATS)}. Received: --format {args.format}")
    _check_int8_data(args)
    check_inputs([args.model], [args.data] if args.int8 else [])


def _check_int8_data(args):
    if args.int8 != (args.data is not None):
        raise ValueError("--int8 and --data DATA go together: it is calibrated and measured on those images.")


def export(args):
    import keras

    from keras_ci2p.export.export import export
    from keras_ci2p.models.ci2p_vit import open_classifier
    from keras_ci2p.presets import preset_name

    arguments = {"image_shape": (args.image_size, args.image_size, 3)} if args.image_size else {}
    model, preset = open_classifier(args.model, **arguments)
    known = {"name": preset_name(preset.directory), "license": preset.metadata.get("license")}
    metadata = {key: value for key, value in known.items() if value}
    args.on_interrupt = f"Nothing is written to {args.dest}."
    options = {"opset": args.opset, "overwrite": args.overwrite, "metadata": metadata}
    if args.int8:
        return _export_int8(model, args, options)
    report = export(model, args.dest, args.format, outputs=args.outputs, input=args.input, **options)
    backend = keras.backend.backend()
    elsewhere = "" if report.backend == backend else f", in a process of its own, since {backend} cannot"
    opset = f", opset {report.opset}" if report.opset else ""
    of_latents = args.input == LATENTS
    shape = ", ".join(map(str, (model.latent_classifier if of_latents else model).input_shape[1:]))
    what = "of the model's compressor" if of_latents else "RGB in 0..255"
    print(f"{args.input}: float32 (batch, {shape}), {what}")
    print(f"written by {report.backend}{elsewhere}{opset}: {report.num_bytes:,} bytes")
    print(f"largest difference from the model on {backend}: {report.difference:.1e}")
    print(f"written: {args.dest}")


def _export_int8(model, args, options):
    from keras_ci2p.export.int8 import export_int8

    data = _int8_data(model, args)
    report = export_int8(model, args.dest, args.format, data, outputs=args.outputs, **options)
    height, width, _ = model.image_shape
    print(f"images: float32 (batch, {height}, {width}, 3), RGB in 0..255")
    _print_int8(report)
    print(f"written: {args.dest}")


def _int8_data(model, args):
    from keras_ci2p.data.sources import open_data
    from keras_ci2p.training.evaluation import match_classes

    return match_classes(model, open_data(args.data))


def _print_int8(report):
    kept = f"; floats: {', '.join(report.floats)}" if report.floats else ""
    print(f"8 bits, ranges by {report.method}{kept}: {report.num_bytes:,} bytes, as floats {report.float_bytes:,}")
    print(f"top-1 of {report.photos:,} validation images: {report.top1:.2%}, as floats {report.float_top1:.2%}")


def add_demo(add):
    parser = add("demo", "write a web page on which a model looks at images", DEMO, demo, prepare_demo)
    parser.add_argument("model", metavar="RUN|PRESET", help=MODEL_HELP)
    parser.add_argument("dest", metavar="DEST", help="directory or .html file to write")
    parser.add_argument("--samples", nargs="+", metavar="IMAGE", help="to choose from; default: scikit-image's cat")
    parser.add_argument("--runtime", metavar="FILE", help="archive that `npm pack` made, or a directory of its files")
    _add_int8(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a page at DEST")


def prepare_demo(args):
    _check_int8_data(args)
    check_inputs([args.model], [args.data] if args.int8 else [])
    for path in [*(args.samples or ()), *([args.runtime] if args.runtime else ())]:
        if not user_path(path).exists():
            raise FileNotFoundError(f"There is no file {path}.")


def demo(args):
    from keras_ci2p.export.demo.build import write_demo
    from keras_ci2p.models.ci2p_vit import open_classifier
    from keras_ci2p.presets import preset_name

    model, preset = open_classifier(args.model)
    args.on_interrupt = f"Nothing is written to {args.dest}."
    options = {"samples": args.samples, "runtime": args.runtime, "overwrite": args.overwrite}
    options["int8_data"] = _int8_data(model, args) if args.int8 else None
    report = write_demo(model, args.dest, name=preset_name(preset.directory), **options)
    is_one_file = user_path(args.dest).suffix == ".html"
    advice = "open it" if is_one_file else f"python -m http.server --directory {shlex.quote(args.dest)}"
    if args.int8:
        _print_int8(report)
    else:
        print(f"largest difference of the model in it: {report.difference:.1e}")
    print(f"written: {args.dest} ({advice})")


def add_publish(add):
    parser = add(
        "publish", "make a small preset with a model card of a training run", PUBLISH, publish, prepare_publish
    )
    parser.add_argument("source", metavar="RUN|PRESET", help=MODEL_HELP)
    parser.add_argument("dest", metavar="DEST", help=_REPLACED)
    parser.add_argument("--data", required=True, metavar="DATA", help="the images of the training, as in train")
    add_rescan(parser)
    parser.add_argument(
        "--storage",
        choices=STORAGES,
        default="float16",
        help="of the weights: 32-bit, 16-bit (default), or 8-bit integers times a power of two for each channel",
    )
    parser.add_argument("--name", metavar="NAME", help="title of the card; default: the name of DEST")
    parser.add_argument("--notes", metavar="FILE", help="Markdown for the card: limits, what it is not good for")
    parser.add_argument("--batch-size", type=integer(at_least=1), default=32, metavar="N", help="default: 32")


def prepare_publish(args):
    check_inputs([args.source], [args.data])


def publish(args):
    from keras_ci2p.training.publish import publish

    notes = user_path(args.notes).read_text(encoding="utf-8") if args.notes else ""
    args.on_interrupt = f"Nothing is written to {args.dest}."
    report = publish(
        args.source,
        args.dest,
        args.data,
        storage=args.storage,
        name=args.name,
        notes=notes,
        batch_size=args.batch_size,
        verbose=int(sys.stdout.isatty()),
    )
    original = report["original"]
    print(f"weights: {report['bytes']:,} bytes ({report['storage']}), before {original['bytes']:,}")
    for key, label, form in (("top1", "top-1", ".2%"), ("psnr", "PSNR in dB", ".2f"), ("bpp", "bits per pixel", ".4f")):
        if key in report:
            print(f"{label}: {report[key]:{form}}, before {original[key]:{form}}")
    print(f"written: {args.dest}")


def add_quantize(add):
    parser = add(
        "quantize", "store and multiply a transformer's weights as 8-bit integers", QUANTIZE, quantize, prepare_model
    )
    parser.add_argument("model", metavar="RUN|PRESET", help=MODEL_HELP)
    parser.add_argument("dest", metavar="DEST", help=_REPLACED)


def quantize(args):
    from keras_ci2p.models.ci2p_vit import open_classifier
    from keras_ci2p.presets import WEIGHTS, check_destination

    check_destination(args.dest)
    model, preset = open_classifier(args.model)
    model.quantize("int8")
    model.save_to_preset(args.dest, **preset.carried())
    count = sum(layer.quantization_mode is not None for layer in model._flatten_layers())
    before, after = ((user_path(path) / WEIGHTS).stat().st_size for path in (preset.directory, args.dest))
    print(f"quantised: {count} products of the transformer")
    print(f"weights: {after:,} bytes, before {before:,}")
    print(f"written: {args.dest}")
