"""Training runs that can be interrupted, and their evaluation."""

from keras_ci2p.names import lazy_imports

__all__, __getattr__, __dir__ = lazy_imports(
    __name__,
    {
        ".backend": ["keep_compiled_code", "keep_freed_memory"],
        ".models.augmented_classifier": ["AugmentedClassifier"],
        "cache_latents": ["cache_latents"],
        "configs": ["CompressorTrainConfig", "TrainConfig"],
        "distillation": ["DistilledClassifier", "load_teacher"],
        "efficientnet": ["make_teacher"],
        "evaluation": ["evaluate", "evaluate_compressor"],
        "latents": ["FileReader"],
        "optim": ["FusedAdamW"],
        "publish": ["PublishError", "publish"],
        "recipes": ["RECIPES", "LatentCacheConfig", "Recipe", "read_recipe"],
        "run_dir": ["RunError"],
        "teacher": ["Teacher", "TeacherError", "open_teacher"],
        "train": ["train"],
        "train_compressor": ["train_compressor"],
    },
    renamed={
        "CacheSettings": "LatentCacheConfig",
        "CompressorSettings": "CompressorTrainConfig",
        "TrainSettings": "TrainConfig",
    },
)
