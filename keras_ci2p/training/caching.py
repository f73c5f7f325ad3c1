"""Runs a compressor once over the views of each photo and stores the latents."""

import shutil
import tempfile
import time
import warnings
from pathlib import Path

import keras

from keras_ci2p import files
from keras_ci2p.data import DataError
from keras_ci2p.data.latent_cache import (
    COMPRESSOR,
    FORMAT_VERSION,
    MANIFEST,
    PHOTOS,
    SPLITS,
    LatentCache,
    fingerprint,
    is_latent_cache,
    open_cache,
    read_cache,
    write_photos,
)
from keras_ci2p.data.latent_storage import ARRAY_RECORD, record_file
from keras_ci2p.data.source import open_data
from keras_ci2p.extras import require
from keras_ci2p.layers.ci2p_patch_embedding import compressor_config
from keras_ci2p.training.backend import environment
from keras_ci2p.training.cache_settings import CacheSettings
from keras_ci2p.training.cached_compressor import analysis_of, write_compressor
from keras_ci2p.training.latent_encoder import LatentEncoder


def cache_latents(photos, out, compressor, settings=None, resume=False, num_threads=None, verbose=1):
    """Stores the latents of some views of each training photo, and of the central crop of each validation photo.

    A view depends only on the seed, the photo, its place in the training split and the number of the view. Whatever
    ends the process, `resume=True` keeps the whole shards and makes the others, and the result is that of an
    uninterrupted run: bit for bit on JAX and on torch with one thread; on TensorFlow up to rounding errors, by which a
    value halfway between two integers may be rounded to the other one.

    Args:
        photos: `ImageManifest` of all photos, or what `keras_ci2p.data.open_data` takes.
        out: Directory of the cache.
        compressor: `Compressor` or `AnalysisTransform`; it is stored with the latents.
        settings: `CacheSettings`; None for its defaults.
        resume: Whether to go on with the cache in `out`, else it must be new.
        num_threads: Threads that decode and augment; None for one per core.
        verbose: 0 for silence, 1 for a progress bar, 2 for one line per shard.

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
    settings = settings or CacheSettings()
    out = Path(out)
    previous = _previous(out, resume)
    photos = open_data(photos)
    splits = {split: photos.split(split) for split in SPLITS}
    encoder = LatentEncoder(analysis_of(compressor), settings, num_threads)
    cache = LatentCache(out, _manifest(photos, splits, encoder, settings), splits)
    if previous is not None:
        _check_same(previous, cache)
        cache = LatentCache(out, previous.manifest, splits)
    to_make = {split: list(_to_make(cache, split)) for split in SPLITS}
    total = sum(shard["records"] for shards in to_make.values() for shard, _ in shards)
    if total:
        _check_space(cache, encoder, total, verbose)
    if previous is None:
        _begin(cache, compressor)
    progress = _Progress(total, verbose)
    for split, shards in to_make.items():
        numbers = [number for _, photo_numbers in shards for number in photo_numbers]
        latents = encoder.latents(splits[split], split, numbers) if numbers else None
        for shard, _ in shards:
            _write_shard(cache, shard, latents, progress)
    return open_cache(out)


def _previous(out, resume):
    """The cache to go on with, None for a new one."""
    if is_latent_cache(out):
        if not resume:
            raise DataError(f"{out} is a latent cache already: go on with it by --resume, or choose another directory.")
        files.clean_up(out)
        return read_cache(out)
    # What may lie there when a process was killed before it wrote the manifest.
    first_files = {Path(name).stem for name in (COMPRESSOR, PHOTOS, MANIFEST)} if resume else set()
    if out.exists() and (not out.is_dir() or any(path.name.split(".")[0] not in first_files for path in out.iterdir())):
        raise DataError(f"{out} exists and is no latent cache; choose another directory.")
    return None


def _manifest(photos, splits, encoder, settings):
    """What is known before the first latent is made."""
    shards = {}
    for split, manifest in splits.items():
        total = len(manifest) * (settings.views if split == "train" else 1)
        step = settings.records_per_shard(total)
        shards[split] = [
            {"file": f"{split}-{first // step:05d}.arrayrecord", "records": min(step, total - first)}
            for first in range(0, total, step)
        ]
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
    }


def _check_same(previous, now):
    """Raises DataError, saying what differs, unless a cache can be gone on with; warns of another backend."""
    before, after = previous.manifest, now.manifest
    different = [
        f"{name} {old}, now {new}"
        for name, old, new in (
            *_settings(before["settings"], after["settings"]),
            ("compressor", previous.fingerprint, now.fingerprint),
            ("photos with SHA-256", previous.sha256, now.sha256),
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


def _to_make(cache, split):
    """Yields each shard that is not there with the numbers of its photos."""
    views, first = cache.views(split), 0
    for shard in cache.shards(split):
        end = first + shard["records"]
        if not cache.is_made(shard):
            yield shard, range(first // views, end // views)
        first = end


def _check_space(cache, encoder, total, verbose):
    """Raises OSError unless there is room for `total` more latents, judged by one batch."""
    photos = cache.split("train")
    batch = next(encoder.latents(photos, "train", range(min(encoder.photos_per_batch, len(photos)))))
    with tempfile.TemporaryDirectory() as directory:
        trial = Path(directory, "trial.arrayrecord")
        with record_file(trial, cache.store) as append:
            append(batch)
        needed = trial.stat().st_size / len(batch) * total
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


def _begin(cache, compressor):
    """Writes all but the latents; the manifest last, since it makes the directory a cache."""
    cache.root.mkdir(parents=True, exist_ok=True)
    files.clean_up(cache.root)
    write_compressor(cache.compressor_preset, compressor)
    write_photos(cache.root / PHOTOS, cache.splits)
    cache.manifest["data"]["photos_sha256"] = files.sha256(cache.root / PHOTOS)
    files.write_json(cache.root / MANIFEST, cache.manifest)


def _write_shard(cache, shard, batches, progress):
    """Writes one file from the next batches, then lists it in the manifest."""
    path = cache.root / shard["file"]
    with files.atomic_file(path) as temporary:
        with record_file(temporary, cache.store) as append:
            written = 0
            while written < shard["records"]:
                batch = next(batches)
                append(batch)
                written += len(batch)
                progress.add(len(batch))
        made = {"bytes": temporary.stat().st_size, "sha256": files.sha256(temporary)}
    shard.update(made)
    files.write_json(cache.root / MANIFEST, cache.manifest)
    progress.line(f"{path} is written")


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
