"""Loads batches of latents: precomputed ones of a cache, and those of compressed files."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_ci2p.codec.file_format import STRIDE, SUFFIX, ImageCodec, read_compressed
from keras_ci2p.codec.rans import CodecError
from keras_ci2p.data.augmentation import CROP_AND_FLIP, Augmentation, Mixup, target_arrays
from keras_ci2p.data.latent_cache import LatentCache, decode, decode_targets, is_latent_cache, open_cache
from keras_ci2p.data.loader import READ_ERRORS, DataLoader, LoadImage, check_image_size
from keras_ci2p.data.manifest import DataError, ImageManifest, in_threads
from keras_ci2p.data.sources import check_exists, first_compressed, open_data
from keras_ci2p.names import renamed_arguments
from keras_ci2p.utils import PathLike, require

grain = require("grain", extra="train")


@renamed_arguments(cache="source")
def latent_folder(
    source: LatentCache | ImageManifest | PathLike,
    *,
    batch_size: int = 32,
    split: str = "train",
    seed: int = 0,
    views: int | str = "all",
    compressor: Any = None,
    image_size: int | tuple[int, int] | None = None,
    augment: Augmentation | bool | None = None,
    class_names: Sequence[str] | None = None,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    mix_probability: float = 1.0,
    temperature: float | None = None,
    num_threads: int | None = None,
    num_workers: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> DataLoader:
    """Loads latents as batches for `CI2PViT.latent_classifier`, the counterpart of `image_folder`.

    Of a latent cache, each epoch of the training split holds every image once, in a new order, each time another one of
    its views; the validation split holds the central crops in order.

    Of a folder of `.ci2p` files, laid out as `open_data` takes it, the latents are decoded, without pixels. Those of
    the training split are cropped at random, in steps of a latent, and flipped; those of other splits are the central
    ones, in order. Crops are never enlarged or made smaller: that takes pixels.

    Args:
        source: `LatentCache`, or its directory; or a folder of `.ci2p` files, or the `ImageManifest` of it.
        batch_size: Latents in a batch.
        split: "train" or "val"; of files also "test" or "all".
        seed: Seed of the order, the views and the augmentation, an integer in 0..2**32-1.
        views: Of a cache, how many of the stored views of each image to use, or "all".
        compressor: Of files, the `Compressor` that wrote them; a cache has its own.
        image_size: Of files, height and width of the images that the latents are to be of, or `(height, width)`,
            multiples of 32; None for that of the files, where all have the same.
        augment: Of files, the `Augmentation` of the training split, of which `flip` counts and whether it crops; None
            for `CROP_AND_FLIP`, False for none.
        class_names: Of files, as in `image_folder`.
        mixup, cutmix, mix_probability: As in `image_folder`, on latents.
        temperature: To learn from the teacher whose targets the cache holds: what its logits are divided by. The labels
            of the training split then are a dict: `labels`, `teacher` (its probabilities at that temperature) and
            `features_0`, ... (its projected feature maps), as `keras_ci2p.training.DistilledClassifier` takes them.
            None for the labels alone.
        num_threads, num_workers, shard: As in `DataLoader`; files are decoded by threads.

    Returns:
        `DataLoader` of `(latents, labels)`: float32 `(batch, height / 16, width / 16, channels)` and float32 `(batch,
        classes)`.

    Raises:
        DataError: No cache and no files; a cache that is unfinished or damaged; a wrong split, batch size or number of
            views; files that are too small, of another compressor, or no `.ci2p` files; an augmentation that takes
            pixels; an argument for the other kind of source.

    Examples:
        >>> compressor = keras_ci2p.Compressor(quality=None, channels=(8, 12))
        >>> settings = keras_ci2p.training.LatentCacheConfig(views=1, image_size=32)
        >>> cache = keras_ci2p.training.cache_latents("photos", "latents", compressor, settings, verbose=0)
        >>> val = keras_ci2p.data.latent_folder(cache, split="val")
        >>> [(latents.shape, labels.shape) for latents, labels in val]
        [((6, 2, 2, 12), (6, 3))]
    """
    if batch_size < 1:
        raise DataError(f"`batch_size` must be positive. Received: batch_size={batch_size}")
    is_training = split == "train"
    common = {
        "mix": Mixup(mixup, cutmix, mix_probability) if is_training and (mixup or cutmix) else None,
        "batch_size": batch_size,
        "shuffle": is_training,
        "drop_remainder": is_training,
        "seed": seed,
        "num_threads": num_threads,
        "num_workers": num_workers,
        "shard": shard,
    }
    for_files = {"compressor": compressor, "image_size": image_size, "augment": augment, "class_names": class_names}
    if isinstance(source, LatentCache) or (not isinstance(source, ImageManifest) and is_latent_cache(source)):
        _refuse(for_files, f"folder of {SUFFIX} files", source)
        return _cached(source, split, views, temperature, common)
    _refuse({"temperature": temperature, "views": None if views == "all" else views}, "latent cache", source)
    if num_workers:
        raise DataError(f"{SUFFIX} files are decoded by threads. Received: num_workers={num_workers}")
    if not isinstance(source, ImageManifest) and first_compressed(source) is None:
        check_exists(source)
        raise DataError(f"{source} is no latent cache, and no folder of {SUFFIX} files.")
    load = _open_files(open_data(source).split(split), is_training, **for_files)
    return DataLoader(load, manifest=load.manifest, **common)


def _refuse(arguments, kind, source):
    """Raises DataError where an argument is given that is for another kind of source."""
    for name, value in arguments.items():
        if value is not None:
            raise DataError(
                f"`{name}` is for a {kind}, which {getattr(source, 'root', source)} is not. Received: {name}={value!r}"
            )


def _cached(cache, split, views, temperature, common):
    cache = cache if isinstance(cache, LatentCache) else open_cache(cache)
    manifest, stored = cache.split(split), cache.views(split)
    used = stored if views == "all" or split != "train" else views
    if used not in range(1, stored + 1):
        raise DataError(f'`views` must be "all" or in 1..{stored}, the views in the cache. Received: views={views!r}')
    if temperature is not None and cache.teacher is None:
        raise DataError(
            f"The latent cache {cache.root} holds no targets of a teacher. Make a new one: keras-ci2p cache DATA OUT "
            f"--teacher T. Received: temperature={temperature}"
        )
    temperature = temperature if split == "train" else None
    return LatentLoader(cache, split, views=used, temperature=temperature, manifest=manifest, **common)


def _open_files(manifest, is_training, compressor, image_size, augment, class_names):
    """The `LoadFiles` of a split."""
    if compressor is None:
        raise DataError(
            f"`latent_folder` needs the `compressor` that wrote the {SUFFIX} files in {manifest.root}. "
            "Received: compressor=None"
        )
    if class_names is not None:
        manifest = manifest.with_class_names(class_names)
    codec = ImageCodec(compressor)
    grid = tuple(side // STRIDE for side in check_files(manifest, image_size, codec.identity))
    augment = CROP_AND_FLIP if augment is None else augment
    if not is_training or augment is False:
        return LoadFiles(manifest, codec, grid)
    check_latent_augmentation(augment)
    mirror = LatentMirror.fit(codec, manifest) if augment.flip else None
    return LoadFiles(manifest, codec, grid, augment, mirror, fill=True)


# Pixels to a token, of which classifiers take whole ones.
_TOKEN = 2 * STRIDE


def check_files(manifest, image_size=None, identity=None):
    """Reads the headers of the `.ci2p` files of a manifest, and checks what they are of.

    Args:
        manifest: `ImageManifest`.
        image_size: Height and width that they must have at least, or both; None for that of all files, in whole tokens.
        identity: Fingerprint of the compressor that all must be of, as `CompressedImage.compressor`; None for any, and
            for images among them.

    Returns:
        `(height, width)`.

    Raises:
        DataError: Files that are no `.ci2p` files, of another compressor or too small; various sizes without an
            `image_size`.
    """
    compressed = manifest.compressed
    if identity is not None and len(compressed) < len(manifest):
        _refuse_files(
            manifest,
            sorted({*range(len(manifest))}.difference(compressed)),
            f"no {SUFFIX} files",
            "`keras-ci2p compress` makes such files of images, `keras-ci2p cache` takes both, `image_folder` images.",
        )

    def header(index):
        try:
            return index, read_compressed(manifest.read(index))
        except (OSError, CodecError):
            # It is told and left out when it is loaded.
            return index, None

    headers = {index: file for index, file in in_threads(header, compressed) if file is not None}
    _refuse_files(
        manifest,
        [index for index, file in headers.items() if identity not in (None, file.compressor)],
        f"of another compressor than {identity}",
        "Give the one that wrote them; or `keras-ci2p cache` decodes and encodes them anew.",
    )
    if image_size is None:
        sizes = {(file.height, file.width) for file in headers.values()}
        if len(sizes) != 1:
            raise DataError(
                f"The {SUFFIX} files of {manifest.root} have {len(sizes)} sizes. Give the `image_size` to crop them "
                "to, or make files of one size: keras-ci2p compress --size N"
            )
        image_size = [max(side // _TOKEN, 1) * _TOKEN for side in sizes.pop()]
    height, width = check_image_size(image_size, _TOKEN)
    _refuse_files(
        manifest,
        [index for index, file in headers.items() if file.height <= height - STRIDE or file.width <= width - STRIDE],
        f"smaller than {height} x {width} pixels",
        "Choose a smaller `image_size` (--image-size), or leave them out: latents cannot be enlarged.",
    )
    return height, width


def _refuse_files(manifest, indices, what, advice):
    """Raises DataError where there are any."""
    if indices:
        raise DataError(
            f"{len(indices):,} of the {len(manifest):,} files of {manifest.root} are {what}; the first is "
            f"{manifest.files[indices[0]]}. {advice}"
        )


# The values at which they do nothing.
_FOR_PIXELS = {"randaugment_ops": 0, "grayscale": 0, "blur": 0, "solarize": 0, "erasing": 0}


def check_latent_augmentation(augmentation):
    """Raises DataError unless an `Augmentation` can be done on latents: crops and flips alone."""
    needed = [name for name, off in _FOR_PIXELS.items() if getattr(augmentation, name, off) != off]
    if needed or not isinstance(augmentation, Augmentation):
        what = ", ".join(f"augmentation.{name}={getattr(augmentation, name)}" for name in needed)
        raise DataError(
            f"{what or repr(augmentation)} needs pixels, and {SUFFIX} files hold latents, which can be cropped and "
            f"flipped alone. Set it to 0 (--set {(what or 'augmentation.erasing=').split('=')[0]}=0), take the recipe "
            "quick, or train on images."
        )


def crop_latents(latents, grid, augmentation=None, rng=None, mirror=None):
    """Crops latents in steps of a latent, and flips them.

    Args:
        latents: `(rows, columns, channels)`, at least as many rows and columns as asked for.
        grid: `(rows, columns)` of the result.
        augmentation: `Augmentation`, of which `flip` counts, and `crop_area`: (1, 1) is the centre, all else a random
            place. None for the centre, not flipped.
        rng: `numpy.random.Generator`.
        mirror: `LatentMirror` of the compressor, for flips.

    Returns:
        `(*grid, channels)`.
    """
    free = [side - kept for side, kept in zip(latents.shape, grid, strict=False)]
    is_random = augmentation is not None and augmentation.crop_area != (1, 1)
    top, left = (int(rng.integers(0, most + 1)) if is_random else most // 2 for most in free)
    is_flipped = augmentation is not None and rng.random() < augmentation.flip
    crop = latents[top : top + grid[0], left : left + grid[1]]
    return mirror(crop) if is_flipped else crop


# Latents that a mirror is fitted to, and the most of a side of an image: more make it no better.
_MIRROR_LATENTS = 8192
_MIRROR_SIDE = 16
# Of least squares, so that a channel that is always zero does no harm.
_RIDGE = 1.0


class LatentMirror:
    """Makes the latents of the flipped image of those of an image, but for a few percent of their variance.

    To reverse the columns is not enough, since neither a compressor's filters nor its grid are symmetric. What is
    missing is nearly linear: the change of signs, as it were, that flips JPEG's coefficients (Park and Johnson, "RGB no
    more", CVPR 2023). `docs/compressed.md` has what both cost in accuracy.

    Args:
        weights: float32 array `(3 * channels + 1, channels)`, by which the left neighbour in the reversed row, the
            latent itself and the right neighbour are multiplied; the last row is a constant.
    """

    def __init__(self, weights):
        self._weights = weights

    def __call__(self, latents):
        """The flipped latents: float32 array `(rows, columns, channels)`, shaped as given."""
        return _beside_neighbours(latents) @ self._weights

    @classmethod
    def fit(cls, codec, manifest):
        """The one of a compressor, by least squares: images are decoded, flipped, and encoded anew.

        Args:
            codec: `ImageCodec` of the compressor.
            manifest: `ImageManifest`, of whose `.ci2p` files so many are decoded that there are latents enough.

        Returns:
            `LatentMirror`; None where none of the files is of this compressor.
        """
        # Of the compressor, which is none of this package's business otherwise.
        import keras

        products, count = None, 0
        for index in np.random.default_rng(0).permutation(manifest.compressed):
            if count >= _MIRROR_LATENTS:
                break
            try:
                (latents,) = codec.latents(manifest.read(index))
            except READ_ERRORS:
                continue
            # Of a large image a part.
            latents = crop_latents(latents, [min(side, _MIRROR_SIDE) for side in latents.shape[:2]])
            images = keras.ops.convert_to_numpy(codec.compressor.decode(latents[None].astype("float32")))
            images = np.ascontiguousarray(images[:, :, ::-1]).clip(0, 255)
            flipped = keras.ops.convert_to_numpy(codec.compressor.encode(images))
            given = _beside_neighbours(latents).reshape(-1, 3 * latents.shape[-1] + 1).astype("float64")
            part = given.T @ np.concatenate([given, flipped.reshape(len(given), -1)], axis=1)
            products, count = part if products is None else products + part, count + len(given)
        if products is None:
            return None
        size = len(products)
        weights = np.linalg.solve(products[:, :size] + _RIDGE * np.eye(size), products[:, size:])
        return cls(weights.astype("float32"))


def _beside_neighbours(latents):
    """Of the columns in reverse order, each beside its neighbours, and 1: `(rows, columns, 3 * channels + 1)`."""
    padded = np.pad(latents[:, ::-1], [(0, 0), (1, 1), (0, 0)], mode="edge")
    ones = np.ones((*latents.shape[:2], 1), latents.dtype)
    return np.concatenate([padded[:, :-2], padded[:, 1:-1], padded[:, 2:], ones], axis=-1)


class LoadFiles(LoadImage):
    """Loads the latents of a `.ci2p` file with its one-hot label, for `DataLoader`; as `LoadImage` loads images.

    Args:
        manifest: `ImageManifest` of `.ci2p` files.
        codec: `ImageCodec` of the compressor that wrote them.
        grid: `(rows, columns)` of the latents.
        augmentation, mirror: As in `crop_latents`.
        fill: As in `LoadImage`.

    Attributes:
        manifest: As given.
    """

    def __init__(self, manifest, codec, grid, augmentation=None, mirror=None, fill=False):
        super().__init__(manifest, grid, None, fill)
        self.manifest = manifest
        self._shape = (*grid, codec.compressor.latent_channels)
        self._codec = codec
        self._augmentation = augmentation
        self._mirror = mirror

    def _load(self, index, rng):
        (latents,) = self._codec.latents(self.manifest.read(index))
        latents = crop_latents(latents, self._shape[:2], self._augmentation, rng, self._mirror)
        return latents, self._labels[self.manifest.labels[index]]


class LatentLoader(DataLoader):
    """Loads batches of `(latents, one-hot labels)`; each epoch has one view of each image.

    An image begins with a view that is sampled and takes the next one in each epoch, so that all are used alike.

    Args:
        cache: A complete `LatentCache`.
        split: "train" or "val".
        views: How many of the stored views to use.
        seed: Seed of the order and the first views.
        temperature: What the teacher's logits are divided by; None for labels without a teacher's targets.
        **options: As in `DataLoader`.

    Attributes:
        cache: As given.
    """

    def __init__(self, cache, split, *, views, seed, temperature=None, **options):
        self.cache = cache
        self._load = LoadLatents(cache, split, views, seed, temperature)
        super().__init__(self._load, seed=seed, **options)

    def _finish(self, batches):
        # Which view to read depends on the epoch, which the number of a batch tells.
        self._load.steps_per_epoch = len(batches)
        return batches.map_with_index(self._load.read_batch)


class LoadLatents:
    """Loads the latents of a cache with their labels, for `LatentLoader`.

    Args:
        cache, split, views, seed, temperature: As in `LatentLoader`.

    Attributes:
        steps_per_epoch: Batches in an epoch; to be set before batches are read.
    """

    def __init__(self, cache, split, views, seed, temperature):
        manifest = cache.split(split)
        self._latents = LatentRecords(cache, split)
        self._targets = None if temperature is None else TargetRecords(cache)
        self._temperature = temperature
        self._stored_views = cache.views(split)
        self._labels = np.array(manifest.labels)
        self._one_hot = np.eye(len(manifest.class_names), dtype="float32")
        self._views = views
        self._first_view = np.random.default_rng(seed).integers(views, size=len(manifest))
        self.steps_per_epoch = None

    def __len__(self):
        return len(self._labels)

    def __call__(self, index, rng):
        return index

    def collate(self, indices):
        return np.array(indices)

    def read_batch(self, batch_number, indices):
        """Reads the latents of a batch.

        Args:
            batch_number: Number of the batch, counted through all epochs.
            indices: Integer array `(batch,)` of images.

        Returns:
            `(latents, labels)`, float32; with a teacher the labels are a dict with `target_arrays`.
        """
        epoch = batch_number // self.steps_per_epoch
        numbers = indices * self._stored_views + (self._first_view[indices] + epoch) % self._views
        latents = np.stack([self._latents[number] for number in numbers])
        labels = self._one_hot[self._labels[indices]]
        if self._targets is None:
            return latents, labels
        logits, features = zip(*(self._targets[number] for number in numbers), strict=True)
        features = [np.stack(maps) for maps in zip(*features, strict=True)]
        return latents, {"labels": labels, **target_arrays(np.stack(logits), features, self._temperature)}


class _Records:
    """Reads the records of a split by their number, `image * views + view`, in several threads and processes."""

    def __init__(self, cache, split, file_of):
        # Not the cache itself, which lists every image: worker processes get this object pickled.
        self._root = cache.root
        self._views = cache.views(split)
        self._parts = [
            (part.first_view, part.views, _source(cache.root, part.shards, file_of)) for part in cache.parts(split)
        ]
        self._length = cache.num_records(split)

    def __len__(self):
        return self._length

    def __getitem__(self, number):
        """Reads a record; DataError where the file is damaged."""
        if not 0 <= number < len(self):
            raise IndexError(f"There are {len(self)} latents. Received: number={number}")
        image, view = divmod(int(number), self._views)
        first, views, source = next(part for part in reversed(self._parts) if part[0] <= view)
        try:
            return self._decode(source[image * views + view - first])
        # ArrayRecord raises RuntimeError where a record does not fit its hash.
        except (RuntimeError, ValueError) as error:
            raise DataError(f"The latent cache {self._root} is damaged at record {number}: {error}") from error


class LatentRecords(_Records):
    """Reads the latents of a split by their number: float32 `(height, width, channels)`.

    Args:
        cache: A complete `LatentCache`.
        split: "train" or "val".
    """

    def __init__(self, cache, split):
        super().__init__(cache, split, lambda shard: shard)
        self._shape, self._store = cache.latent_shape, cache.store

    def _decode(self, record):
        return decode(record, self._shape, self._store)


class TargetRecords(_Records):
    """Reads a teacher's targets of the training views by their number: `(logits, list of feature maps)`, float32.

    Args:
        cache: A complete `LatentCache` with a teacher.
    """

    def __init__(self, cache):
        super().__init__(cache, "train", lambda shard: shard["targets"])
        features = cache.teacher["features"]
        self._num_classes = len(cache.class_names)
        self._shapes = [(row["rows"], row["columns"], row["channels"]) for row in features]
        self._steps = [np.array(row["steps"], "float32") for row in features]

    def _decode(self, record):
        logits, features = decode_targets(record, self._num_classes, self._shapes)
        return logits, [integers * step for integers, step in zip(features, self._steps, strict=True)]


def _source(root, shards, file_of):
    files = [(str(root / file_of(shard)["file"]), shard["records"]) for shard in shards]
    return grain.sources.ArrayRecordDataSource([_Shard(name, 0, records, records) for name, records in files])


class _Shard(NamedTuple):
    """Describes a file to ArrayRecord, so that it is opened only when it is first read."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int
