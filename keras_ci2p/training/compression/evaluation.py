"""How good a compressor is on a folder of pictures."""

from keras_ci2p.training.compression.data import held_out, middle_crops, open_pictures


def evaluate_compressor(compressor, data, split="val", pictures=100, size=256, lmbda=None, batch_size=8, verbose=0):
    """Bits, errors and cost of a compressor, on pictures that `train_compressor` keeps aside.

    Args:
        compressor: `Compressor` with a factorized prior and a synthesis transform.
        data: Folder of pictures at any depth, "tfds:NAME" or an `ImageManifest`.
        split: "val", "test" of data that have it, or "all".
        pictures: How many at most, chosen by their contents; None for all.
        size: Height and width of the central crops, a multiple of 16; smaller pictures are enlarged.
        lmbda: Weight of the squared error; None for that of the compressor's quality.
        batch_size, verbose: As in `evaluate`.

    Returns:
        dict of means over the pictures: `psnr` in dB, of images clipped to 0..255; `bpp`, bits per pixel; `cost`,
        `lmbda * 255^2 * MSE + bpp`. And `lmbda`, `images`, `size`, `data_sha256`.

    Raises:
        DataError: Data that cannot be used.
        ValueError: A compressor that cannot decode, or whose quality is unknown without `lmbda`.
    """
    if not compressor.compiled or (lmbda is not None and lmbda != compressor.lmbda):
        compressor.compile(lmbda=lmbda)
    everything = open_pictures(data)
    chosen = held_out(everything, split, pictures)
    crops = middle_crops(chosen, size, batch_size)
    # By `repeated` and steps: Keras would warn that the data ran out.
    means = compressor.evaluate(crops.repeated(), steps=crops.steps_per_epoch, verbose=verbose, return_dict=True)
    return {
        **{name: float(means[name]) for name in ("psnr", "bpp", "cost")},
        "lmbda": compressor.lmbda,
        "images": len(chosen),
        "size": size,
        "data_sha256": everything.sha256,
    }
