"""Finding the model that a command line names."""

HELP = "a training run, a preset directory or the name of a preset"


def open_model(name, **arguments):
    """`(model, preset)` of a training run's directory, a preset directory, a preset's name or a `Preset`.

    Args:
        name: Any of these.
        **arguments: Of the model's `from_preset`.
    """
    from keras_ci2p.models.loading import open_classifier

    return open_classifier(name, **arguments)
