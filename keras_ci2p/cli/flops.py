"""`keras-ci2p flops`"""

import argparse

from keras_ci2p.cli.model import HELP

DESCRIPTION = """\
Count the multiply-accumulates of a model by part, from its own layers, and compare them with those of a ViT with
16 x 16 patches and the same transformer blocks: ViT-B/16 for base.

What the paper calls FLOPs are the multiply-accumulates, norms and averages. Of a training step, the frozen compressor
takes its forward pass, the rest three times its own."""


def add_parser(commands):
    parser = commands.add_parser(
        "flops",
        help="count a model's multiplications",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models",
        nargs="*",
        default=["base"],
        metavar="VARIANT|PRESET|RUN",
        help=f"tiny, small, base, large or base_8; {HELP}; default: base",
    )
    parser.add_argument(
        "--model",
        choices=("ci2p", "ci2p_dual", "vit"),
        default="ci2p",
        dest="kind",
        help="kind of a VARIANT; default: ci2p",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        default=[256, 384, 512],
        metavar="N",
        help="height and width, multiples of 32 (vit: of 16); default: 256 384 512",
    )
    parser.add_argument("--json", metavar="FILE", help="write the exact numbers there too")
    parser.set_defaults(run=run)


def run(args):
    import keras

    from keras_ci2p import utils

    makers = {name: _maker(name, args.kind) for name in args.models}
    # What is made there gets no weights, which would take gigabytes.
    with keras.StatelessScope(initialize_variables=False):
        results = [_count(name, make, args.image_size) for name, make in makers.items()]
    # Keras would make up for it at the next occasion.
    keras.utils.clear_session(free_memory=False)
    print("\n\n".join(_table(result) for result in results))
    if args.json:
        utils.write_json(args.json, results)
        print(f"written: {args.json}")


def _maker(name, kind):
    """A function that makes the model for an `image_shape`."""
    from keras_ci2p.cli.model import open_model
    from keras_ci2p.models.loading import CLASSIFIERS
    from keras_ci2p.models.variants import VARIANTS

    if name in VARIANTS:
        return lambda image_shape: CLASSIFIERS[kind](image_shape, variant=name)
    model, _ = open_model(name)
    return lambda image_shape: type(model).from_config({**model.get_config(), "image_shape": image_shape})


def _count(name, make, image_sizes):
    """Counts of the model at each size, and of the ViT to compare with, None for a ViT itself."""
    from keras_ci2p.flops import count_macs
    from keras_ci2p.models.vit import ViT

    rows = []
    for size in image_sizes:
        model = make((size, size, 3))
        sizes = {key: getattr(model.backbone, key) for key in ("hidden_dim", "num_layers", "num_heads", "mlp_dim")}
        vit = None if isinstance(model, ViT) else ViT(model.image_shape, num_classes=model.num_classes, **sizes)
        rows.append(
            {
                "image_size": size,
                **count_macs(model).as_dict(),
                "vit": None if vit is None else count_macs(vit).as_dict(),
            }
        )
    return {"name": name, "class": type(model).__name__, "counts": rows}


def _table(result):
    rows = result["counts"]

    def line(label, values, form="{:.3f}"):
        return f"{label:<24}" + "".join(f"{form.format(value):>12}" for value in values)

    def giga(label, key, counts=rows):
        return line(label, [count[key] / 1e9 for count in counts])

    lines = [
        f"{result['class']} {result['name']}: multiply-accumulates for one image, in G",
        line("part", [row["image_size"] for row in rows], "{} px"),
        *(line(part, [row["parts"][part]["macs"] / 1e9 for row in rows]) for part in rows[0]["parts"]),
        giga("total", "macs"),
        giga("FLOPs of the paper", "paper_flops"),
    ]
    vits = [row["vit"] for row in rows]
    has_vit = None not in vits

    def ratios(key):
        return [row[key] / vit[key] for row, vit in zip(rows, vits, strict=True)]

    if has_vit:
        lines += [
            giga("  ViT/16, same blocks", "paper_flops", vits),
            line("  reduction", [1 - ratio for ratio in ratios("paper_flops")], "{:.2%}"),
        ]
    lines.append(giga("training step", "training"))
    if has_vit:
        lines += [
            giga("  ViT/16, same blocks", "training", vits),
            line("  less work, times", [1 / ratio for ratio in ratios("training")], "{:.2f}"),
        ]
    return "\n".join(lines)
