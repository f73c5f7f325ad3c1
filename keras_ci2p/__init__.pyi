# Written by tools/stubs.py: what type checkers see of what __init__.py imports when it is used.

from keras_ci2p import codec as codec
from keras_ci2p import compare as compare
from keras_ci2p import convert as convert
from keras_ci2p import data as data
from keras_ci2p import export as export
from keras_ci2p import flops as flops
from keras_ci2p import hub as hub
from keras_ci2p import layers as layers
from keras_ci2p import models as models
from keras_ci2p import presets as presets
from keras_ci2p import training as training
from keras_ci2p.flops import count_macs as count_macs
from keras_ci2p.models import CI2PViT as CI2PViT
from keras_ci2p.models import CI2PViTBackbone as CI2PViTBackbone
from keras_ci2p.models import CI2PViTDualScale as CI2PViTDualScale
from keras_ci2p.models import CI2PViTDualScaleBackbone as CI2PViTDualScaleBackbone
from keras_ci2p.models import Compressor as Compressor
from keras_ci2p.models import ViT as ViT
from keras_ci2p.models import ViTBackbone as ViTBackbone
from keras_ci2p.models import load_preset as load_preset
from keras_ci2p.presets import list_presets as list_presets
from keras_ci2p.version import __version__ as __version__

def check_backend() -> None: ...
