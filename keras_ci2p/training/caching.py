"""Runs a compressor once over the views of each photo and stores the latents."""

import contextlib
import shutil
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from keras_ci2p import files
from keras_ci2p.data import DataError
from keras_ci2p.data.latent_cache import (
    COMPRESSOR,
    FORMAT_VERSION,
    MANIFEST,
    PHOTOS,
    PROJECTION,
    SPLITS,
    LatentCache,
    fingerprint,
    is_latent_cache,
    open_cache,
    read_cache,
    shard_files,
    write_photos,
)
from keras_ci2p.data.latent_storage import ARRAY_RECORD, record_file, target_file
from keras_ci2p.data.source import open_data
from keras_ci2p.extras import require
from keras_ci2p.layers.ci2p_patch_embedding import PATCH_SIZE, compressor_config
from keras_ci2p.training.backend import environment
from keras_ci2p.training.cache_settings import CacheSettings
from keras_ci2p.training.cached_compressor import analysis_of, cached_compressor, write_compressor
from keras_ci2p.training.latent_encoder import LatentEncoder
from keras_ci2p.training.teacher_targets import FIT_VIEWS, FeatureProjection, TeacherTargets, teacher_top1


def cache_latents(
    photos, out, compressor, settings=None, resume=False, num_threads=None, verbose=1, teacher=None, more_views=None
):
    """Stores the latents of some views of each training photo, and of the central crop of each validation photo.

    A view depends only on the seed, the photo, its place in the training split and the number of the view. Whatever
    ends the process, `resume=True` keeps the whole shards and makes the others, and the result is that of an
    uninterrupted run: bit for bit on JAX and on torch with one thread; on TensorFlow up to rounding errors, by which a
    value halfway between two integers may be rounded to the other one.

    Args:
        photos: `ImageManifest` of all photos, or what `keras_ci2p.data.open_data` takes.
        out: Directory of the cache.
        compressor: `Compressor` or `AnalysisTransform`; it is stored with the latents. None with `more_views`, for that
            of the cache.
        settings: `CacheSettings`; None for its defaults, with `more_views` for those of the cache.
        resume: Whether to go on with the cache in `out`, else it must be new.
        num_threads: Threads that decode and augment; None for one per core.
        verbose: 0 for silence, 1 for a progress bar, 2 for one line per shard.
        teacher: `Teacher` with the class names of the photos, whose logits and feature maps of each training view are
            stored too, or None. It sees each view in its own size, cut from the photo; the feature maps are projected
            as `keras_ci2p.training.teacher_targets` tells.
        more_views: Number of further views of each training photo to add to the complete cache in `out`, which may be
            read meanwhile; they count once all are there. An interrupted addition of as many views is gone on with.

    Returns:
        The complete `LatentCache`.

    Raises:
        DataError: An existing directory without `resume`, or one of other settings, photos or compressor; photos that
            cannot be used.
        OSError: Too little space on the disk.
        ValueError: Latents that are not finite or too large to be stored.
    """
    # Before the photos are read.
    require("grain", extra="train")
    require(ARRAY_RECORD, extra="train")
    out = Path(out)
    previous = _previous(out, resume) if more_views is None else open_cache(out)
    if more_views is not None:
        files.clean_up(out)
        settings = settings or CacheSettings.from_dict(previous.manifest["settings"])
        compressor = compressor or cached_compressor(previous)
    settings = settings or CacheSettings()
    photos = open_data(photos)
    splits = {split: photos.split(split) for split in SPLITS}
    targets = None if teacher is None else TeacherTargets(teacher)
    encoder = LatentEncoder(analysis_of(compressor), settings, num_threads, targets)
    cache = LatentCache(out, _manifest(photos, splits, encoder, settings, targets), splits)
    if previous is not None:
        _check_same(previous, cache)
        cache = LatentCache(out, previous.manifest, splits)
        if targets is not None:
            targets.projection = FeatureProjection.from_bytes((out / PROJECTION).read_bytes())
    elif targets is not None:
        _fit_teacher(cache, encoder, targets, verbose)
    if more_views is not None:
        _add_part(cache, settings, more_views, targets)
    to_make = [(split, part, shards) for split in SPLITS for part, shards in _to_make(cache, split) if shards]
    total = sum(shard["records"] for _, _, shards in to_make for shard, _ in shards)
    if total:
        _check_space(cache, encoder, total, verbose)
    if previous is None:
        _begin(cache, compressor, targets)
    progress = _Progress(total, verbose)
    for split, part, shards in to_make:
        numbers = [number for _, photo_numbers in shards for number in photo_numbers]
        views = range(part.first_view, part.first_view + part.views)
        batches = encoder.encode(splits[split], split, numbers, views)
        for shard, _ in shards:
            _write_shard(cache, shard, batches, progress)
    return open_cache(out)


