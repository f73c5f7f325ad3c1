"""Caches of precomputed latents: directories, shards, records."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_ci2p.data.manifest import DataError, ImageManifest
from keras_ci2p.utils import PathLike, atomic_file, file_sha256, require, user_path, write_json, wrong_choice

ARRAY_RECORD = "array_record.python.array_record_module"

STORES = ("float16", "rounded")

# zstd at its fastest: measured on latents, its higher levels up to 9 and brotli save nothing and are slower.
_OPTIONS = "group_size:1,zstd:1"


def record_file(path, store):
    """Writes an ArrayRecord file of latents: yields a function that appends a batch, as `encode` takes it.

    Raises:
        OSError: It cannot be written, for example since the disk is full.
    """
    return _record_file(path, lambda latents: encode(latents, store))


def target_file(path):
    """Writes an ArrayRecord file of a teacher's targets; as `record_file`, for what `encode_targets` takes."""
    return _record_file(path, encode_targets)


@contextlib.contextmanager
def _record_file(path, encode):
    writer = require(ARRAY_RECORD, extra="train").ArrayRecordWriter(str(path), _OPTIONS)

    def append(*batch):
        for record in encode(*batch):
            _checked(path, writer.write, record)

    yield append
    _checked(path, writer.close)


def _checked(path, action, *arguments):
    try:
        action(*arguments)
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def encode(latents, store):
    """Encodes each latent of a batch, channel after channel: a channel's neighbours are alike and pack better.

    Args:
        latents: float32 `(batch, height, width, channels)`.
        store: "float16", or "rounded" to integers: one byte for each value, two where a latent's values need them.

    Returns:
        List of bytes.

    Raises:
        ValueError: A value that is not finite, or too large for the store.
    """
    planar = np.moveaxis(latents, -1, 1)
    largest = float(np.abs(planar).max(initial=0))
    limit = float(np.finfo("float16").max) if store == "float16" else np.iinfo("int16").max
    # In this form also for NaN.
    if not largest <= limit:
        raise ValueError(f"Latents must be within -{limit}..{limit} to be stored as {store}. Largest: {largest}")
    if store == "float16":
        return [latent.tobytes() for latent in planar.astype("<f2")]
    return [_smallest(latent).tobytes() for latent in np.rint(planar)]


def _smallest(integers):
    return integers.astype("int8" if integers.min() >= -128 and integers.max() <= 127 else "<i2")


def decode(record, shape, store):
    """Decodes the bytes of one latent.

    Args:
        record: Bytes, as `encode` makes them.
        shape: `(height, width, channels)`.
        store: As in `encode`.

    Returns:
        float32 array of that shape.

    Raises:
        ValueError: The bytes are not as many as the shape needs.
    """
    height, width, channels = shape
    dtype = "<f2" if store == "float16" else "int8" if len(record) == height * width * channels else "<i2"
    planar = np.frombuffer(record, dtype).reshape(channels, height, width)
    return np.moveaxis(planar, 0, -1).astype("float32", order="C")


def encode_targets(logits, features):
    """Encodes a teacher's targets, one record for each image of a batch.

    Args:
        logits: float `(batch, classes)`, stored as float16.
        features: List of int8 arrays `(batch, rows, columns, channels)`.

    Returns:
        List of bytes.

    Raises:
        ValueError: A logit that is not finite.
    """
    if not np.isfinite(logits).all():
        raise ValueError("The teacher's logits must be finite to be stored. Is its range of values right?")
    logits = np.clip(logits, *(np.finfo("float16").max * np.array([-1, 1]))).astype("<f2")
    return [b"".join(array[i].tobytes() for array in (logits, *features)) for i in range(len(logits))]


