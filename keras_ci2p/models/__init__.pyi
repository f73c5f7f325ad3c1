# Written by tools/stubs.py: what type checkers see of what __init__.py imports when it is used.

from keras_ci2p.models.ci2p_vit import CI2PViT as CI2PViT
from keras_ci2p.models.ci2p_vit import CI2PViTBackbone as CI2PViTBackbone
from keras_ci2p.models.ci2p_vit import CI2PViTDualScale as CI2PViTDualScale
from keras_ci2p.models.ci2p_vit import CI2PViTDualScaleBackbone as CI2PViTDualScaleBackbone
from keras_ci2p.models.ci2p_vit import CLASSIFIERS as CLASSIFIERS
from keras_ci2p.models.ci2p_vit import ViT as ViT
from keras_ci2p.models.ci2p_vit import ViTBackbone as ViTBackbone
from keras_ci2p.models.ci2p_vit import load_preset as load_preset
from keras_ci2p.models.compressor import Compressor as Compressor
from keras_ci2p.names import DUAL_SCALE_VARIANTS as DUAL_SCALE_VARIANTS
from keras_ci2p.names import VARIANTS as VARIANTS
