"""Runs a compressor once over the views of each image and stores the latents."""

import contextlib
import shutil
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from keras_ci2p.backend import environment
from keras_ci2p.data.augmentation import sample_params
from keras_ci2p.data.latent_cache import (
    ARRAY_RECORD,
    COMPRESSOR,
    FORMAT_VERSION,
    IMAGES_FILE,
    MANIFEST,
    PROJECTION,
    SPLITS,
    LatentCache,
    is_latent_cache,
    open_cache,
    read_cache,
    record_file,
    shard_files,
    target_file,
    write_images,
)
from keras_ci2p.data.manifest import DataError
from keras_ci2p.data.sources import open_data
from keras_ci2p.data.transforms import apply_params, center_crop
from keras_ci2p.layers.compression_transforms import AnalysisTransform, fingerprint
from keras_ci2p.layers.embedding import PATCH_SIZE, compressor_config
from keras_ci2p.models.compressor import Compressor
from keras_ci2p.presets import WEIGHTS, open_preset, save_preset
from keras_ci2p.training.configs import LatentCacheConfig
from keras_ci2p.training.distillation import FIT_VIEWS, FeatureProjection, TeacherTargets, teacher_top1
from keras_ci2p.utils import atomic_file, clean_up, file_sha256, num_cpus, require, write_bytes, write_json


def cache_latents(
    photos, out, compressor, settings=None, resume=False, num_threads=None, verbose=1, teacher=None, more_views=None
):
    """Stores the latents of some views of each training image, and of the central crop of each validation photo.

    A view depends only on the seed, the image, its place in the training split and the number of the view. Whatever
    ends the process, `resume=True` keeps the whole shards and makes the others, and the result is that of an
    uninterrupted run: bit for bit on JAX and on torch with one thread; on TensorFlow up to rounding errors, by which a
    value halfway between two integers may be rounded to the other one.

    Args:
        photos: `ImageManifest` of all images, or what `keras_ci2p.data.open_data` takes.
        out: Directory of the cache.
        compressor: `Compressor` or `AnalysisTransform`; it is stored with the latents. None with `more_views`, for that
            of the cache.
        settings: `LatentCacheConfig`; None for its defaults, with `more_views` for those of the cache.
        resume: Whether to go on with the cache in `out`, else it must be new.
        num_threads: Threads that decode and augment; None for one per CPU of this process.
        verbose: 0 for silence, 1 for a progress bar, 2 for one line per shard.
        teacher: `Teacher` with the class names of the images, whose logits and feature maps of each training view are
            stored too, or None. It sees each view in its own size, cut from the image; the feature maps are projected
            as `keras_ci2p.training.teacher_targets` tells.
        more_views: Number of further views of each training image to add to the complete cache in `out`, which may be
            read meanwhile; they count once all are there. An interrupted addition of as many views is gone on with.

    Returns:
        The complete `LatentCache`.

    Raises:
        DataError: An existing directory without `resume`, or one of other settings, images or compressor; images that
            cannot be used.
        OSError: Too little space on the disk.
        ValueError: Latents that are not finite or too large to be stored.
    """
    # Before the images are read.
    require("grain", extra="train")
    require(ARRAY_RECORD, extra="train")
    out = Path(out)
    previous = _previous(out, resume) if more_views is None else open_cache(out)
    if more_views is not None:
        clean_up(out)
        settings = settings or LatentCacheConfig.from_dict(previous.manifest["settings"])
        compressor = compressor or cached_compressor(previous)
    settings = settings or LatentCacheConfig()
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
    _write_shards(cache, encoder, to_make, _Progress(total, verbose))
    return open_cache(out)


def _write_shards(cache, encoder, to_make, progress):
    """Writes shards, given as triples of split, part and what `_to_make` yields with it."""
    for split, part, shards in to_make:
        numbers = [number for _, photo_numbers in shards for number in photo_numbers]
        views = range(part.first_view, part.first_view + part.views)
        batches = encoder.encode(cache.split(split), split, numbers, views)
        for shard, _ in shards:
            _write_shard(cache, shard, batches, progress)