def decode_targets(record, num_classes, shapes):
    """Decodes a teacher's targets of one image.

    Args:
        record: Bytes, as `encode_targets` makes them.
        num_classes: Number of logits.
        shapes: `(rows, columns, channels)` of each feature map.

    Returns:
        `(logits, list of feature maps)`, float32 and int8.

    Raises:
        ValueError: The bytes are not as many as the shapes need.
    """
    ends = np.cumsum([2 * num_classes, *(math.prod(shape) for shape in shapes)])
    if len(record) != ends[-1]:
        raise ValueError(f"{ends[-1]} bytes are expected, {len(record)} found")
    logits, *features = np.split(np.frombuffer(record, "int8"), ends[:-1])
    return logits.view("<f2").astype("float32"), [
        map_.reshape(shape) for map_, shape in zip(features, shapes, strict=True)
    ]


FORMAT_VERSION = 1
MANIFEST = "latents.json"
IMAGES_FILE = "photos.npz"
COMPRESSOR = "compressor"
PROJECTION = "teacher.npz"
SPLITS = ("train", "val")


class LatentPart(NamedTuple):
    """Describes views that are stored together.

    Attributes:
        first_view: Number of the first of them.
        views: How many of each image.
        shards: The files in order: dicts of `file` and `records`, and once they are made of `bytes` and `sha256`; with
            a teacher also `targets`, such a dict without `records`.
    """

    first_view: int
    views: int
    shards: list


class Share(NamedTuple):
    """One of several processes that make a cache together, on one machine or on many.

    Attributes:
        number: From 1.
        of: How many there are.
    """

    number: int
    of: int

    def __str__(self):
        return f"{self.number}/{self.of}"

    def write(self, cache):
        """Lists the files that this process has made, for `read_cache`."""
        made = [file for shard in cache.shares(self.of)[self.number - 1] for file in shard_files(shard)]
        entries = {file["file"]: {key: file[key] for key in _MADE} for file in made if "bytes" in file}
        content = {**self._asdict(), "more": len(cache.later_parts()), "made": entries}
        write_json(cache.root / f"part-{self.number}-of-{self.of}.json", content)


