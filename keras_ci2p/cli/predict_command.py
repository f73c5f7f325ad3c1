"""The command `predict`."""

import csv
import glob
import json
import os
import sys

from keras_ci2p.cli.evaluate_commands import MODEL_HELP, add_compressor_of_files, check_inputs
from keras_ci2p.setting import integer

PREDICT = """\
The most probable classes of each image, which is cut as `evaluate` cuts it.

IMAGE is an image in any format that Pillow reads, a .ci2p file, a folder, of which all images at any depth are taken, a
pattern such as 'images/**/*.jpg', or - for a list of such names, one a line, on standard input. A name of nothing is
refused before anything is computed; a file that cannot be read is told and left out, and makes the exit code 2, unless
it was only found in a folder."""


def add_predict(add):
    parser = add("predict", "classify images", PREDICT, predict, prepare_predict)
    parser.add_argument("model", metavar="RUN|PRESET", help=MODEL_HELP)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image, folder, pattern, or - for a list of them")
    parser.add_argument(
        "--top", type=integer(at_least=1), default=5, metavar="K", help="classes for each image; default: 5"
    )
    parser.add_argument("--batch-size", type=integer(at_least=1), default=32, metavar="N", help="default: 32")
    add_compressor_of_files(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV, a row for each image and class")


def prepare_predict(args):
    check_inputs([args.model])
    names = [line for name in args.images for line in (_lines(sys.stdin) if name == "-" else [name])]
    args.paths, args.named = [], set()
    for name in names:
        paths = _images_of(name)
        args.paths += paths
        if not os.path.isdir(name):
            args.named.update(paths)
    if not args.paths:
        raise ValueError("There is no image to classify: standard input names none.")


def _lines(file):
    return [line.rstrip("\r\n") for line in file if line.strip()]


def _images_of(name):
    """The files that a file, a folder or a pattern stands for; ValueError where there is none."""
    from keras_ci2p.data.layouts import visible_files

    if os.path.isdir(name):
        paths, none = list(map(str, visible_files(name))), f"The folder {name} holds no file."
    elif os.path.exists(name):
        return [name]
    else:
        paths, none = sorted(filter(os.path.isfile, glob.iglob(name, recursive=True))), f"There is no file {name}."
    if not paths:
        raise ValueError(none)
    return paths


def predict(args):
    from keras_ci2p.models.ci2p_vit import open_classifier
    from keras_ci2p.training.latents import FileReader, classify_files
    from keras_ci2p.utils import progress

    unreadable = set()

    def tell(path, error):
        unreadable.add(path)
        print(f"keras-ci2p: {path} cannot be read: {error}", file=sys.stderr)

    model, preset = open_classifier(args.model)
    reader = FileReader(getattr(model, "compressor", None), args.compressor, preset.metadata.get("compressor"))
    results = classify_files(model, reader, args.paths, args.top, args.batch_size, tell)
    # On a terminal the results themselves show how far it is.
    if not sys.stdout.isatty():
        results = progress(results, len(args.paths), "classified")
    write = _print_json if args.json else _print_csv if args.csv else _print_text
    write(results)
    return 2 if unreadable & args.named else 0


# Each prints a result when it is there: of many images the first should not wait for the last.


def _print_json(results):
    before = "["
    # Where the terminal has no Unicode, all else than ASCII is escaped as JSON does it.
    is_ascii = not (sys.stdout.encoding or "").lower().startswith("utf")
    for path, top in results:
        row = {"image": path, "top": [{"class": name, "probability": probability} for name, probability in top]}
        print(before + json.dumps(row, indent=2, ensure_ascii=is_ascii), end="", flush=True)
        before = ",\n"
    print("[]" if before == "[" else "]")


def _print_csv(results):
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("image", "rank", "class", "probability"))
    for path, top in results:
        writer.writerows((path, rank, name, probability) for rank, (name, probability) in enumerate(top, 1))


def _print_text(results):
    for path, top in results:
        print(path)
        for name, probability in top:
            print(f"  {100 * probability:5.1f} %  {name}")
