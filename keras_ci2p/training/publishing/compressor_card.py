"""The model card of a compressor."""

from keras_ci2p.training.publishing.card import (
    LICENSE,
    assignment,
    code,
    data_command,
    facts,
    front_matter,
    join,
    measured_on,
    table,
    training_section,
)

TAGS = ["learned-image-compression", "image-compression", "compressai"]


def compressor_card(report, notes):
    """Markdown of a compressor's report, with the author's `notes`."""
    data, model = report["data"], report["model"]
    metrics = [("psnr", "PSNR (dB)", report["psnr"]), ("bpp", "bits per pixel", report["bpp"])]
    evaluate = f'keras-ci2p evaluate . "$DATA" --pictures {report["images"]} --size {report["size"]}'
    return join(
        front_matter(report["name"], "image-to-image", TAGS, metrics, data["name"]),
        f"# {report['name']}",
        "A learned image compressor of keras_ci2p: an RGB picture in, latents of a sixteenth of its height and width "
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
        "## Use",
        "The name below is the path of this directory, or one of `keras_ci2p.list_presets()`.",
        code(
            "import keras_ci2p  # KERAS_BACKEND=torch, jax or tensorflow\n\n"
            f'compressor = keras_ci2p.Compressor.from_preset("{report["name"]}")\n'
            "latents = compressor.encode(images)  # (batch, height, width, 3), RGB in 0..255, multiples of 16\n"
            "model = keras_ci2p.CI2PViT(compressor=compressor)",
            "python",
        ),
        "## Results",
        _comparison(report),
        measured_on(report),
        code(f"{assignment(data)}\n{evaluate}", "sh"),
        "## Data",
        table(["pictures", "number"], [["training", f"{data['train']:,}"], ["held out", f"{data['val']:,}"]]),
        f"SHA-256: `{data['sha256']}`. {_split(data)}",
        data_command(data, "keras_ci2p.training.compression.data", "open_pictures"),
        "## Training",
        training_section(report, _training_facts(report)),
        "## Notes" if notes else "",
        notes,
        "## Licence",
        f"{LICENSE}.",
    )


def _split(data):
    if data.get("split_by_contents", True):
        return "A fifth is held out, chosen by the SHA-256 of the pictures' bytes."
    return "The data are split already: the pictures held out are those of the folder or set itself."


def _comparison(report):
    original = report["original"]
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
        table(["weights", "PSNR (dB)", "bits per pixel", "cost", "bytes"], rows),
        f"Both on the central {report['size']} x {report['size']} pixels of {report['images']:,} held-out pictures; "
        f"the cost is lambda * 255^2 * MSE + bits per pixel at lambda {report['lmbda']:g}. The costs differ by "
        f"{100 * original['difference']:.2f} %; up to {100 * original['allowed']:g} % were allowed.",
    )


def _training_facts(report):
    training = report["training"]
    return [("weights", f"of step {training['step']:,}, the lowest cost on held-out pictures" if training else None)]
