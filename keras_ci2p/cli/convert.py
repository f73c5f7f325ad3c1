"""`keras-ci2p convert`"""

import argparse
import collections
from pathlib import Path

KINDS = ("preset", "compressai", "mmpretrain")

DESCRIPTION = """\
Convert weights between PyTorch checkpoints and presets.

SOURCE is a checkpoint of CompressAI or of the paper's code (.pth.tar, .pth, .safetensors; which one is read off its
keys), or a preset. DEST is a new preset directory, or with --to compressai or mmpretrain a file (.pth or .safetensors).
No code in a file is executed. A file can be checked first against a published checksum (--sha256): only that finds a
flipped bit in a safetensors file."""


def add_parser(commands):
    parser = commands.add_parser(
        "convert",
        help="convert weights from and to PyTorch",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="checkpoint, training run, preset or its name")
    parser.add_argument("dest", metavar="DEST", help="what to write; it must not exist")
    parser.add_argument("--to", choices=KINDS, default=KINDS[0], help=f"default: {KINDS[0]}")
    parser.add_argument("--quality", type=int, metavar="N", help="quality of a CompressAI checkpoint, if known")
    parser.add_argument("--image-size", type=int, metavar="N", help="of the paper's models; default: 256")
    parser.add_argument("--sha256", metavar="HEX", help="first digits that the SHA-256 of SOURCE must have")
    parser.set_defaults(run=run)


def run(args):
    from keras_ci2p import utils

    source, dest = Path(args.source), Path(args.dest)
    if dest.exists():
        raise FileExistsError(f"{dest} exists already; choose another name.")
    sha256 = utils.file_sha256(source) if source.is_file() else None
    if args.sha256 and not (sha256 and sha256.startswith(args.sha256.lower())):
        raise ValueError(f"{source} is not the expected file: its SHA-256 does not begin with {args.sha256}.")
    further = {}
    if sha256:
        model, mapped, ignored = _read_checkpoint(source, sha256, args)
    else:
        (model, further), mapped, ignored = _read_preset(args.source), [], {}
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
    from keras_ci2p.convert import compressai
    from keras_ci2p.convert.compressai import from_compressai
    from keras_ci2p.convert.mmpretrain import from_mmpretrain, mmpretrain_entries
    from keras_ci2p.convert.state_dict import CheckpointError, read_state_dict

    state = read_state_dict(path)
    ignored = {}
    if any(key.removeprefix("module.").startswith("g_a.") for key in state):
        model = from_compressai(state, quality=args.quality, origin={"name": path.name, "sha256": sha256})
        for key in sorted(compressai.normalise_keys(state)):
            if reason := compressai.unused_reason(key, model.architecture):
                ignored.setdefault(reason, []).append(key)
        return model, [entry.key for entry in compressai.compressai_entries(model)], ignored
    if "head.fc.weight" in state:
        size = args.image_size
        model = from_mmpretrain(state, image_shape=size and (size, size, 3))
        used = [entry.key for entry in mmpretrain_entries(model)]
        left = sorted(state.keys() - set(used))
        return model, used, {"constant": left} if left else {}
    raise CheckpointError(
        f"{path} is neither of CompressAI (g_a. ...) nor of the paper's code (head.fc. ...). It begins with "
        f"{', '.join(sorted(state)[:3])}."
    )


def _part(key):
    """The part of the model that an entry belongs to: `g_a`, or `backbone.transformer` and the like."""
    parts = key.removeprefix("module.").split(".")
    return ".".join(parts[: 2 if parts[0] == "backbone" else 1])


def _read_preset(name):
    """The model, and what else of its preset `save_to_preset` is to write again."""
    from keras_ci2p.models.loading import open_preset_model

    model, preset = open_preset_model(name)
    return model, preset.carried()


def _write_checkpoint(model, dest, kind):
    """Writes a checkpoint and returns its keys."""
    from keras_ci2p import utils
    from keras_ci2p.convert.compressai import to_compressai
    from keras_ci2p.convert.mmpretrain import to_mmpretrain
    from keras_ci2p.models.compressor import Compressor
    from keras_ci2p.utils import require

    if isinstance(model, Compressor) != (kind == "compressai"):
        raise ValueError(f"A {type(model).__name__} cannot be written as a checkpoint of {kind}.")
    state = to_compressai(model) if kind == "compressai" else to_mmpretrain(model)
    with utils.atomic_file(dest) as temporary:
        if dest.suffix == ".safetensors":
            require("safetensors.numpy", extra="convert").save_file(state, temporary)
        else:
            torch = require("torch", extra="torch")
            torch.save({key: torch.tensor(value) for key, value in state.items()}, temporary)
    return list(state)
