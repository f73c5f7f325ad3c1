"""The command line `keras-ci2p`: parses, runs the command, and turns expected errors into one sentence and exit code 2.

Keras is imported when a command runs, so that `--help`, `--version` and wrong arguments answer at once.
"""

import argparse
import contextlib
import os
import re
import sys
import traceback
import warnings
from pathlib import Path

import keras_ci2p
from keras_ci2p.backend import lean_start
from keras_ci2p.cli import (
    convert_commands,
    data_commands,
    evaluate_commands,
    predict_command,
    train_commands,
)
from keras_ci2p.utils import did_you_mean, on_interrupt

INTERRUPTED = 130

# Functions that add a command, in the order of `--help`.
COMMANDS = (
    data_commands.add_data,
    train_commands.add_train_compressor,
    train_commands.add_cache,
    train_commands.add_train,
    evaluate_commands.add_evaluate,
    predict_command.add_predict,
    data_commands.add_compress,
    data_commands.add_decompress,
    convert_commands.add_publish,
    convert_commands.add_quantize,
    convert_commands.add_export,
    convert_commands.add_demo,
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
    """Runs the command line and returns its exit code: 0, 2 for an error, 130 when interrupted.

    Args:
        argv: List of words, else those of this process, which is then taken for a process of its own.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for stream in (sys.stdout, sys.stderr):
        # A letter that the terminal does not have must not end a command that has its result.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:
        _complete(parser)
    args = parser.parse_args(argv)
    _expand_home(args)
    shown_before = warnings.showwarning
    warnings.showwarning = _show_warning
    try:
        if args.prepare is not None and args.prepare(args):
            return 0
        if hasattr(args, "rescan"):
            keras_ci2p.data.sources.forget(args.data)
        with on_interrupt(_leave):
            with lean_start() if argv is None else contextlib.nullcontext():
                keras_ci2p.check_backend()
            keras_ci2p.training.keep_freed_memory()
            keras_ci2p.training.keep_compiled_code()
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("\nInterrupted.", getattr(args, "on_interrupt", ""), file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, ImportError, NotImplementedError) as error:
        is_debug = hasattr(args, "debug")
        if is_debug:
            traceback.print_exc()
        print(f"keras-ci2p: error: {error}", file=sys.stderr)
        if not is_debug and _is_internal(error):
            print("keras-ci2p: this was not foreseen; --debug shows where it comes from.", file=sys.stderr)
        return 2
    finally:
        warnings.showwarning = shown_before


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """As in `argparse`, which tells of what is nearly a choice since Python 3.14 alone."""
        wrong = re.search("invalid choice: '(.*)' .choose from (.*).$", message)
        hint = did_you_mean(wrong[1], [choice.strip("'") for choice in wrong[2].split(", ")]) if wrong else ""
        super().error(f"{message}.{hint}" if hint else message)


def make_parser():
    """Makes the parser of the command line; no command's code is imported."""
    parser = _Parser(
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


def _complete(parser):
    """Answers a shell that asks for completions, as argcomplete (extra `shell`) sets it up, and ends the process."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(parser)


def _expand_home(args):
    """Puts the home directory for a leading "~" that no shell has replaced: in `--out=~/run`, in quotes, on Windows."""
    for name, value in vars(args).items():
        if isinstance(value, str):
            setattr(args, name, os.path.expanduser(value))
        elif isinstance(value, list):
            setattr(args, name, [os.path.expanduser(one) if isinstance(one, str) else one for one in value])


def _leave(signum, frame):
    """Ends the process at Ctrl-C during imports: packages drop KeyboardInterrupt, or make errors of their own of it."""
    os.write(2, b"\nInterrupted.\n")
    os._exit(INTERRUPTED)


def _is_internal(error):
    """Whether an error of values was raised by another package or an operation, not by a statement of this package."""
    if not isinstance(error, (ValueError, NotImplementedError)) or error.__traceback__ is None:
        return False
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    is_ours = Path(__file__).parents[1] in Path(innermost.filename).parents
    return not (is_ours and innermost.line.startswith("raise"))


def _show_warning(message, category, filename, lineno, file=None, line=None):
    print(f"keras-ci2p: warning: {message}", file=sys.stderr)
