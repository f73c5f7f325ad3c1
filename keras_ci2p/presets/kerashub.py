"""How presets name our models: by their classes of `keras_ci2p.hub`, so that KerasHub's own loader finds them.

Our loader takes these names for those of our classes, and reads presets that name our classes themselves as well.
"""

import keras

HUB = "keras_ci2p.hub"

# Registered name of our class to the name of the class of `keras_ci2p.hub`.
_HUB_CLASSES = {
    "keras_ci2p>CI2PViT": "CI2PViTImageClassifier",
    "keras_ci2p>CI2PViTBackbone": "CI2PViTBackbone",
    "keras_ci2p>CI2PViTDualScale": "CI2PViTDualScaleImageClassifier",
    "keras_ci2p>CI2PViTDualScaleBackbone": "CI2PViTDualScaleBackbone",
}
_OUR_NAMES = {f"{HUB}>{hub_class}": name for name, hub_class in _HUB_CLASSES.items()}


def to_kerashub(serialized):
    """A serialised model of ours as `keras_ci2p.hub` serialises it; one without a class there as it is.

    Args:
        serialized: Dict of `module`, `class_name`, `config` and `registered_name`.
    """
    hub_class = _HUB_CLASSES.get(serialized["registered_name"])
    if hub_class is None:
        return serialized
    config = dict(serialized["config"])
    if isinstance(config.get("dtype"), str):
        # KerasHub's loader takes the serialised policy apart.
        config["dtype"] = keras.dtype_policies.serialize(keras.dtype_policies.get(config["dtype"]))
    return {"module": HUB, "class_name": hub_class, "config": config, "registered_name": f"{HUB}>{hub_class}"}


def from_kerashub(stored):
    """What a preset says of a model, as our own classes serialise it; of another model unchanged."""
    name, config = _OUR_NAMES.get(stored.get("registered_name")), stored.get("config")
    if name is None or not isinstance(config, dict):
        return stored
    # Our constructors have no `trainable`: freezing the compressor is an argument of its own.
    config = {key: value for key, value in config.items() if key != "trainable"}
    dtype = config.get("dtype")
    if isinstance(dtype, dict) and dtype.get("class_name") == "DTypePolicy":
        config["dtype"] = dtype["config"]["name"]
    return {**stored, "config": config, "registered_name": name}
