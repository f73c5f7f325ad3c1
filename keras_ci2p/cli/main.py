"""Parses the command line, runs the command, and turns expected errors into one sentence and exit code 2."""

import argparse
import os
import sys
import warnings

import keras_ci2p
from keras_ci2p.cli import (
    cache,
    compare,
    convert,
    data,
    evaluate,
    export,
    flops,
    info,
    predict,
    publish,
    quantize,
    train,
    train_compressor,
)

COMMANDS = (
    data,
    train_compressor,
    cache,
    train,
    evaluate,
    predict,
    publish,
    quantize,
    export,
    info,
    flops,
    compare,
    convert,
)
INTERRUPTED = 130

DESCRIPTION = """\
Train, evaluate and use CI2P-ViT: a Vision Transformer whose patches come from a learned image compressor.

The framework is chosen as in Keras: KERAS_BACKEND=torch, jax or tensorflow."""

EPILOG = """\
examples:
  keras-ci2p train photos --variant tiny --image-size 128 --epochs 20 --out run
  keras-ci2p evaluate run photos
  keras-ci2p predict run cat.jpg dog.jpg
  keras-ci2p info base

photos holds one subfolder per class, or folders train and val that do. `keras-ci2p COMMAND --help` tells more."""


def main(argv=None):
    """Runs the command line and returns its exit code: 0, 2 for an error, 130 when interrupted."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(
        "keras-ci2p",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"keras-ci2p {keras_ci2p.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add_parser(commands)
    args = parser.parse_args(argv)
    warnings.showwarning = _show_warning
    try:
        keras_ci2p.check_backend()
        keras_ci2p.training.keep_freed_memory()
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("\nInterrupted.", getattr(args, "on_interrupt", ""), file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        print(f"keras-ci2p: error: {error}", file=sys.stderr)
        return 2


def _show_warning(message, category, filename, lineno, file=None, line=None):
    print(f"keras-ci2p: warning: {message}", file=sys.stderr)
