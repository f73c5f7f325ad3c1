"""The command line `keras-ci2p`: parses, runs the command, and turns expected errors into one sentence and exit code 2.

Keras is imported when a command runs, so that `--help`, `--version` and wrong arguments answer at once.
"""

import argparse
import os
import sys
import traceback
import warnings
from pathlib import Path

import keras_ci2p
from keras_ci2p.cli import convert_commands, evaluate_commands, train_commands

INTERRUPTED = 130

# Functions that add a command, in the order of `--help`.
COMMANDS = (
    convert_commands.add_data,
    train_commands.add_train_compressor,
    train_commands.add_cache,
    train_commands.add_train,
    evaluate_commands.add_evaluate,
    evaluate_commands.add_predict,
    convert_commands.add_publish,
    convert_commands.add_quantize,
    convert_commands.add_export,
    evaluate_commands.add_info,
    evaluate_commands.add_flops,
    train_commands.add_compare,
    convert_commands.add_convert,
)

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
    args = make_parser().parse_args(argv)
    shown_before = warnings.showwarning
    warnings.showwarning = _show_warning
    try:
        if args.prepare is not None and args.prepare(args):
            return 0
        keras_ci2p.check_backend()
        keras_ci2p.training.keep_freed_memory()
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("\nInterrupted.", getattr(args, "on_interrupt", ""), file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        is_debug = hasattr(args, "debug")
        if is_debug:
            traceback.print_exc()
        print(f"keras-ci2p: error: {error}", file=sys.stderr)
        if not is_debug and _is_internal(error):
            print("keras-ci2p: this was not foreseen; --debug shows where it comes from.", file=sys.stderr)
        return 2
    finally:
        warnings.showwarning = shown_before


def make_parser():
    """Makes the parser of the command line; no command's code is imported."""
    parser = argparse.ArgumentParser(
        "keras-ci2p", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"keras-ci2p {keras_ci2p.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name, help, description, run, prepare=None, epilog=None):
        """Adds a command and returns its parser.

        Args:
            name, help, description, epilog: As in `argparse`.
            run: Function of the parsed arguments; returns the exit code, or None for 0.
            prepare: Function of the parsed arguments that checks them before Keras is imported; returns True where
                nothing else is to be done. None for none.
        """
        command = commands.add_parser(
            name,
            help=help,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        command.set_defaults(run=run, prepare=prepare, usage_error=command.error)
        return command

    for add_command in COMMANDS:
        add_command(add)
    return parser


def _is_internal(error):
    """Whether a ValueError was raised by another package, or by an operation, not by a statement of this package."""
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    is_ours = Path(__file__).parents[1] in Path(innermost.filename).parents
    return not (is_ours and innermost.line.startswith("raise"))


def _show_warning(message, category, filename, lineno, file=None, line=None):
    print(f"keras-ci2p: warning: {message}", file=sys.stderr)
