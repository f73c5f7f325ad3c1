"""Mixup and CutMix as a step of a grain dataset."""

import grain

from keras_ci2p.data.mixing import draw_mix, mix


class MixBatches(grain.transforms.RandomMap):
    """`(images, labels)` to a mixed `(images, labels)`, another draw for each batch and epoch."""

    def __init__(self, mixup, cutmix, probability=1.0):
        self._arguments = mixup, cutmix
        self._probability = probability

    def random_map(self, element, rng):
        images, labels = element
        how = draw_mix(*self._arguments, len(images), images.shape[1:3], rng, self._probability)
        return mix(images, labels, how)
