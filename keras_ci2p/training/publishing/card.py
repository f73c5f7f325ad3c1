"""The parts of a model card that all kinds of models share: Markdown with YAML front matter, as the Hugging Face Hub
reads it. https://huggingface.co/docs/hub/model-cards"""

import json
import shlex

from keras_ci2p.data.tfds import PREFIX
from keras_ci2p.training.efficientnet import TEACHERS
from keras_ci2p.training.publishing.commands import training_commands
from keras_ci2p.training.publishing.run_record import CURVES, HISTORY, INIT, recipe_of, teacher_of

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


def data_command(data, module, function):
    """Shell that prints the hash and the counts of the report's `data`, which `module.function` opens."""
    return code(
        f"export {assignment(data)}\n"
        f"python -c \"import os; from {module} import {function}; data = {function}(os.environ['DATA'])\n"
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


def training_section(report, more_facts):
    """How the model was trained, with the commands that do it again.

    Args:
        report: What `publish` returns.
        more_facts: Rows of `facts` of this kind of model.
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
    parts = [facts(rows), f"![curves]({CURVES})", "Commands, given in this directory:"]
    parts.append(code("\n".join([*needed, *commands]), "sh"))
    recipe = recipe_of(record)
    if recipe is not None:
        parts += ["The recipe, `recipe.toml`:", code(recipe.to_toml(), "toml")]
    return "\n\n".join(parts)


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
