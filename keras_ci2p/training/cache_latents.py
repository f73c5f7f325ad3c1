"""Runs a compressor once over the views of each image and stores the latents."""

import contextlib
import shutil
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from keras_ci2p import utils
from keras_ci2p.backend import environment
from keras_ci2p.data.latent_cache import (
    ARRAY_RECORD,
    COMPRESSOR,
    FORMAT_VERSION,
    IMAGES_FILE,
    MANIFEST,
    PROJECTION,
    SPLITS,
    LatentCache,
    Share,
    is_latent_cache,
    open_cache,
    read_cache,
    record_file,
    seal_cache,
    shard_files,
    target_file,
    write_images,
)
from keras_ci2p.data.manifest import DataError, ImageManifest
from keras_ci2p.data.sources import open_data
from keras_ci2p.layers.compression_transforms import AnalysisTransform
from keras_ci2p.layers.embedding import PATCH_SIZE, compressor_config
from keras_ci2p.models.compressor import Compressor
from keras_ci2p.names import renamed_arguments
from keras_ci2p.training.distillation import FIT_VIEWS, FeatureProjection, TeacherTargets, teacher_top1
from keras_ci2p.training.latents import LatentEncoder, analysis_of, cached_compressor, latent_reader, write_compressor
from keras_ci2p.training.recipes import LatentCacheConfig
from keras_ci2p.training.teacher import Teacher
from keras_ci2p.utils import (
    PathLike,
    atomic_file,
    clean_up,
    file_sha256,
    require,
    user_path,
    write_bytes,
    write_json,
)


