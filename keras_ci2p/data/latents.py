"""Stored latents as batches for `fit`."""

from keras_ci2p.data.folder import DataError
from keras_ci2p.data.latent_cache import LatentCache, open_cache
from keras_ci2p.extras import require


def latent_folder(
    cache,
    *,
    batch_size=32,
    split="train",
    seed=0,
    views="all",
    mixup=0.0,
    cutmix=0.0,
    mix_probability=1.0,
    temperature=None,
    num_threads=None,
    num_workers=0,
    shard=(0, 1),
):
    """The latents of a cache as batches for `CI2PViT.latent_classifier`, the counterpart of `image_folder`.

    Each epoch of the training split holds every photo once, in a new order, each time another one of its views; the
    validation split holds the central crops in order. What is left out here is as in `image_folder`.

    Args:
        cache: `LatentCache`, or its directory.
        batch_size: Latents in a batch.
        split: "train" or "val".
        seed: Of the order and the views, an integer in 0..2**32-1.
        views: How many of the stored views of each photo to use, or "all".
        mixup, cutmix, mix_probability: As in `image_folder`, on latents.
        temperature: To learn from the teacher whose targets the cache holds: what its logits are divided by. The labels
            of the training split then are a dict: `labels`, `teacher` (its probabilities at that temperature) and
            `features_0`, ... (its projected feature maps), as `keras_ci2p.training.DistilledClassifier` takes them.
            None for the labels alone.
        num_threads, num_workers, shard: As in `image_folder`.

    Returns:
        A grain `IterDataset` of `(latents, labels)`: float32 `(batch, height / 16, width / 16, channels)` and float32
        `(batch, classes)`. It has `cache`, `class_names`, `manifest`, `steps_per_epoch`, `epoch` and
        `repeated(initial_epoch)`.

    Raises:
        DataError: No cache, one that is unfinished or damaged; a wrong split, batch size or number of views.
        ImportError: grain is not installed.
    """
    require("grain", extra="train")
    from keras_ci2p.data.latent_examples import LatentDataset
    from keras_ci2p.data.mix_batches import MixBatches

    cache = cache if isinstance(cache, LatentCache) else open_cache(cache)
    manifest = cache.split(split)
    if batch_size < 1:
        raise DataError(f"`batch_size` must be positive. Received: batch_size={batch_size}")
    is_training = split == "train"
    stored = cache.views(split)
    used = stored if views == "all" or not is_training else views
    if used not in range(1, stored + 1):
        raise DataError(f'`views` must be "all" or in 1..{stored}, the views in the cache. Received: views={views!r}')
    if temperature is not None and cache.teacher is None:
        raise DataError(
            f"The latent cache {cache.root} holds no targets of a teacher. Make a new one: keras-ci2p cache DATA OUT "
            "--teacher T"
        )
    return LatentDataset(
        cache,
        split,
        views=used,
        seed=seed,
        temperature=temperature if is_training else None,
        mix=MixBatches(mixup, cutmix, mix_probability) if is_training and (mixup or cutmix) else None,
        batch_size=batch_size,
        shuffle=is_training,
        drop_remainder=is_training,
        num_threads=num_threads,
        num_workers=num_workers,
        shard=shard,
        manifest=manifest,
        class_names=manifest.class_names,
    )
