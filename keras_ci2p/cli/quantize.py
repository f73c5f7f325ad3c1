"""`keras-ci2p quantize`"""

from pathlib import Path

from keras_ci2p.cli.model import HELP


def add_parser(commands):
    parser = commands.add_parser(
        "quantize",
        help="store and multiply a transformer's weights as 8-bit integers",
        description="Quantise the transformer's products to int8, without training. DEST is a preset like any other; "
        "`keras-ci2p evaluate DEST DATA` tells what it has lost.",
    )
    parser.add_argument("model", metavar="RUN|PRESET", help=HELP)
    parser.add_argument("dest", metavar="DEST", help="directory of the preset; one that is there is replaced")
    parser.set_defaults(run=run)


def run(args):
    from keras_ci2p.cli.model import open_model
    from keras_ci2p.presets import WEIGHTS, check_destination

    check_destination(args.dest)
    model, preset = open_model(args.model)
    model.quantize("int8")
    model.save_to_preset(args.dest, **preset.carried())
    count = sum(layer.quantization_mode is not None for layer in model._flatten_layers())
    before, after = ((Path(path) / WEIGHTS).stat().st_size for path in (preset.directory, args.dest))
    print(f"quantised: {count} products of the transformer")
    print(f"weights: {after:,} bytes, before {before:,}")
    print(f"written: {args.dest}")
