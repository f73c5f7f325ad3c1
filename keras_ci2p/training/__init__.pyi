# Written by tools/stubs.py: what type checkers see of what __init__.py imports when it is used.

from keras_ci2p.backend import keep_compiled_code as keep_compiled_code
from keras_ci2p.backend import keep_freed_memory as keep_freed_memory
from keras_ci2p.models.augmented_classifier import AugmentedClassifier as AugmentedClassifier
from keras_ci2p.training.cache_latents import cache_latents as cache_latents
from keras_ci2p.training.configs import CompressorTrainConfig as CompressorTrainConfig
from keras_ci2p.training.configs import TrainConfig as TrainConfig
from keras_ci2p.training.distillation import DistilledClassifier as DistilledClassifier
from keras_ci2p.training.distillation import load_teacher as load_teacher
from keras_ci2p.training.efficientnet import make_teacher as make_teacher
from keras_ci2p.training.evaluation import evaluate as evaluate
from keras_ci2p.training.evaluation import evaluate_compressor as evaluate_compressor
from keras_ci2p.training.latents import FileReader as FileReader
from keras_ci2p.training.optim import FusedAdamW as FusedAdamW
from keras_ci2p.training.publish import PublishError as PublishError
from keras_ci2p.training.publish import publish as publish
from keras_ci2p.training.recipes import LatentCacheConfig as LatentCacheConfig
from keras_ci2p.training.recipes import RECIPES as RECIPES
from keras_ci2p.training.recipes import Recipe as Recipe
from keras_ci2p.training.recipes import read_recipe as read_recipe
from keras_ci2p.training.run_dir import RunError as RunError
from keras_ci2p.training.teacher import Teacher as Teacher
from keras_ci2p.training.teacher import TeacherError as TeacherError
from keras_ci2p.training.teacher import open_teacher as open_teacher
from keras_ci2p.training.train import train as train
from keras_ci2p.training.train_compressor import train_compressor as train_compressor
