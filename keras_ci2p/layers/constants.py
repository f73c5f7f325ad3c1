"""Constants that layers and the host's image processing share. Imports no Keras."""

# RGB, 0..255: mmpretrain's `data_preprocessor` for ImageNet, as the paper configures it.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

# The mean, rounded: fills what a geometric operation has moved the image away from.
FILL = (124, 116, 104)

# Values below it are made brighter by `solarize_add` (AutoAugment).
SOLARIZE_ADD_THRESHOLD = 128

# The RandAugment operations on colours by their index in a batch's parameters. "none" stands for an operation that is
# not carried out and for a geometric one, which the batch's affine matrices carry out.
COLOR_OPERATIONS = (
    "none",
    "autocontrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
)
