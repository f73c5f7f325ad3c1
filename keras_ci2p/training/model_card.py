"""Model cards of published presets."""

import json
import shlex

from keras_ci2p.config import shell_words
from keras_ci2p.data.tfds import PREFIX
from keras_ci2p.names import DUAL_SCALE_VARIANTS, TEACHERS, VARIANTS
from keras_ci2p.training.configs import (
    COMPRESSOR,
    DATA,
    INIT,
    TEACHER,
    CompressorTrainConfig,
    TrainConfig,
)
from keras_ci2p.training.efficientnet import DEFAULT_SIZE
from keras_ci2p.training.evaluation import weakest
from keras_ci2p.training.recipes import LatentCacheConfig
from keras_ci2p.training.run_dir import CURVES, HISTORY, recipe_of, teacher_of, views_of
from keras_ci2p.utils import listed

# That a card names or has a row for.
MOST_CLASSES = 100
LICENSE = "Apache-2.0"
PAPER = "[arXiv 2502.10120](https://arxiv.org/abs/2502.10120)"


def front_matter(name, task, tags, metrics, dataset):
    """The YAML at the head of the card.

    Args:
        name: Of the model.
        task: The Hub's name of what it does, such as "image-classification".
        tags: List of strings.
        metrics: List of `(the Hub's name, ours, value)`.
        dataset: Name of the data that they are measured on.
    """
    result = {
        "task": {"type": task},
        "dataset": {"name": dataset, "type": dataset if dataset.startswith(PREFIX) else "imagefolder"},
        "metrics": [{"type": kind, "name": label, "value": value} for kind, label, value in metrics],
    }
    values = {
        "license": LICENSE.lower(),
        "library_name": "keras",
        "pipeline_tag": task,
        "tags": ["keras", "keras_ci2p", *tags],
        "metrics": sorted({kind for kind, _, _ in metrics}),
        "model-index": [{"name": name, "results": [result]}],
    }
    # JSON is YAML.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def table(header, rows):
    """A Markdown table of strings; `|` in them is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def facts(rows):
    """A table of two columns without a header; rows whose value is None are left out."""
    return table(["", ""], [[name, str(value)] for name, value in rows if value is not None])


def code(text, language=""):
    return f"```{language}\n{text.rstrip()}\n```"


def percent(share):
    return "-" if share is None else f"{100 * share:.2f} %"


def assignment(data):
    """The line of shell that makes `$DATA` the report's `data`."""
    name = data["name"]
    return f"DATA={shlex.quote(name if name.startswith(PREFIX) else f'path/to/{name}')}"


def data_command(data, function):
    """Shell that prints the hash and the counts of the report's `data`, which `keras_ci2p.data.function` opens."""
    return code(
        f"export {assignment(data)}\n"
        f"python -c \"import os; from keras_ci2p.data import {function}; data = {function}(os.environ['DATA'])\n"
        "print(data.sha256, *(data.split(name).counts() for name in ('train', 'val')), sep='\\n')\"",
        "sh",
    )


def machine(values):
    """Processor, cores and device of a run or an evaluation in words, as far as they were recorded."""
    cores, cpu, device = (values.get(key) for key in ("cores", "cpu", "device"))
    count = values.get("devices", {}).get("count", 1)
    parts = [f"{count} x {device}" if count > 1 else device] if device not in (None, cpu) else []
    return ", ".join([*parts, *([cpu] if cpu else []), f"{cores} cores"])


def versions(values):
    return ", ".join(f"{package} {version}" for package, version in values["versions"].items() if version)


def measured_on(report):
    """On what the report's measurements were made."""
    return f"Measured on {report['backend']}, {machine(report)}; {versions(report)}."


# Beside the card, for a classifier.
CONFUSION = "confusion.png"


def _picture(title, name, pictures):
    """The Markdown of a picture beside the card; empty where it was not drawn."""
    return f"![{title}]({name})" if name in pictures else ""


