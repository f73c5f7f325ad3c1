"""What a model file says of itself: the same entries in every format, each of them JSON.

| entry | value |
|---|---|
| `class_names` | list of the classes' names, in the order of the output; absent where the model has none |
| `image_size` | `[height, width]` of the input |
| `value_range` | the input's values for black and for white, `[0, 255]`; by channel: `[[r, g, b], [r, g, b]]` |
| `data_format` | "channels_last" or "channels_first" of the input |
| `crop` | how a photo is cut: the short edge resized to `resize_ratio` of the size, of that the middle |
| `input` | "latents" where the classifier begins after its compressor; absent where it takes images |
| `latent_shape` | `[rows, columns, channels]` of latents |
| `compressor` | of latents, its `fingerprint`, `AnalysisTransform.weights_hash()`, and its `name`, if it has one |
| `output` | "logits", "probabilities", or "scores" where the activation gives neither |
| `grid_size` | `[rows, columns]` of the output `attention`, where the file has it |
| `feature_data_format` | "channels_last" or "channels_first" of feature maps among the outputs |
| `int8` | of an 8-bit file: how it was made, and its top-1 beside that in floats |
| `name`, `license`, `top1`, ... | what the writer adds |

ONNX holds an entry as `metadata_props` under `keras_ci2p.` and its name, OpenVINO as `rt_info` under keras_ci2p and its
name (files read from ONNX: under framework and the former). A LiteRT file is followed, as TensorFlow Lite's metadata
are, by a ZIP archive; in it stands `keras_ci2p.json`, one object of all entries. A .pt2 file and a SavedModel hold a
file of that name too.
"""

import json
import zipfile
from pathlib import Path

from keras_ci2p.data.transforms import RESIZE_RATIO
from keras_ci2p.models.variants import PROBABILITIES

PREFIX = "keras_ci2p"
FILE_NAME = f"{PREFIX}.json"
# The name of the further output.
ATTENTION = "attention"
CENTER_CROP = {"resize_ratio": RESIZE_RATIO, "interpolation": "bicubic", "crop": "center"}


# What an exported file takes.
IMAGES, LATENTS = INPUTS = ("images", "latents")


def model_metadata(model, input=IMAGES):
    """The entries of a classifier of this package, `image_shape` fixed, as a dict; `input` is one of `INPUTS`."""
    entries = {
        "image_size": list(model.image_shape[:2]),
        "value_range": [0, 255],
        "data_format": "channels_last",
        "crop": CENTER_CROP,
        "output": output_name(model),
    }
    if input == LATENTS:
        del entries["value_range"]
        compressor = {"fingerprint": model.compressor.weights_hash(), **(model.compressor.source or {})}
        compressor = {key: value for key, value in compressor.items() if key in ("fingerprint", "name")}
        shape = model.latent_classifier.input_shape[1:]
        entries.update(input=LATENTS, latent_shape=list(shape), compressor=compressor)
    return entries if model.class_names is None else {"class_names": list(model.class_names), **entries}


def to_onnx(entries):
    """The entries as ONNX's `metadata_props`: a dict of strings."""
    return {f"{PREFIX}.{key}": _dumps(value) for key, value in entries.items()}


def from_onnx(properties):
    """The entries among the `metadata_props` of an ONNX file, a dict of strings; others are left out."""
    found = {key.removeprefix(f"{PREFIX}."): value for key, value in properties.items() if key.startswith(f"{PREFIX}.")}
    return _loads(found)


def to_openvino(entries, model):
    """Adds the entries to an `openvino.Model`."""
    for key, value in entries.items():
        model.set_rt_info(_dumps(value), [PREFIX, key])


def from_openvino(model):
    """The entries of an `openvino.Model`, read from OpenVINO's own files or from ONNX."""
    information = model.get_rt_info()
    if PREFIX in information:
        # Values that look like numbers or lists would come as such from `.value`.
        return _loads({key: value.astype(str) for key, value in information[PREFIX].items()})
    if "framework" in information:
        return from_onnx({key: value.astype(str) for key, value in information["framework"].items()})
    return {}


def append_to_litert(entries, path):
    """Adds the entries to a LiteRT file, whose readers ignore what follows the model."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(FILE_NAME, _dumps(entries))


def read_litert(path):
    """The entries of a LiteRT file; empty where it has none."""
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(FILE_NAME)) if FILE_NAME in archive.namelist() else {}


def write_beside(entries, directory):
    """Writes the entries as a file of a SavedModel's directory."""
    (Path(directory) / FILE_NAME).write_text(_dumps(entries), encoding="utf-8")


def _dumps(value):
    return json.dumps(value, ensure_ascii=False)


def _loads(strings):
    entries = {}
    for key, text in strings.items():
        try:
            entries[key] = json.loads(text)
        except ValueError:
            raise ValueError(
                f"The metadata entry {PREFIX}.{key} of the file is no JSON: {text[:80]!r}. A text needs its quotation "
                'marks: "logits".'
            ) from None
    return entries


def input_name(entries):
    """What a file with these entries takes, one of `INPUTS`, which its input is called after."""
    return entries.get("input", IMAGES)


def input_shape(model, entries):
    """The shape of it without the batch."""
    return tuple(model.image_shape if input_name(entries) == IMAGES else entries["latent_shape"])


def output_name(model):
    """What the output is called in the formats that let it be named."""
    if model.activation is None:
        return "logits"
    return "probabilities" if model.activation in PROBABILITIES else "scores"
