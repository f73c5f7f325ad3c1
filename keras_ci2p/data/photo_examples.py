"""One photo of a manifest as an example for `fit`."""

import warnings
from itertools import cycle, islice

import grain
import numpy as np

_UNREADABLE = "unreadable"


class PhotoExamples(grain.transforms.RandomMap):
    """Index to `(image, one-hot label)`; to `_UNREADABLE` where the photo can no longer be read.

    Args:
        manifest: `ImageManifest`.
        image_size: `(height, width)` of the images.
        transform: Function `(PIL image, image_size, numpy generator) -> uint8 array`.
        fill: Whether others of the batch take the places of unreadable photos, so that it keeps its size; else they are
            left out.
    """

    def __init__(self, manifest, image_size, transform, fill=False):
        self._fill = fill
        self._manifest = manifest
        self._labels = np.eye(len(manifest.class_names), dtype="float32")
        self._image_size = image_size
        self._transform = transform

    def __len__(self):
        return len(self._manifest)

    def random_map(self, element, rng):
        try:
            image = self._manifest.open(element)
        except OSError as error:
            # It was readable when the data were scanned; a long run must not end for it.
            file = self._manifest.files[element]
            warnings.warn(f"{file} can no longer be read and is left out: {error}", stacklevel=2)
            return _UNREADABLE
        return self._transform(image, self._image_size, rng), self._labels[self._manifest.labels[element]]

    def stack(self, elements):
        readable = self.readable(elements)
        if not readable:
            empty = np.empty((0, *self._image_size, 3), "float32")
            return empty, np.empty((0, len(self._labels)), "float32")
        images, labels = zip(*readable, strict=True)
        return np.stack(images, dtype="float32"), np.stack(labels)

    def readable(self, elements):
        """The elements that could be read."""
        readable = [element for element in elements if element is not _UNREADABLE]
        missing = len(elements) - len(readable)
        return readable + list(islice(cycle(readable), missing)) if self._fill else readable
