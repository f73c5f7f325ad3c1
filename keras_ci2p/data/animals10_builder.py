"""Animals-10 as a TFDS set. Importing this module makes `tfds.builder("animals10")` known."""

import tensorflow_datasets as tfds

from keras_ci2p.data import animals10
from keras_ci2p.data.manifest import DataError, in_threads, validation_mask, warn_of_skipped
from keras_ci2p.data.tfds import UNREADABLE
from keras_ci2p.utils import progress


class Animals10(tfds.core.GeneratorBasedBuilder):
    """Prepares images of ten kinds of animals, from Kaggle's archive as it is or from a folder.

    The files' bytes are stored unchanged. The splits are `train` and `validation` of `keras_ci2p.data.animals10`,
    since the paper's (section 4.1) are not published; images that are in neither list are `test`. Where most images
    have other names, the splits are those of `keras_ci2p.data.validation_mask`. Files that are no readable images are
    left out and listed in `info.metadata["unreadable_files"]`.

    Attributes:
        source: Archive or folder to prepare from; None for TFDS's `manual_dir`, and where that does not hold
            Animals-10, a download by kagglehub.
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.0.0": "First version.", "1.1.0": "Split by lists of names, into train, validation and test."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
    `manual_dir` holds the archive of {animals10.PAGE} ({" or ".join(animals10.ARCHIVES)}), or its folder `raw-img`.
    """

    source = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photos of ten kinds of animals, found by Google and checked by people.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(names=list(animals10.CLASSES)),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=animals10.PAGE,
            license="GPL-2.0",
            metadata=tfds.core.MetadataDict(
                {
                    "italian_names": {english: italian for english, (italian, _) in animals10.CLASSES.items()},
                    "published_photos": {english: count for english, (_, count) in animals10.CLASSES.items()},
                    UNREADABLE: [],
                }
            ),
        )

    def _split_generators(self, dl_manager):
        found = animals10.find_images(self.source or _manual_directory(dl_manager))
        checked = progress(in_threads(animals10.check_file, (path for _, path, _ in found)), len(found), "Checking")
        images, hashes, unreadable = [], [], []
        for image, (sha256, problem, _) in zip(found, checked, strict=True):
            if problem:
                unreadable.append((image[0], problem))
            else:
                images.append(image)
                hashes.append(sha256)
        warn_of_skipped("Animals-10", unreadable)
        self.info.metadata[UNREADABLE] = unreadable
        labels = [label for _, _, label in images]
        empty = [name for label, name in enumerate(animals10.CLASSES) if label not in set(labels)]
        if empty:
            raise DataError(f"Animals-10: no readable image of the class {', '.join(empty)}.")
        own = animals10.listed_splits((name, list(animals10.CLASSES)[label]) for name, _, label in images)
        if own is None:
            own = ["val" if chosen else "train" for chosen in validation_mask(hashes, labels)]
        splits = {"train": [], "val": [], "test": []}
        for image, split in zip(images, own, strict=True):
            splits[split].append(image)
        if not splits["train"] or not splits["val"]:
            raise DataError(f"Animals-10: {len(images)} images are too few to split.")
        names = {"train": "train", "val": "validation", "test": "test"}
        return {names[split]: self._generate_examples(part) for split, part in splits.items() if part}

    def _generate_examples(self, images):
        for name, path, label in images:
            yield name, {"image": animals10.read_file(path), "label": label, "file_name": name}


def _manual_directory(dl_manager):
    """TFDS's `manual_dir` where it holds Animals-10, else None."""
    try:
        manual_dir = dl_manager.manual_dir
    except AssertionError:
        # TFDS's word for a missing or empty one.
        return None
    try:
        animals10.find_class_folders(manual_dir)
    except animals10.DamagedArchive:
        raise
    except DataError:
        # It is for all sets, and holds others.
        return None
    return manual_dir
