"""Mixup and CutMix as a step of a grain dataset."""

import grain

from keras_ci2p.data.mixing import draw_mix, mix


class MixBatches(grain.transforms.RandomMap):
    """`(images, labels)` to a mixed `(images, labels)`, another draw for each batch and epoch."""

    def __init__(self, mixup, cutmix):
        self._mixup = mixup
        self._cutmix = cutmix

    def random_map(self, element, rng):
        images, labels = element
        return mix(images, labels, draw_mix(self._mixup, self._cutmix, len(images), images.shape[1:3], rng))