def training_section(report, more_facts, pictures):
    """How the model was trained, with the commands that do it again.

    Args:
        report: What `publish` returns.
        more_facts: Rows of `facts` of this kind of model.
        pictures: Names of the pictures beside the card.
    """
    record = report["run"]
    if record is None:
        return "No record of the training came with the preset that this one was made from."
    settings = record["settings"]
    rows = [
        *more_facts,
        ("began with", _began_with(settings.get("init"))),
        ("seed", settings["seed"]),
        ("duration", f"{record['hours']:.2f} hours, the sum of `seconds` in [{HISTORY}]({HISTORY})"),
        ("dtype", settings["dtype"]),
        ("precision of products", settings.get("matmul_precision")),
        ("backend", record["backend"]),
        ("versions", versions(record)),
        ("hardware", machine(record)),
    ]
    commands = training_commands(record)
    needed = [assignment(report["data"])]
    needed += [f"{name}=...  # {text}" for name, text in _needed(report) if any(f'"${name}"' in c for c in commands)]
    parts = [facts(rows), _picture("curves", CURVES, pictures), "Commands, given in this directory:"]
    parts.append(code("\n".join([*needed, *commands]), "sh"))
    recipe = recipe_of(record)
    if recipe is not None:
        parts += ["The recipe, `recipe.toml`:", code(recipe.to_toml(), "toml")]
    return join(*parts)


def _began_with(init):
    if init == INIT:
        return "the weights of another run or preset, `INIT` below; what that one was trained on is not recorded here"
    return None if init is None else f"the weights of the preset `{init}`"


def _needed(report):
    """What the commands name besides the data, with an explanation."""
    origin = (report["model"].get("compressor") or {}).get("origin")
    known = f" ({', '.join(f'{key} {value}' for key, value in origin.items())})" if origin else ""
    yield "INIT", "the preset or run that training began with"
    yield "COMPRESSOR", f"the trained compressor that training began with{known}"
    teacher = teacher_of(report["run"])
    if teacher is not None:
        anew = f"; or the name {teacher['name']}, which fits it to DATA anew" if teacher["name"] in TEACHERS else ""
        yield "TEACHER", f"the teacher {teacher['name']}, SHA-256 {teacher['sha256']}{anew}"


def join(*parts):
    """The text of a card from its front matter, headings and paragraphs; empty ones are left out."""
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


# What the commands of a card leave out: it changes where a run is computed, or is told by the recipe.
_NOT_IN_CARDS = ("devices", "in_memory", "num_workers", "tensorboard", "max_minutes", "recipe")


def training_commands(record):
    """The command lines that repeat a run, to be given where its published `recipe.toml` lies.

    Args:
        record: What `read_record` returns.
    """
    settings = {"data": DATA, **record["settings"]}
    program = f"KERAS_BACKEND={record['backend']} keras-ci2p"
    if "recipe" not in settings:
        config = CompressorTrainConfig.from_dict(settings)
        words = config.command_line(always=("quality", "steps", "seed"), without=_NOT_IN_CARDS)
        return [f"{program} train-compressor {_shell(words)} --out run"]
    config = TrainConfig.from_dict(settings)
    data, *words = config.command_line(always=("variant", "seed"), without=_NOT_IN_CARDS)
    train = f"--recipe recipe.toml {_shell(words)} --out run"
    latents = record["data"].get("latents")
    if latents is None:
        return [f"{program} train {_shell([data])} {train}"]
    cache, teacher = f"{program} cache {_shell([DATA])} latents", _cache_teacher(record)
    views, more_views = views_of(record)
    config = LatentCacheConfig.from_dict({**latents, "views": views})
    height, width = config.image_size
    # A square one stands in the recipe.
    without = ("augmentation", "image_size") if height == width else ("augmentation",)
    words = config.command_line(always=("views", "store", "seed"), without=without)
    return [
        f"{cache} --compressor {_shell([COMPRESSOR])} --recipe recipe.toml {_shell(words + teacher)}",
        *([f"{cache} {_shell(['--more-views', str(more_views), *teacher])}"] if more_views else []),
        f"{program} train latents {train}",
    ]


def _shell(words):
    return shell_words(words, placeholders=TrainConfig.placeholders().values())


def _cache_teacher(record):
    """The words that name the teacher of a latent cache; none without one."""
    teacher = teacher_of(record)
    if teacher is None:
        return []
    height, width = teacher["image_size"]
    if teacher["name"] in TEACHERS:
        # They know the rest, and take no other.
        options = {"teacher_size": height} if height != DEFAULT_SIZE else {}
    else:
        features = tuple(row["name"] for row in teacher["features"])
        options = {"teacher_range": teacher["value_range"], "teacher_features": features or None}
        if height == width:
            options["teacher_size"] = height
    config = TrainConfig(DATA, teacher=TEACHER, **options)
    return config.command_line(without=set(config.to_dict()) - {"teacher", *options})