@renamed_arguments(photos="data")
def cache_latents(
    data: ImageManifest | PathLike,
    out: PathLike,
    compressor: Compressor | AnalysisTransform | None,
    settings: LatentCacheConfig | None = None,
    resume: bool = False,
    num_threads: int | None = None,
    verbose: int = 1,
    teacher: Teacher | None = None,
    more_views: int | None = None,
    part: tuple[int, int] | None = None,
) -> LatentCache:
    """Stores the latents of some views of each training image, and of the central crop of each validation image.

    A view depends only on the seed, the image, its place in the training split and the number of the view. Whatever
    ends the process, `resume=True` keeps the whole shards and makes the others, and the result is that of an
    uninterrupted run: bit for bit on JAX and on torch with one thread; on TensorFlow up to rounding errors, by which a
    value halfway between two integers may be rounded to the other one.

    Args:
        data: `ImageManifest` of all images, or what `keras_ci2p.data.open_data` takes. The latents of `.ci2p` files of
            this compressor are cropped and flipped, without pixels; those of others are decoded and encoded anew, with
            a warning.
        out: Directory of the cache.
        compressor: `Compressor` or `AnalysisTransform`; it is stored with the latents. None with `more_views`, for that
            of the cache.
        settings: `LatentCacheConfig`; None for its defaults, with `more_views` for those of the cache.
        resume: Whether to go on with the cache in `out`, else it must be new.
        num_threads: Threads that decode and augment; None for one per CPU of this process.
        verbose: 0 for silence, 1 for a progress bar, 2 for one line per shard.
        teacher: `Teacher` with the class names of the images, whose logits and feature maps of each training view are
            stored too, or None. It sees each view in its own size, cut from the image; the feature maps are projected
            as `keras_ci2p.training.distillation` tells.
        more_views: Number of further views of each training image to add to the complete cache in `out`, which may be
            read meanwhile; they count once all are there. An interrupted addition of as many views is gone on with.
        part: `(number, of)`, of which `number` counts from 1: this process is one of `of` that make the cache together,
            on one machine or on several that share the directory; all else is the same for all of them. The first
            begins the cache, fits the teacher's projection, and the others wait for that. One that ended early is
            called again; `resume` is not needed. The last to end checks and seals the cache, which then is byte for
            byte what one process makes, on the same kind of processor. With `more_views` that is left to
            `keras_ci2p.data.seal_cache`, since one that is called again afterwards would begin a new addition.

    Returns:
        The complete `LatentCache`; with `part`, as far as it is made.

    Raises:
        DataError: An existing directory without `resume`, or one of other settings, images or compressor; images that
            cannot be used.
        keras_ci2p.utils.DiskFullError: Too little space on the disk, an OSError.
        ValueError: Latents that are not finite or too large to be stored.

    Examples:
        >>> compressor = keras_ci2p.Compressor(quality=None, channels=(8, 12))
        >>> settings = keras_ci2p.training.LatentCacheConfig(views=2, image_size=32)
        >>> cache = keras_ci2p.training.cache_latents("photos", "latents", compressor, settings, verbose=0)
        >>> cache.views("train"), cache.sizes()
        (2, {'train': 24, 'val': 6})
    """
    # Before the images are read.
    require("grain", extra="train")
    require(ARRAY_RECORD, extra="train")
    out = user_path(out)
    share = None if part is None else Share(*part)
    if share is not None and not 1 <= share.number <= share.of:
        raise ValueError(f"`part` must be (number, of) with a number from 1 to `of`. Received: part={part}")
    if share is not None and share.number > 1:
        # Long enough for the first to begin.
        data = open_data(data)
        _wait_until_begun(out, more_views, verbose)
    previous = _previous(out, resume or part is not None) if more_views is None else open_cache(out)
    if more_views is not None:
        clean_up(out)
        settings = settings or LatentCacheConfig.from_dict(previous.manifest["settings"])
        compressor = compressor or cached_compressor(previous)
    settings = settings or LatentCacheConfig()
    images = open_data(data)
    splits = {split: images.split(split) for split in SPLITS}
    targets = None if teacher is None else TeacherTargets(teacher)
    reader = latent_reader(images, compressor, settings, teacher)
    encoder = LatentEncoder(analysis_of(compressor), settings, num_threads, targets, reader)
    cache = LatentCache(out, _manifest(images, splits, encoder, settings, targets), splits)
    if previous is not None:
        _check_same(previous, cache)
        cache = LatentCache(out, previous.manifest, splits)
        if targets is not None:
            targets.projection = FeatureProjection.from_bytes((out / PROJECTION).read_bytes())
    elif targets is not None:
        _fit_teacher(cache, encoder, targets, verbose)
    is_added = more_views is not None and _add_part(cache, settings, more_views, targets)
    to_make = list(cache.missing(share))
    if to_make:
        # The disk is for all processes.
        _check_space(cache, encoder, _num_records(cache.missing()), verbose)
    if previous is None:
        _begin(cache, compressor, targets)
    if share is None:
        cache.settle()
    else:
        if is_added:
            # For the other processes; alone, it is listed with its first files.
            write_json(out / MANIFEST, cache.manifest)
        share.write(cache)
    _write_shards(cache, encoder, to_make, share, _Progress(_num_records(to_make), verbose))
    if reader is not None:
        reader.warn_of_decoded()
    if share is None:
        return open_cache(out)
    cache = read_cache(out)
    is_last = more_views is None and not cache.missing_shares()
    return seal_cache(out) if is_last else cache


SECONDS_OF_WAITING = 2


def _wait_until_begun(out, more_views, verbose):
    """Waits until the first of several processes has begun the cache, or the addition to it."""
    is_begun = is_latent_cache if more_views is None else lambda out: read_cache(out).is_being_added()
    if verbose and not is_begun(out):
        print(f"Waiting until the first part begins {out} ...", flush=True)
    while not is_begun(out):
        time.sleep(SECONDS_OF_WAITING)


def _write_shards(cache, encoder, to_make, share, progress):
    """Writes shards, given as `LatentCache.missing` yields them."""
    for split, part, shards in to_make:
        numbers = [number for _, photo_numbers in shards for number in photo_numbers]
        views = range(part.first_view, part.first_view + part.views)
        batches = encoder.encode(cache.split(split), split, numbers, views)
        for shard, _ in shards:
            _write_shard(cache, shard, batches, share, progress)


def _previous(out, resume):
    """The cache to go on with, None for a new one."""
    if is_latent_cache(out):
        if not resume:
            raise DataError(f"{out} is a latent cache already: go on with it by --resume, or choose another directory.")
        clean_up(out)
        return read_cache(out)
    # What may lie there when a process was killed before it wrote the manifest.
    first_files = (COMPRESSOR, IMAGES_FILE, PROJECTION, MANIFEST) if resume else ()
    if out.exists() and not (out.is_dir() and utils.is_empty(out, besides=first_files)):
        raise DataError(f"{out} exists and is no latent cache; choose another directory.")
    return None