def _previous(out, resume):
    """The cache to go on with, None for a new one."""
    if is_latent_cache(out):
        if not resume:
            raise DataError(f"{out} is a latent cache already: go on with it by --resume, or choose another directory.")
        files.clean_up(out)
        return read_cache(out)
    # What may lie there when a process was killed before it wrote the manifest.
    first_files = {Path(name).stem for name in (COMPRESSOR, PHOTOS, PROJECTION, MANIFEST)} if resume else set()
    if out.exists() and (not out.is_dir() or any(path.name.split(".")[0] not in first_files for path in out.iterdir())):
        raise DataError(f"{out} exists and is no latent cache; choose another directory.")
    return None


def _manifest(photos, splits, encoder, settings, targets):
    """What is known before the first latent is made."""
    shards = {
        split: _shards(split, manifest, settings, split == "train" and targets is not None)
        for split, manifest in splits.items()
    }
    transform = encoder.transform
    return {
        "format_version": FORMAT_VERSION,
        "settings": settings.as_dict(),
        "latent_shape": list(encoder.latent_shape),
        "compressor": {"fingerprint": fingerprint(transform), **compressor_config(transform)},
        "data": {
            "root": str(photos.root),
            "sha256": photos.sha256,
            "class_names": list(photos.class_names),
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
    """Fits the projection on views of photos from all over the training split, and measures the teacher."""
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
    """Lists `views` more views in the manifest, unless so many are listed that are not whole yet."""
    unfinished = [part for part in cache.later_parts() if not cache.is_whole(part)]
    if unfinished:
        if unfinished[0].views != views:
            raise DataError(
                f"{cache.root} has {unfinished[0].views} further views that are not finished; finish them first. "
                f"Received: more_views={views}"
            )
        return
    more = cache.manifest.setdefault("more", [])
    part = f"train-more{len(more) + 1}"
    shards = _shards(part, cache.split("train"), replace(settings, views=views), targets is not None)
    more.append({"views": views, "shards": shards})


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
        if not different and previous.split(split).digests != now.split(split).digests:
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


def _to_make(cache, split):
    """Yields each part with its shards that are not there, each with the numbers of its photos."""
    for part in [cache.parts(split)[0], *(cache.later_parts() if split == "train" else [])]:
        missing, first = [], 0
        for shard in part.shards:
            end = first + shard["records"]
            if not cache.is_made(shard):
                missing.append((shard, range(first // part.views, end // part.views)))
            first = end
        yield part, missing


def _check_space(cache, encoder, total, verbose):
    """Raises OSError unless there is room for `total` more latents, judged by one batch."""
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
        raise OSError(
            f"{total} latents take about {_megabytes(needed)}, but {existing} has only {_megabytes(free)} free."
        )
    if verbose:
        print(f"{total} latents, about {_megabytes(needed)}; {_megabytes(free)} are free.", flush=True)


def _megabytes(count):
    return f"{count / 1e6:,.0f} MB"


def _begin(cache, compressor, targets):
    """Writes all but the latents; the manifest last, since it makes the directory a cache."""
    cache.root.mkdir(parents=True, exist_ok=True)
    files.clean_up(cache.root)
    write_compressor(cache.compressor_preset, compressor)
    write_photos(cache.root / PHOTOS, cache.splits)
    cache.manifest["data"]["photos_sha256"] = files.sha256(cache.root / PHOTOS)
    if targets is not None:
        files.write_bytes(cache.root / PROJECTION, targets.projection.to_bytes())
    files.write_json(cache.root / MANIFEST, cache.manifest)


def _write_shard(cache, shard, batches, progress):
    """Writes the files of one shard from the next batches, then lists them in the manifest."""
    paths = [cache.root / file["file"] for file in shard_files(shard)]
    with contextlib.ExitStack() as stack:
        temporaries = [stack.enter_context(files.atomic_file(path)) for path in paths]
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
        made = [{"bytes": path.stat().st_size, "sha256": files.sha256(path)} for path in temporaries]
    for file, entries in zip(shard_files(shard), made, strict=True):
        file.update(entries)
    files.write_json(cache.root / MANIFEST, cache.manifest)
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
