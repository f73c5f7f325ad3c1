"""Logs for TensorBoard, without TensorFlow."""

from keras_ci2p.extras import require


def write_scalars(directory, row):
    """Adds a row of the history, as scalars of its epoch."""
    writer = require("tensorboardX", extra="tensorboard").SummaryWriter(str(directory))
    for key, value in row.items():
        if key != "epoch" and value is not None:
            kind, name = ("validation", key[4:]) if key.startswith("val_") else ("training", key)
            writer.add_scalar(f"{name}/{kind}", value, row["epoch"])
    writer.close()
