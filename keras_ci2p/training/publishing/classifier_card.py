"""The model card of a classifier."""

from keras_ci2p.models import DUAL_SCALE_VARIANTS, VARIANTS
from keras_ci2p.training.publishing.card import (
    LICENSE,
    PAPER,
    assignment,
    code,
    data_command,
    facts,
    front_matter,
    join,
    measured_on,
    percent,
    table,
    training_section,
)
from keras_ci2p.training.publishing.run_record import recipe_of, teacher_of, views_of

# Of a class: its name in the papers, and its sizes by name.
_FAMILIES = {
    "CI2PViT": ("CI2P-ViT", VARIANTS),
    "CI2PViTDualScale": ("CI2P-ViT-ds", DUAL_SCALE_VARIANTS),
    "ViT": ("ViT", VARIANTS),
}
# Of teachers that this package makes.
_KINDS = {"efficientnet-lite2": "ImageNet's features, a linear probe for these classes"}

TAGS = ["image-classification", "vision-transformer", "ci2p-vit", "learned-image-compression"]


def classifier_card(report, notes):
    """Markdown of a classifier's report, with the author's `notes`."""
    data, model, teacher = report["data"], report["model"], teacher_of(report["run"])
    tags = TAGS if teacher is None else [*TAGS, "knowledge-distillation"]
    metrics = [("accuracy", name, report[key]) for name, key in (("top-1", "top1"), ("top-5", "top5"))]
    variable = assignment(data)
    return join(
        front_matter(report["name"], "image-classification", tags, metrics, data["name"]),
        f"# {report['name']}",
        f"{_made(report)}: an RGB photo in, one of {len(report['class_names'])} classes out: "
        f"{', '.join(report['class_names'])}. It is a `{model['class']}` of keras_ci2p ({PAPER}).",
        _model_table(report),
        code("keras-ci2p info .", "sh"),
        "## Use",
        "The name below is the path of this directory, or one of `keras_ci2p.list_presets()`.",
        code(
            f"import keras_ci2p  # KERAS_BACKEND=torch, jax or tensorflow\n\n"
            f'model = keras_ci2p.{model["class"]}.from_preset("{report["name"]}")\n'
            "scores = model.predict(images)  # (batch, height, width, 3), RGB in 0..255",
            "python",
        ),
        code(f"keras-ci2p predict {report['name']} photo.jpg", "sh"),
        "## Results",
        _comparison(report),
        _by_class(report),
        "![confusion matrix](confusion.png)",
        measured_on(report),
        code(f'{variable}\nkeras-ci2p evaluate . "$DATA"', "sh"),
        "## Data",
        _data(report),
        data_command(data, "keras_ci2p.data", "open_data"),
        "## Training",
        training_section(report, _training_facts(report)),
        "## Notes" if notes else "",
        notes,
        "## Licence",
        f"{LICENSE}.",
    )


def _made(report):
    """What it is and how it was made, the beginning of a sentence."""
    model, training, record = report["model"], report["training"], report["run"]
    name, variants = _FAMILIES[model["class"]]
    sizes = [variant for variant, own in variants.items() if all(model.get(key) == own[key] for key in own)]
    words = " ".join([name, *sizes[:1]])
    if training is not None:
        begun = "fine-tuned" if record is not None and record["settings"].get("init") is not None else "trained"
        words += f", {begun} on {training['train_photos']:,} images"
    teacher = teacher_of(record)
    if teacher is not None:
        kind = _KINDS.get(teacher["name"])
        own = f"{f'{kind}; ' if kind else ''}top-1 {percent(teacher['val_top1'])} itself"
        words += f"{' while' if training else ', trained'} imitating the teacher {teacher['name']} ({own})"
    return words