def _manifest(images, splits, encoder, settings, targets):
    """What is known before the first latent is made."""
    shards = {
        split: _shards(split, manifest, settings, split == "train" and targets is not None)
        for split, manifest in splits.items()
    }
    transform = encoder.transform
    return {
        "format_version": FORMAT_VERSION,
        "settings": settings.to_dict(),
        "latent_shape": list(encoder.latent_shape),
        "compressor": {"fingerprint": transform.weights_hash(), **compressor_config(transform)},
        "data": {
            "root": str(images.root),
            "sha256": images.sha256,
            "class_names": list(images.class_names),
            "photos": {split: manifest.counts() for split, manifest in splits.items()},
        },
        "made_with": environment(),
        "shards": shards,
        **({} if targets is None else {"teacher": targets.teacher.describe()}),
    }


def _shards(name, manifest, settings, with_targets):
    """The files of a part, none of which is made."""
    total = len(manifest) * (settings.views if name.startswith("train") else 1)
    step = settings.records_per_shard(total)
    shards = []
    for first in range(0, total, step):
        stem = f"{name}-{first // step:05d}"
        targets = {"targets": {"file": f"{stem}.targets.arrayrecord"}} if with_targets else {}
        shards.append({"file": f"{stem}.arrayrecord", "records": min(step, total - first), **targets})
    return shards