@dataclass(frozen=True)
class LatentCache:
    """Describes a directory of precomputed latents: of some views of each training image, and of the central crop of
    each validation image.

    It holds `latents.json` (settings, compressor, counts, checksums), `photos.npz` (files, labels and hashes of the
    images), `compressor/` (a preset) and ArrayRecord files, in which the views of an image follow one another. Views
    that were added later are in files of their own, a part of the cache; a part counts once it is whole. With a teacher
    there are `teacher.npz` (the projection of its feature maps) and a second file beside each one of training latents,
    with its targets of these very views. While several processes make a cache, each lists its files in a
    `part-K-of-N.json`, until `seal_cache` takes them into `latents.json`.

    As an `ImageManifest` it has `root`, `class_names`, `sha256`, `counts`, `sizes` and `split`; no test images.

    Attributes:
        root: The directory.
        manifest: Contents of `latents.json`.
        splits: `ImageManifest` of "train" and "val"; the images lie where they lay when they were encoded.

    Examples:
        >>> compressor = keras_ci2p.Compressor(quality=None, channels=(8, 12))
        >>> settings = keras_ci2p.training.LatentCacheConfig(views=1, image_size=32)
        >>> cache = keras_ci2p.training.cache_latents("photos", "latents", compressor, settings, verbose=0)
        >>> cache.class_names, cache.sizes()
        (('bird', 'cat', 'dog'), {'train': 24, 'val': 6})
    """

    root: Path
    manifest: dict
    splits: dict

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.manifest["data"]["class_names"])

    @property
    def sha256(self) -> str:
        """`ImageManifest.sha256` of all images."""
        return self.manifest["data"]["sha256"]

    def counts(self) -> dict[str, int]:
        """Returns the number of images by class name."""
        counts = [images.counts() for images in self.splits.values()]
        return {name: sum(count[name] for count in counts) for name in self.class_names}

    def sizes(self) -> dict[str, int]:
        """Returns the number of images by split."""
        return {name: len(images) for name, images in self.splits.items()}

    def split(self, name: str) -> ImageManifest:
        """Returns the `ImageManifest` of "train" or "val"; DataError for another name."""
        if name not in SPLITS:
            raise DataError(wrong_choice("split", name, SPLITS))
        return self.splits[name]

    @property
    def fingerprint(self) -> str:
        """`weights_hash` of the compressor's analysis transform."""
        return self.manifest["compressor"]["fingerprint"]

    @property
    def compressor_preset(self) -> Path:
        """Directory of the compressor."""
        return self.root / COMPRESSOR

    @property
    def image_size(self) -> tuple[int, int]:
        """`(height, width)` of the images that were encoded."""
        return tuple(self.manifest["settings"]["image_size"])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return tuple(self.manifest["latent_shape"])

    @property
    def store(self) -> str:
        """ "float16" or "rounded"."""
        return self.manifest["settings"]["store"]

    @property
    def teacher(self) -> dict[str, Any] | None:
        """Description of the teacher whose targets are stored, a dict, or None."""
        return self.manifest.get("teacher")

    def parts(self, split: str) -> list[LatentPart]:
        """Returns the `LatentPart`s of a split; the first is always there, the others where they are whole."""
        is_training = split == "train"
        first = LatentPart(0, self.manifest["settings"]["views"] if is_training else 1, self.manifest["shards"][split])
        return [first, *(part for part in self.later_parts() if self.is_whole(part))] if is_training else [first]

    def all_parts(self) -> Iterator[tuple[str, LatentPart]]:
        """Yields split and `LatentPart` of all parts, whole or not, in the order in which they are made."""
        for split in SPLITS:
            yield split, self.parts(split)[0]
            yield from ((split, part) for part in (self.later_parts() if split == "train" else ()))

    def shares(self, of: int) -> list[list[dict[str, Any]]]:
        """Returns the shards that each of `of` processes makes, a list of lists; every shard is in one of them."""
        shards = [shard for _, part in self.all_parts() for shard in part.shards]
        return [shards[first::of] for first in range(of)]

    def shards(self, split: str) -> list[dict[str, Any]]:
        """Returns the shards of all parts, as `LatentPart.shards`."""
        return [shard for part in self.parts(split) for shard in part.shards]

    def later_parts(self) -> list[LatentPart]:
        """Returns the parts of training views that were added later, whole or not."""
        parts, views = [], self.manifest["settings"]["views"]
        for part in self.manifest.get("more", ()):
            parts.append(LatentPart(views, part["views"], part["shards"]))
            views += part["views"]
        return parts

    def is_whole(self, part: LatentPart) -> bool:
        """Returns whether all files of a `LatentPart` are there."""
        return all(self.is_made(shard) for shard in part.shards)

    def views(self, split: str) -> int:
        """Returns the number of latents of each image."""
        return sum(part.views for part in self.parts(split))

    def is_made(self, shard: dict[str, Any]) -> bool:
        """Returns whether the files of a shard are there, in their sizes."""
        return all(
            "bytes" in file and path.is_file() and path.stat().st_size == file["bytes"]
            for file, path in ((file, self.root / file["file"]) for file in shard_files(shard))
        )

    def num_records(self, split: str) -> int:
        """Returns the number of latents of a split."""
        return sum(shard["records"] for shard in self.shards(split))

    def files(self) -> list[dict[str, Any]]:
        """Returns the entries of all files in whole parts, latents and targets: dicts of `file`, `bytes`, `sha256`."""
        return [file for split in SPLITS for shard in self.shards(split) for file in shard_files(shard)]

    @property
    def num_bytes(self) -> int:
        """Size of the files of latents and targets that are made."""
        return sum(file.get("bytes", 0) for file in self.files())

    def missing(
        self, share: Share | None = None
    ) -> Iterator[tuple[str, LatentPart, list[tuple[dict[str, Any], range]]]]:
        """Yields split, part, and its shards that are not there, each with the numbers of its photos.

        Args:
            share: `Share` of a process, for those that it makes; None for all.
        """
        share = share or Share(1, 1)
        files = {shard["file"] for shard in self.shares(share.of)[share.number - 1] if not self.is_made(shard)}
        for split, part in self.all_parts():
            shards, first = [], 0
            for shard in part.shards:
                end = first + shard["records"]
                if shard["file"] in files:
                    shards.append((shard, range(first // part.views, end // part.views)))
                first = end
            if shards:
                yield split, part, shards

    def is_being_added(self) -> bool:
        """Returns whether further views are listed and not whole, or listed by processes and not sealed."""
        parts = self.later_parts()
        return bool(parts) and (
            not all(map(self.is_whole, parts)) or any(share["more"] == len(parts) for share in _read_shares(self.root))
        )

    def missing_shares(self) -> list[Share]:
        """Returns the `Share`s, of those that a cache is made by, whose files are not all there."""
        numbers = {share["of"] for share in _read_shares(self.root)}
        return [
            Share(number, of)
            for of in sorted(numbers)
            for number, shards in enumerate(self.shares(of), start=1)
            if not all(map(self.is_made, shards))
        ]

    def settle(self) -> None:
        """Takes what several processes have listed into the manifest."""
        files = _share_files(self.root)
        if files:
            # In this order, so that who reads meanwhile finds them here or there.
            write_json(self.root / MANIFEST, self.manifest)
            for path in files:
                path.unlink(missing_ok=True)

    def check_compressor(self, transform: Any) -> None:
        """Raises DataError unless the latents are of this built `AnalysisTransform`."""
        given = transform.weights_hash()
        if given != self.fingerprint:
            raise DataError(
                f"The latents in {self.root} were made with another compressor: its fingerprint is {self.fingerprint}, "
                f"the model's {given}. Give the model the compressor in {self.compressor_preset}, or make a new cache."
            )

    def verify(self) -> int:
        """Hashes all files of latents and targets.

        Returns:
            Number of files.

        Raises:
            DataError: Files that are not as they were written, with their names.
        """
        files = self.files()
        damaged = [file["file"] for file in files if not self._is_intact(file)]
        if damaged:
            raise DataError(
                f"{len(damaged)} of {len(files)} files of the latent cache {self.root} are damaged, their SHA-256 is "
                f"not that of {MANIFEST}: {', '.join(damaged)}. Delete them; the command that made them, with --resume "
                "where it has no --part, makes them again."
            )
        return len(files)

    def _is_intact(self, file):
        try:
            return file_sha256(self.root / file["file"]) == file["sha256"]
        except OSError:
            return False


def shard_files(shard):
    """Returns the entries of a shard's files: latents, and targets where there are any."""
    return [shard, shard["targets"]] if "targets" in shard else [shard]


_MADE = ("bytes", "sha256")


def _share_files(root):
    return sorted(Path(root).glob("part-*-of-*.json"))


def _read_shares(root):
    """The contents of the files that `Share.write` wrote, dicts."""
    found = []
    for path in _share_files(root):
        # Sealed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def seal_cache(root: PathLike) -> LatentCache:
    """Checks every byte of a cache that several processes have made, and makes it what one would have.

    Args:
        root: The directory.

    Returns:
        The complete `LatentCache`.

    Raises:
        DataError: Files are missing, and which process makes them; or damaged ones.

    Examples:
        >>> compressor = keras_ci2p.Compressor(quality=None, channels=(8, 12))
        >>> settings = keras_ci2p.training.LatentCacheConfig(views=1, image_size=32)
        >>> for number in (1, 2):  # on two machines, at the same time
        ...     _ = keras_ci2p.training.cache_latents(
        ...         "photos", "latents", compressor, settings, verbose=0, part=(number, 2)
        ...     )
        >>> keras_ci2p.data.seal_cache("latents").sizes()
        {'train': 24, 'val': 6}
    """
    cache = read_cache(root)
    missing = ", ".join(f"--part {share}" for share in cache.missing_shares())
    if missing:
        raise DataError(
            f"The latent cache {root} is not complete: not all is there that {missing} makes. Run it again: the same "
            "command with that."
        )
    cache = open_cache(root)
    cache.verify()
    cache.settle()
    return cache


def open_cache(root: PathLike) -> LatentCache:
    """Opens the complete cache of a directory. Sizes are checked; `LatentCache.verify` checks the contents too.

    Returns:
        `LatentCache`.

    Raises:
        DataError: No latent cache, one of another format, an unfinished or damaged one.

    Examples:
        >>> compressor = keras_ci2p.Compressor(quality=None, channels=(8, 12))
        >>> settings = keras_ci2p.training.LatentCacheConfig(views=1, image_size=32)
        >>> _ = keras_ci2p.training.cache_latents("photos", "latents", compressor, settings, verbose=0)
        >>> keras_ci2p.data.open_cache("latents").image_size
        (32, 32)
    """
    cache = read_cache(root)
    shards = [shard for split in SPLITS for shard in cache.manifest["shards"][split]]
    missing = [shard["file"] for shard in shards if not cache.is_made(shard)]
    if missing:
        raise DataError(
            f"The latent cache {root} is not complete: {len(missing)} of {len(shards)} files are missing or damaged, "
            f"first {missing[0]}. The command that began it, with --resume, makes them."
        )
    return cache


def read_cache(root):
    """Opens a cache as `open_cache`, though it may be unfinished."""
    root = user_path(root)
    if not is_latent_cache(root):
        raise DataError(f"{root} is no latent cache: it has no {MANIFEST}.")
    try:
        # Before the manifest, which is written anew before they are deleted.
        shares = _read_shares(root)
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format_version"]
        if version != FORMAT_VERSION:
            raise DataError(f"{root} has cache format {version!r}; this version of keras_ci2p reads {FORMAT_VERSION}.")
        data = manifest["data"]
        path = root / IMAGES_FILE
        if file_sha256(path) != data["photos_sha256"]:
            raise DataError(f"{path} is damaged: its SHA-256 is not that of {MANIFEST}. Make a new cache.")
        cache = LatentCache(root, manifest, _read_images(path, data))
        made = {name: entries for share in shares for name, entries in share["made"].items()}
        for shard in (shard for _, part in cache.all_parts() for shard in part.shards):
            for file in shard_files(shard):
                file.update(made.get(file["file"], {}))
        return cache
    except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"The latent cache {root} is damaged: {error!r}. Make a new one.") from error


def is_latent_cache(root):
    """Returns whether a directory is a latent cache, finished or not."""
    return (user_path(root) / MANIFEST).is_file()


def write_images(path, splits):
    """Writes files, labels and hashes of each split's `ImageManifest` as a numpy archive.

    Args:
        path: Path of the archive.
        splits: `ImageManifest` of "train" and "val".
    """
    columns = {}
    for split, manifest in splits.items():
        # No file name holds a zero byte.
        columns[f"{split}_files"] = np.frombuffer(b"\0".join(map(os.fsencode, manifest.files)), "uint8")
        columns[f"{split}_labels"] = np.array(manifest.labels, "<i4")
        columns[f"{split}_digests"] = np.frombuffer(bytes.fromhex("".join(manifest.hashes)), "uint8").reshape(-1, 32)
    with atomic_file(path) as temporary:
        np.savez_compressed(temporary, **columns)


def _read_images(path, data):
    with np.load(path, allow_pickle=False) as columns:
        return {
            split: ImageManifest(
                Path(data["root"]),
                tuple(data["class_names"]),
                tuple(map(os.fsdecode, columns[f"{split}_files"].tobytes().split(b"\0"))),
                tuple(columns[f"{split}_labels"].tolist()),
                tuple(digest.tobytes().hex() for digest in columns[f"{split}_digests"]),
            )
            for split in SPLITS
        }