def _model_table(report):
    model, compressor = report["model"], report["model"]["compressor"]
    sizes = (
        f"{model['num_layers']} blocks, {model['hidden_dim']} wide, {model['num_heads']} heads, MLP {model['mlp_dim']}"
    )
    if "merge_at" in model:
        sizes += f"; the first {model['merge_at']} blocks {model['early_dim']} wide"
    if compressor is not None:
        kind = "kept as it was" if compressor["frozen"] else "trained along"
        origin = (compressor["origin"] or {}).get("name")
        compressor = (
            f"{compressor['architecture']}, {compressor['num_filters']} and {compressor['latent_channels']} channels, "
            f"{kind}{f'; from {origin}' if origin else ''}"
        )
    return facts(
        [
            ("architecture", f"{model['class']}: {sizes}"),
            ("compressor", compressor),
            ("image size", "{} x {}".format(*(side or "any" for side in model["image_shape"][:2]))),
            ("parameters", f"{model['parameters']:,}"),
            ("weights on disk", f"{report['bytes']:,} bytes ({report['storage']})"),
            ("top-1", f"{percent(report['top1'])} of {report['images']:,} validation photos"),
            ("top-5", percent(report["top5"])),
        ]
    )


def _comparison(report):
    original = report["original"]
    rows = [
        [f"{title}, {values['storage']}", percent(values["top1"]), percent(values["top5"]), f"{values['bytes']:,}"]
        for title, values in (("this preset", report), ("what it was made from", original))
    ]
    return join(
        table(["weights", "top-1", "top-5", "bytes"], rows),
        f"Both on the {report['images']:,} validation photos. Their numbers of right answers differ by "
        f"{original['difference']}; up to {original['allowed']} were allowed.",
    )


def _by_class(report):
    rows = [
        [row["name"], f"{row['images']:,}", percent(row["recall"]), percent(row["precision"])]
        for row in report["per_class"]
    ]
    return table(["class", "photos", "recall", "precision"], rows)


def _data(report):
    data, training = report["data"], report["training"]
    classes = data["classes"]
    trained = all(row["train"] is not None for row in classes)
    header = ["class", *(["training photos"] if trained else []), "validation photos"]
    keys = [*(["train"] if trained else []), "val"]
    rows = [[row["name"], *(f"{row[key]:,}" for key in keys)] for row in classes]
    rows.append(["all", *(f"{sum(row[key] for row in classes):,}" for key in keys)])
    lines = [table(header, rows), f"SHA-256 of classes and photos: `{data['sha256']}`."]
    if data.get("split_by_contents", True):
        lines.append("The validation photos are a fifth of each class, chosen by the SHA-256 of their bytes.")
    else:
        lines.append("The data are split already: the validation photos are those of the folder or set itself.")
    if training is not None and not trained:
        lines.append(
            f"It was trained on other data: {training['train_photos']:,} photos, SHA-256 "
            f"`{training['train_sha256']}`. None of them is among the validation photos."
        )
    return "\n\n".join(lines)


def _training_facts(report):
    training, record = report["training"], report["run"]
    latents = (record or {}).get("data", {}).get("latents")
    if latents is not None:
        views = f"{sum(views_of(record))} augmented views of each photo"
        latents = f"{views}, {latents['store']}, seed {latents['seed']}"
    best = f"of epoch {training['epoch']}, the best validation top-1" if training else None
    return [("weights", best), ("trained on stored latents", latents), *_teacher_facts(record)]


def _teacher_facts(record):
    teacher = teacher_of(record)
    if teacher is None:
        return []
    recipe = recipe_of(record)
    maps = [row["name"] for row in teacher["features"]]
    weights = recipe.distill_features[len(recipe.distill_features) - len(maps) :]
    weighed = ", ".join(f"{name} times {weight:g}" for name, weight in zip(maps, weights, strict=True))
    return [
        ("teacher", teacher["name"]),
        ("teacher's SHA-256", f"`{teacher['sha256']}`"),
        ("teacher's licence", teacher["license"] or "not stated in its file"),
        ("teacher's own top-1", f"{percent(teacher['val_top1'])} of the run's validation photos"),
        ("teacher's images", "{} x {}".format(*teacher["image_size"])),
        (
            "imitated",
            f"its probabilities at temperature {recipe.distill_temperature:g}, {100 * recipe.distill_alpha:g} % of the "
            f"classification loss{f'; its feature maps {weighed}' if maps else ''}",
        ),
    ]