def _fit_teacher(cache, encoder, targets, verbose):
    """Fits the projection on views of images from all over the training split, and measures the teacher."""
    train, views = cache.split("train"), cache.manifest["settings"]["views"]
    count = min(len(train), -(-FIT_VIEWS // views))
    numbers = np.linspace(0, len(train) - 1, count).round().astype(int).tolist()
    if verbose:
        print(f"Looking at the teacher {targets.teacher.name} ...", flush=True)
    targets.fit(encoder.teacher_views(train, numbers), [side // PATCH_SIZE for side in cache.image_size])
    val_top1 = teacher_top1(targets.teacher, cache.split("val"))
    cache.manifest["teacher"] = {**targets.describe(), "val_top1": val_top1}
    if verbose:
        explained = ", ".join(f"{row['explained']:.0%} of {row['name']}" for row in cache.teacher["features"])
        print(
            f"Top-1 of the teacher: {val_top1:.2%} of the validation photos."
            + (f" Kept of its feature maps: {explained}." if explained else ""),
            flush=True,
        )


def _add_part(cache, settings, views, targets):
    """Lists `views` more views in the manifest and returns True, unless so many are listed that are not done yet."""
    if cache.is_being_added():
        unfinished = next((part for part in cache.later_parts() if not cache.is_whole(part)), cache.later_parts()[-1])
        if unfinished.views != views:
            raise DataError(
                f"{cache.root} has {unfinished.views} further views that are not finished; finish them first. "
                f"Received: more_views={views}"
            )
        return False
    more = cache.manifest.setdefault("more", [])
    part = f"train-more{len(more) + 1}"
    shards = _shards(part, cache.split("train"), replace(settings, views=views), targets is not None)
    more.append({"views": views, "shards": shards})
    return True


def _check_same(previous, now):
    """Raises DataError, saying what differs, unless a cache can be gone on with; warns of another backend."""
    before, after = previous.manifest, now.manifest
    different = [
        f"{name} {old}, now {new}"
        for name, old, new in (
            *_settings(before["settings"], after["settings"]),
            ("compressor", previous.fingerprint, now.fingerprint),
            ("photos with SHA-256", previous.sha256, now.sha256),
            *_teachers(previous.teacher, now.teacher),
        )
        if old != new
    ]
    for split in SPLITS:
        if not different and previous.split(split).hashes != now.split(split).hashes:
            different.append(f"the {split} photos are in another order")
    if different:
        raise DataError(f"The cache {previous.root} was begun with other settings: {'; '.join(different)}.")
    then, here = before["made_with"]["backend"], after["made_with"]["backend"]
    if then != here:
        warnings.warn(
            f"This cache was begun on {then} and goes on with {here}: the latents will differ by rounding errors.",
            stacklevel=3,
        )


def _settings(before, after, prefix=""):
    for name, value in after.items():
        if isinstance(value, dict):
            yield from _settings(before.get(name, {}), value, f"{prefix}{name}.")
        else:
            yield prefix + name, before.get(name), value


def _teachers(before, after):
    """Yields what is to be the same of two teachers, each a description or None: `(name, of the one, of the other)`."""
    yield "teacher", *((teacher or {}).get("sha256") for teacher in (before, after))
    if before and after:
        for name in ("image_size", "value_range"):
            yield f"teacher's {name}", before[name], after[name]
        # A list of what was projected; a dict before that.
        names = ([row if isinstance(row, str) else row["name"] for row in one["features"]] for one in (before, after))
        yield "teacher's features", *names


def _num_records(missing):
    return sum(shard["records"] for _, _, shards in missing for shard, _ in shards)


def _check_space(cache, encoder, total, verbose):
    """Raises DiskFullError unless there is room for `total` more latents, judged by one batch."""
    photos = cache.split("train")
    latents, targets = next(
        encoder.encode(photos, "train", range(min(cache.manifest["settings"]["batch_size"], len(photos))))
    )
    with tempfile.TemporaryDirectory() as directory:
        trials = [Path(directory, name) for name in ("latents.arrayrecord", "targets.arrayrecord")]
        with record_file(trials[0], cache.store) as append:
            append(latents)
        if targets is not None:
            with target_file(trials[1]) as append:
                append(*targets)
        needed = sum(trial.stat().st_size for trial in trials if trial.exists()) / len(latents) * total
    existing = next(path for path in (cache.root, *cache.root.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise utils.DiskFullError(f"{cache.root}, for {total} latents,", needed, free)
    if verbose:
        print(f"{total} latents, about {utils.megabytes(needed)}; {utils.megabytes(free)} are free.", flush=True)


def _begin(cache, compressor, targets):
    """Writes all but the latents; the manifest last, since it makes the directory a cache."""
    # It may be a symbolic link to where nothing is yet.
    cache.root.resolve().mkdir(parents=True, exist_ok=True)
    clean_up(cache.root)
    write_compressor(cache.compressor_preset, compressor)
    write_images(cache.root / IMAGES_FILE, cache.splits)
    cache.manifest["data"]["photos_sha256"] = file_sha256(cache.root / IMAGES_FILE)
    if targets is not None:
        write_bytes(cache.root / PROJECTION, targets.projection.to_bytes())
    write_json(cache.root / MANIFEST, cache.manifest)


def _write_shard(cache, shard, batches, share, progress):
    """Writes the files of one shard from the next batches, then lists them."""
    paths = [cache.root / file["file"] for file in shard_files(shard)]
    with contextlib.ExitStack() as stack:
        temporaries = [stack.enter_context(atomic_file(path)) for path in paths]
        with contextlib.ExitStack() as writing:
            append = writing.enter_context(record_file(temporaries[0], cache.store))
            append_targets = writing.enter_context(target_file(temporaries[1])) if len(paths) > 1 else None
            written = 0
            while written < shard["records"]:
                latents, targets = next(batches)
                append(latents)
                if append_targets:
                    append_targets(*targets)
                written += len(latents)
                progress.add(len(latents))
        made = [{"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in temporaries]
    for file, entries in zip(shard_files(shard), made, strict=True):
        file.update(entries)
    if share is None:
        write_json(cache.root / MANIFEST, cache.manifest)
    else:
        share.write(cache)
    progress.line(f"{paths[0]} is written")


class _Progress:
    """What the user sees: a bar with images a second and the time that is left, or a line now and then."""

    def __init__(self, total, verbose):
        self._total = total
        self._verbose = verbose
        self._bar = keras.utils.Progbar(
            total, verbose=int(verbose == 1), unit_name="image", stateful_metrics=["images_per_second"]
        )
        self._done = 0
        self._began = time.perf_counter()

    def add(self, count):
        self._done += count
        self._bar.update(self._done, [("images_per_second", self._speed)])

    def line(self, text):
        if self._verbose == 2:
            print(f"{text}; {self._done} of {self._total} images, {self._speed:.1f} a second", flush=True)

    @property
    def _speed(self):
        return self._done / (time.perf_counter() - self._began)