# Of a class: its name in the papers, and its sizes by name.
_FAMILIES = {
    "CI2PViT": ("CI2P-ViT", VARIANTS),
    "CI2PViTDualScale": ("CI2P-ViT-ds", DUAL_SCALE_VARIANTS),
    "ViT": ("ViT", VARIANTS),
}
# Of teachers that this package makes.
_KINDS = {"efficientnet-lite2": "ImageNet's features, a linear probe for these classes"}

CLASSIFIER_TAGS = ["image-classification", "vision-transformer", "ci2p-vit", "learned-image-compression"]


def classifier_card(report, notes, pictures=(CONFUSION, CURVES)):
    """Returns the Markdown of a classifier's report, with the author's `notes` and the `pictures` beside it."""
    model, teacher = report["model"], teacher_of(report["run"])
    return _card(
        report,
        notes,
        task="image-classification",
        tags=CLASSIFIER_TAGS if teacher is None else [*CLASSIFIER_TAGS, "knowledge-distillation"],
        metrics=[("accuracy", name, report[key]) for name, key in (("top-1", "top1"), ("top-5", "top5"))],
        about=[
            f"{_made(report)}: an RGB image in, one of {len(report['class_names'])} classes out: "
            f"{listed(report['class_names'], MOST_CLASSES)}. It is a `{model['class']}` of keras_ci2p ({PAPER}).",
            _model_table(report),
            code("keras-ci2p info .", "sh"),
        ],
        use=[
            f'model = keras_ci2p.{model["class"]}.from_preset("{report["name"]}")\n'
            "scores = model.predict(images)  # (batch, height, width, 3), RGB in 0..255",
            code(f"keras-ci2p predict {report['name']} image.jpg", "sh"),
        ],
        results=[_classifier_comparison(report), _by_class(report), _picture("confusion matrix", CONFUSION, pictures)],
        evaluate='keras-ci2p evaluate . "$DATA"',
        data=[_data(report), data_command(report["data"], "open_data")],
        training=training_section(report, _classifier_training_facts(report), pictures),
    )


def _card(report, notes, task, tags, metrics, about, use, results, evaluate, data, training):
    """The card of a model of either kind.

    Args:
        report: What `publish` returns.
        notes: The author's Markdown.
        task, tags, metrics: As in `front_matter`.
        about, results, data: Paragraphs of these sections.
        use: Python that loads and uses the model, then further paragraphs.
        evaluate: The command that measures it again.
        training: What `training_section` returns.
    """
    load, *further = use
    return join(
        front_matter(report["name"], task, tags, metrics, report["data"]["name"]),
        f"# {report['name']}",
        *about,
        "## Use",
        "The name below is the path of this directory, or one of `keras_ci2p.list_presets()`.",
        code(f"import keras_ci2p  # KERAS_BACKEND=torch, jax or tensorflow\n\n{load}", "python"),
        *further,
        "## Results",
        *results,
        measured_on(report),
        code(f"{assignment(report['data'])}\n{evaluate}", "sh"),
        "## Data",
        *data,
        "## Training",
        training,
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
            ("top-1", f"{percent(report['top1'])} of {report['images']:,} validation images"),
            ("top-5", percent(report["top5"])),
        ]
    )


def _classifier_comparison(report):
    original = report["original"]
    rows = [
        [f"{title}, {values['storage']}", percent(values["top1"]), percent(values["top5"]), f"{values['bytes']:,}"]
        for title, values in (("this preset", report), ("what it was made from", original))
    ]
    return join(
        table(["weights", "top-1", "top-5", "bytes"], rows),
        f"Both on the {report['images']:,} validation images. Their numbers of right answers differ by "
        f"{original['difference']}; up to {original['allowed']} were allowed.",
    )


def _by_class(report):
    rows = [
        [row["name"], f"{row['images']:,}", percent(row["recall"]), percent(row["precision"])]
        for row in weakest(report["per_class"], MOST_CLASSES)
    ]
    left_out = len(report["per_class"]) - len(rows)
    return join(
        table(["class", "images", "recall", "precision"], rows),
        f"The other {left_out:,} classes have no lower recall; `report.json` holds them all." if left_out else "",
    )


