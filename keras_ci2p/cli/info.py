"""`keras-ci2p info`"""


def add_parser(commands):
    parser = commands.add_parser(
        "info", help="show a model's parts", description="Parameters by part, trained and frozen."
    )
    parser.add_argument(
        "model",
        metavar="VARIANT|PRESET",
        help="tiny, small, base, large or base_8; a training run, a preset directory or the name of a preset",
    )
    parser.add_argument(
        "--model",
        choices=("ci2p", "ci2p_dual", "vit"),
        default="ci2p",
        dest="kind",
        help="kind of a VARIANT; default: ci2p",
    )
    parser.add_argument("--num-classes", type=int, default=10, metavar="N", help="classes of a VARIANT; default: 10")
    parser.set_defaults(run=run)


def run(args):
    from keras_ci2p.cli.model import open_model
    from keras_ci2p.flops import parameters_by_part
    from keras_ci2p.models.ci2p_vit import CI2PViTDualScale
    from keras_ci2p.models.loading import CLASSIFIERS
    from keras_ci2p.models.variants import VARIANTS

    if args.model in VARIANTS:
        model = CLASSIFIERS[args.kind](variant=args.model, num_classes=args.num_classes)
    else:
        model, _ = open_model(args.model)
    size = " x ".join("any" if s is None else str(s) for s in model.image_shape[:2])
    backbone = model.backbone
    print(f"{type(model).__name__}, images {size}, {model.num_classes} classes")
    if model.class_names:
        print("classes: " + ", ".join(model.class_names))
    print(
        f"transformer: {backbone.num_layers} blocks, {backbone.hidden_dim} wide, {backbone.num_heads} heads, "
        f"MLP {backbone.mlp_dim}"
    )
    if isinstance(model, CI2PViTDualScale):
        print(f"before the merge ({backbone.merge_at} of the blocks): {backbone.early_dim} wide")
    print(f"{'part':<20}{'parameters':>14}{'trainable':>14}{'frozen':>14}{'statistics':>14}")
    parts = parameters_by_part(model)
    for name, counts in [*parts.items(), ("total", tuple(map(sum, zip(*parts.values(), strict=True))))]:
        total, trainable, statistics = counts
        print(f"{name:<20}{total:>14,}{trainable:>14,}{total - trainable:>14,}{statistics:>14,}")
    print("Statistics are the running means and variances of batch normalisation; they are no parameters.")
