"""`keras-ci2p export`"""

import argparse

from keras_ci2p.cli.model import HELP

DESCRIPTION = """\
Write a model for another runtime: onnx (.onnx), tf_saved_model (directory), openvino (directory), torch (.pt2) or
litert (.tflite). It takes float32 images (batch, height, width, 3), RGB in 0..255, in batches of any size.

The file is run by its runtime and must give the model's logits within 1e-4; otherwise nothing is written. What Keras's
backend cannot write, another one that is installed writes."""


def add_parser(commands):
    parser = commands.add_parser(
        "export",
        help="write a model for ONNX Runtime, TensorFlow, OpenVINO, PyTorch or LiteRT",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="RUN|PRESET", help=HELP)
    parser.add_argument("dest", metavar="DEST", help="file or directory to write")
    parser.add_argument("--format", required=True, choices=("onnx", "tf_saved_model", "openvino", "torch", "litert"))
    parser.add_argument("--image-size", type=int, metavar="N", help="height and width; default: the model's")
    parser.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators, at least 18")
    parser.add_argument("--overwrite", action="store_true", help="replace an exported model at DEST")
    parser.set_defaults(run=run)


def run(args):
    import keras

    from keras_ci2p.cli.model import open_model
    from keras_ci2p.export.export import export
    from keras_ci2p.presets import preset_name

    arguments = {"image_shape": (args.image_size, args.image_size, 3)} if args.image_size else {}
    model, preset = open_model(args.model, **arguments)
    known = {"name": preset_name(preset.directory), "license": preset.metadata.get("license")}
    metadata = {key: value for key, value in known.items() if value}
    args.on_interrupt = f"Nothing is written to {args.dest}."
    report = export(model, args.dest, args.format, opset=args.opset, overwrite=args.overwrite, metadata=metadata)
    backend = keras.backend.backend()
    elsewhere = "" if report.backend == backend else f", in a process of its own, since {backend} cannot"
    opset = f", opset {report.opset}" if report.opset else ""
    height, width, _ = model.image_shape
    print(f"images: float32 (batch, {height}, {width}, 3), RGB in 0..255")
    print(f"written by {report.backend}{elsewhere}{opset}: {report.num_bytes:,} bytes")
    print(f"largest difference from the model on {backend}: {report.difference:.1e}")
    print(f"written: {args.dest}")