def _data(report):
    data, training = report["data"], report["training"]
    classes = data["classes"]
    trained = all(row["train"] is not None for row in classes)
    header = ["class", *(["training images"] if trained else []), "validation images"]
    keys = [*(["train"] if trained else []), "val"]
    shown = classes if len(classes) <= MOST_CLASSES else []
    rows = [[row["name"], *(f"{row[key]:,}" for key in keys)] for row in shown]
    rows.append(["all", *(f"{sum(row[key] for row in classes):,}" for key in keys)])
    lines = [table(header, rows), f"SHA-256 of classes and images: `{data['sha256']}`."]
    if data.get("split_by_contents", True):
        lines.append("The validation images are a fifth of each class, chosen by the SHA-256 of their bytes.")
    else:
        lines.append("The data are split already: the validation images are those of the folder or set itself.")
    if training is not None and not trained:
        lines.append(
            f"It was trained on other data: {training['train_photos']:,} images, SHA-256 "
            f"`{training['train_sha256']}`. None of them is among the validation images."
        )
    return "\n\n".join(lines)


def _classifier_training_facts(report):
    training, record = report["training"], report["run"]
    latents = (record or {}).get("data", {}).get("latents")
    if latents is not None:
        views = f"{sum(views_of(record))} augmented views of each image"
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
        ("teacher's own top-1", f"{percent(teacher['val_top1'])} of the run's validation images"),
        ("teacher's images", "{} x {}".format(*teacher["image_size"])),
        (
            "imitated",
            f"its probabilities at temperature {recipe.distill_temperature:g}, {100 * recipe.distill_alpha:g} % of the "
            f"classification loss{f'; its feature maps {weighed}' if maps else ''}",
        ),
    ]


COMPRESSOR_TAGS = ["learned-image-compression", "image-compression", "compressai"]


def compressor_card(report, notes, pictures=(CURVES,)):
    """Returns the Markdown of a compressor's report, with the author's `notes` and the `pictures` beside it."""
    data, model = report["data"], report["model"]
    return _card(
        report,
        notes,
        task="image-to-image",
        tags=COMPRESSOR_TAGS,
        metrics=[("psnr", "PSNR (dB)", report["psnr"]), ("bpp", "bits per pixel", report["bpp"])],
        about=[
            "A learned image compressor of keras_ci2p: an RGB image in, latents of a sixteenth of its height and width "
            "out, and back.",
            facts(
                [
                    ("architecture", model["architecture"]),
                    ("quality", model["quality"]),
                    ("channels (N, M)", f"{model['num_filters']}, {model['latent_channels']}"),
                    ("parameters", f"{model['parameters']:,}"),
                    ("weights on disk", f"{report['bytes']:,} bytes ({report['storage']})"),
                    ("made from", (model["origin"] or {}).get("name")),
                ]
            ),
        ],
        use=[
            f'compressor = keras_ci2p.Compressor.from_preset("{report["name"]}")\n'
            "latents = compressor.encode(images)  # (batch, height, width, 3), RGB in 0..255, multiples of 16\n"
            "model = keras_ci2p.CI2PViT(compressor=compressor)"
        ],
        results=[_compressor_comparison(report)],
        evaluate=f'keras-ci2p evaluate . "$DATA" --images {report["images"]} --size {report["size"]}',
        data=[
            table(["images", "number"], [["training", f"{data['train']:,}"], ["validation", f"{data['val']:,}"]]),
            f"SHA-256: `{data['sha256']}`. {_split(data)}",
            data_command(data, "scan_images"),
        ],
        training=training_section(report, _compressor_training_facts(report), pictures),
    )


def _split(data):
    if data.get("split_by_contents", True):
        return "A fifth of them are the validation images, chosen by the SHA-256 of the images' bytes."
    return "The data are split already: the validation images are those of the folder or set itself."


def _compressor_comparison(report):
    original = report["original"]
    error = "(1 - MS-SSIM)" if report.get("metric") == "ms-ssim" else "255^2 * MSE"
    rows = [
        [
            f"{title}, {values['storage']}",
            f"{values['psnr']:.2f}",
            f"{values['bpp']:.4f}",
            f"{values['cost']:.4f}",
            f"{values['bytes']:,}",
        ]
        for title, values in (("this preset", report), ("what it was made from", original))
    ]
    return join(
        table(["weights", "PSNR (dB)", "bits per pixel", "RD loss", "bytes"], rows),
        f"Both on the central {report['size']} x {report['size']} pixels of {report['images']:,} validation images; "
        f"the RD loss is lambda * {error} + bits per pixel at lambda {report['lmbda']:g}. The RD losses differ by "
        f"{100 * original['difference']:.2f} %; up to {100 * original['allowed']:g} % were allowed.",
    )


def _compressor_training_facts(report):
    training = report["training"]
    return [("weights", f"of step {training['step']:,}, the lowest RD loss on validation images" if training else None)]
