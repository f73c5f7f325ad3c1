"""Training runs that can be interrupted, and their evaluation."""

from keras_ci2p.training.allocator import keep_freed_memory
from keras_ci2p.training.augmented_model import AugmentedClassifier
from keras_ci2p.training.cache_settings import CacheSettings
from keras_ci2p.training.caching import cache_latents
from keras_ci2p.training.compression import CompressorSettings, evaluate_compressor, train_compressor
from keras_ci2p.training.distillation import DistilledClassifier
from keras_ci2p.training.efficientnet import make_teacher
from keras_ci2p.training.evaluation import evaluate
from keras_ci2p.training.fused_adamw import FusedAdamW
from keras_ci2p.training.publishing import PublishError, publish
from keras_ci2p.training.recipe import RECIPES, Recipe, read_recipe
from keras_ci2p.training.recorder import RunError
from keras_ci2p.training.run import train
from keras_ci2p.training.settings import TrainSettings
from keras_ci2p.training.teacher import Teacher, TeacherError, open_teacher
from keras_ci2p.training.teacher_targets import load_teacher

__all__ = [
    "RECIPES",
    "AugmentedClassifier",
    "CacheSettings",
    "CompressorSettings",
    "DistilledClassifier",
    "FusedAdamW",
    "PublishError",
    "Recipe",
    "RunError",
    "Teacher",
    "TeacherError",
    "TrainSettings",
    "cache_latents",
    "evaluate",
    "evaluate_compressor",
    "keep_freed_memory",
    "load_teacher",
    "make_teacher",
    "open_teacher",
    "publish",
    "read_recipe",
    "train",
    "train_compressor",
]