def _previous(out, resume):
    """The cache to go on with, None for a new one."""
    if is_latent_cache(out):
        if not resume:
            raise DataError(f"{out} is a latent cache already: go on with it by --resume, or choose another directory.")
        clean_up(out)
        return read_cache(out)
    # What may lie there when a process was killed before it wrote the manifest.
    first_files = {Path(name).stem for name in (COMPRESSOR, IMAGES_FILE, PROJECTION, MANIFEST)} if resume else set()
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
        "settings": settings.to_dict(),
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
    clean_up(cache.root)
    write_compressor(cache.compressor_preset, compressor)
    write_images(cache.root / IMAGES_FILE, cache.splits)
    cache.manifest["data"]["photos_sha256"] = file_sha256(cache.root / IMAGES_FILE)
    if targets is not None:
        write_bytes(cache.root / PROJECTION, targets.projection.to_bytes())
    write_json(cache.root / MANIFEST, cache.manifest)


def _write_shard(cache, shard, batches, progress):
    """Writes the files of one shard from the next batches, then lists them in the manifest."""
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
    write_json(cache.root / MANIFEST, cache.manifest)
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


# Images that a teacher is asked about at a time, by several threads: EfficientNet-Lite2 answers fastest so.
_TEACHER_BATCH = 16


class LatentEncoder:
    """Decodes and augments images in parallel, ahead of the compressor.

    Args:
        transform: `AnalysisTransform`.
        settings: `LatentCacheConfig`.
        num_threads: Threads that decode and augment; None for one per CPU of this process.
        targets: `TeacherTargets`, or None.
    """

    def __init__(self, transform, settings, num_threads=None, targets=None):
        # Called in this way, it is compiled on the backends that compile.
        images = keras.Input((*settings.image_size, 3), dtype="uint8", name="images")
        self._model = keras.Model(images, transform(images))
        self._settings = settings
        self._targets = targets
        self._threads = num_threads or num_cpus()
        self.transform = transform
        self.latent_shape = self._model.output_shape[1:]
        if transform.is_randomly_initialized:
            warnings.warn("The latents are made with a compressor of random weights.", stacklevel=3)

    def encode(self, photos, split, numbers, views=None):
        """Yields the latents of images, all views of one after the other, in batches.

        Args:
            photos: `ImageManifest` of the split.
            split: "train" for the augmented views, "val" for the central crop.
            numbers: Which of the photos.
            views: Numbers of the training views, a range; None for those of the settings.

        Yields:
            `(latents, targets)`: float32 `(batch, height / 16, width / 16, channels)`, as many in all batches but the
            last; `TeacherTargets.stored` of the same views, None without a teacher and for validation.
        """
        views = range(self._settings.views) if views is None else views
        views = views if split == "train" else range(1)
        teaches = self._targets is not None and split == "train"
        teacher_size = self._targets.teacher.image_size if teaches else None
        # Always of one shape: compiled once, and the same arithmetic.
        size = replace(self._settings, views=len(views) if split == "train" else self._settings.views).batch_images
        with ThreadPoolExecutor(self._threads) as pool:
            for images, teacher_images in self._batches(photos, split, numbers, views, size, teacher_size):
                parts = range(0, len(images) if teaches else 0, _TEACHER_BATCH)
                # Meanwhile the compressor is at work.
                targets = [pool.submit(self._targets.stored, teacher_images[i : i + _TEACHER_BATCH]) for i in parts]
                filled = np.zeros((size, *images.shape[1:]), "uint8")
                filled[: len(images)] = images
                latents = self._model.predict_on_batch(filled)[: len(images)].astype("float32")
                yield latents, _joined([part.result() for part in targets]) if teaches else None

    def teacher_views(self, photos, numbers):
        """Yields the teacher's views of training images, uint8 batches: what `encode` shows it."""
        views = range(self._settings.views)
        size = self._targets.teacher.image_size
        for _, images in self._batches(photos, "train", numbers, views, len(views), size):
            yield images

    def _batches(self, photos, split, numbers, views, size, teacher_size):
        """Yields `(images, teacher's images or None)`, loaded ahead by several threads."""
        grain = require("grain", extra="train")
        load = _Views(photos, split, self._settings, views, teacher_size)
        batches = grain.MapDataset.source(numbers).map(load).batch(size // len(views), batch_fn=_concatenate)
        return batches.to_iter_dataset(grain.ReadOptions(self._threads, 2 * self._threads))


def _joined(parts):
    """`TeacherTargets.stored` of a batch from those of its parts."""
    logits, features = zip(*parts, strict=True)
    return np.concatenate(logits), [np.concatenate(maps) for maps in zip(*features, strict=True)]


def _concatenate(elements):
    images, teacher_images = zip(*elements, strict=True)
    return np.concatenate(images), None if teacher_images[0] is None else np.concatenate(teacher_images)


class _Views:
    """Number of an image to its views, uint8 `(views, height, width, 3)`, and the same views in the teacher's size."""

    def __init__(self, photos, split, settings, views, teacher_size):
        self._photos = photos
        self._settings = settings
        self._is_training = split == "train"
        self._views = views
        self._teacher_size = teacher_size

    def __call__(self, number):
        try:
            photo = self._photos.open(number)
        except OSError as error:
            file = self._photos.files[number]
            raise DataError(f"{file} can no longer be read ({error}). Begin a new cache without it.") from error
        s = self._settings
        if not self._is_training:
            return center_crop(photo, s.image_size)[None], None
        # Of nothing else than these three, so that it does not matter what is made together or again.
        views = [self._view(photo, np.random.default_rng((s.seed, number, view))) for view in self._views]
        images, teacher_images = zip(*views, strict=True)
        return np.stack(images), None if self._teacher_size is None else np.stack(teacher_images)

    def _view(self, photo, rng):
        """The view, and the same cut from the image in the teacher's size; not enlarged from the smaller one."""
        s = self._settings
        params = sample_params(s.augmentation, (photo.height, photo.width), s.image_size, rng)
        image = apply_params(photo, params, s.image_size, rng)
        if self._teacher_size is None:
            return image, None
        params = params.scaled(s.image_size, self._teacher_size)
        return image, apply_params(photo, params, self._teacher_size, rng)


_ANALYSIS = keras.saving.get_registered_name(AnalysisTransform)


def analysis_of(compressor):
    """The `AnalysisTransform` of a `Compressor`; one that is given as it is."""
    return compressor.analysis if isinstance(compressor, Compressor) else compressor


def write_compressor(directory, compressor):
    """Writes a `Compressor`, or an `AnalysisTransform` where there is no more, as a preset."""
    if isinstance(compressor, Compressor):
        compressor.save_to_preset(directory)
        return
    config = {"registered_name": _ANALYSIS, "config": compressor_config(compressor)}
    save_preset(directory, config, None, {WEIGHTS: _as_model(compressor).save_weights}, metadata={})


def cached_compressor(cache):
    """The compressor that made a latent cache, as `CI2PViT(compressor=...)` takes it.

    Args:
        cache: `keras_ci2p.data.LatentCache`.

    Returns:
        `Compressor`, or `AnalysisTransform` where only that was known.

    Raises:
        keras_ci2p.presets.PresetError: It is missing or damaged.
        DataError: It is not the one that made the latents.
    """
    preset = open_preset(cache.compressor_preset)
    if preset.registered_name() == _ANALYSIS:
        compressor = AnalysisTransform(**preset.config(_ANALYSIS, "an AnalysisTransform"))
        model = _as_model(compressor)
        with preset.reading(WEIGHTS) as path:
            model.load_weights(path)
    else:
        compressor = Compressor.from_preset(preset)
    cache.check_compressor(analysis_of(compressor))
    return compressor


def _as_model(transform):
    """Layers have no weight files of their own."""
    images = keras.Input((None, None, 3), name="images")
    return keras.Model(images, transform(images))
