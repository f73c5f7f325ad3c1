"""Photos as they are with what was drawn for them, to be augmented inside the training step."""

import grain
import numpy as np
from PIL import Image

from keras_ci2p.data.augmentation import draw
from keras_ci2p.data.device_parameters import collate, collate_mix
from keras_ci2p.data.mixing import draw_mix
from keras_ci2p.data.photo_examples import PhotoExamples


class RawExamples(PhotoExamples):
    """Index to `((photo, source size, Draw), one-hot label)`; the batch is what `BatchAugmentation` takes, and labels.

    The draws are those that `PhotoExamples` with the same seed carries out itself.

    Args:
        manifest: As `PhotoExamples` takes it.
        image_size: `(height, width)` of the augmented images.
        augmentation: `Augmentation`.
        photo_size: `(height, width)` to which whole photos are squeezed; None for one and a half times `image_size`.
            A larger one keeps more detail in small crops, but aliases in large ones.
        in_memory: Whether to keep the squeezed photos, so that each is decoded once. For threads: processes would keep
            one each. 18,000 photos of 384 x 384 need 8 GB.
    """

    def __init__(self, manifest, image_size, augmentation, photo_size=None, in_memory=False):
        self._photo_size = tuple(photo_size or (side * 3 // 2 for side in image_size))
        self._augmentation = augmentation
        photos = SqueezedPhotos(manifest, self._photo_size)
        super().__init__(InMemory(photos) if in_memory else photos, image_size, self._draw, fill=True)

    def _draw(self, photo, image_size, rng):
        pixels, source_size = photo
        return pixels, source_size, draw(self._augmentation, source_size, image_size, rng)

    def stack(self, elements):
        readable = self.readable(elements)
        photos = [photo for (photo, _, _), _ in readable]
        source_sizes = [size for (_, size, _), _ in readable]
        draws = [drawn for (_, _, drawn), _ in readable]
        labels = [label for _, label in readable]
        inputs = {
            "images": np.array(photos, "uint8").reshape(-1, *self._photo_size, 3),
            **collate(self._augmentation, draws, source_sizes, self._image_size),
        }
        return inputs, np.array(labels, "float32").reshape(-1, len(self._labels))


class DrawMix(grain.transforms.RandomMap):
    """Adds to the inputs of a batch how to mix it, as `BatchMixing` takes it; the draws are those of `MixBatches`."""

    def __init__(self, mixup, cutmix, image_size, probability=1.0):
        self._arguments = mixup, cutmix
        self._image_size = image_size
        self._probability = probability

    def random_map(self, element, rng):
        inputs, labels = element
        drawn = draw_mix(*self._arguments, len(labels), self._image_size, rng, self._probability)
        return {**inputs, **collate_mix(drawn)}, labels


class SqueezedPhotos:
    """A manifest whose `open` gives `(uint8 array of one size, (height, width) of the photo itself)`."""

    def __init__(self, manifest, photo_size):
        self._manifest = manifest
        self.photo_size = photo_size
        self.class_names, self.files, self.labels = manifest.class_names, manifest.files, manifest.labels

    def __len__(self):
        return len(self._manifest)

    def open(self, index):
        height, width = self.photo_size
        photo = self._manifest.open(index)
        squeezed = photo.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(squeezed), (photo.height, photo.width)


class InMemory:
    """`SqueezedPhotos` that are opened once and kept."""

    def __init__(self, photos):
        self._photos = photos
        self.class_names, self.files, self.labels = photos.class_names, photos.files, photos.labels
        # The system hands out memory as it is written.
        self._pixels = np.empty((len(photos), *photos.photo_size, 3), "uint8")
        self._source_sizes = [None] * len(photos)

    def __len__(self):
        return len(self._photos)

    def open(self, index):
        if self._source_sizes[index] is None:
            # The size last: it says that the pixels are there.
            self._pixels[index], self._source_sizes[index] = self._photos.open(index)
        return self._pixels[index], self._source_sizes[index]
