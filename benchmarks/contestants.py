"""What the benchmarks measure: our models on Keras's backend, timm's ViT and a hand-written CI2P-ViT on PyTorch.

A contestant has `parameters`, `macs` (a `keras_ci2p.MacCount`, None for others' models), `train` and `predict`.
"""

import keras
import numpy as np
from common import Stopwatch, clock

from keras_ci2p import CI2PViT, CI2PViTDualScale, Compressor, ViT, count_macs
from keras_ci2p.flops import count_parameters
from keras_ci2p.training.optim import FusedAdamW

CLASSES = 10
# Of a rate at which nothing is learned, so that rounds are alike.
LEARNING_RATE = 1e-7
WEIGHT_DECAY = 0.05

# In place of the variants' where only the running is tested.
SMALL = {"hidden_dim": 32, "num_layers": 2, "num_heads": 2, "mlp_dim": 64}
SMALL_COMPRESSOR = (8, 32)

OURS = {
    "CI2P-ViT base": (CI2PViT, "base"),
    "CI2P-ViT tiny": (CI2PViT, "tiny"),
    "CI2P-ViT-ds base": (CI2PViTDualScale, "base"),
    "ViT-B/16": (ViT, "base"),
}
BASELINE = "ViT-B/16"
# Only on torch.
OTHERS = ("timm ViT-B/16", "plain PyTorch CI2P-ViT", "plain PyTorch, channels last")


def names():
    """Names of the contestants on this backend."""
    return [*OURS, *OTHERS] if keras.backend.backend() == "torch" else list(OURS)


def make(name, image_size, dtype="float32", compiled=False, small=False):
    """A contestant by name.

    Args:
        name: One of `names()`.
        image_size: Height and width in pixels.
        dtype: Keras dtype policy; "mixed_bfloat16" is autocast elsewhere.
        compiled: Whether to compile on torch, where Keras does not by itself.
        small: Whether to take a tiny model in its place.
    """
    if name in OURS:
        return KerasContestant(*OURS[name], image_size, dtype, compiled, small)
    import torch

    module = timm_vit(image_size, small) if name.startswith("timm") else plain_ci2p_vit(small)
    layout = torch.channels_last if name.endswith("channels last") else torch.contiguous_format
    return TorchContestant(module, layout, dtype, compiled)


def batch(image_size, batch_size, seed=0):
    """`(images, labels)`: float32 `(batch, height, width, 3)` in 0..255, and one-hot."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch_size, image_size, image_size, 3)).astype("float32")
    return images, np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, batch_size)]


class KerasContestant:
    """One of our models through `fit` and `predict_on_batch`."""

    def __init__(self, model_class, variant, image_size, dtype, compiled, small):
        sizes = dict(SMALL) if small else {}
        if model_class is not ViT:
            sizes["compressor"] = Compressor(quality=None, channels=SMALL_COMPRESSOR) if small else None
        if small and model_class is CI2PViTDualScale:
            sizes.update(early_dim=16, merge_at=1)
        shape = (image_size, image_size, 3)
        self.model = model_class(shape, CLASSES, variant=variant, dtype=dtype, **sizes)
        self.jit_compile = True if compiled and keras.backend.backend() == "torch" else "auto"
        self.compile()
        self.parameters = count_parameters(self.model)
        self.macs = count_macs(self.model)

    def compile(self, optimizer=FusedAdamW, freeze_compressor=True):
        """Anew, with another maker of optimizers or gradients of the compressor."""
        if not freeze_compressor:
            self.model.freeze_compressor = False
        self.model.compile(
            optimizer(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
            keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
            jit_compile=self.jit_compile,
        )

    def train(self, images, labels, steps, untimed=0):
        """Seconds of so many steps, until the loss of the last is known, after `untimed` others."""
        clock = Stopwatch(untimed)
        count = untimed + steps
        batches = ((images, labels) for _ in range(count))
        self.model.fit(batches, steps_per_epoch=count, shuffle=False, verbose=0, callbacks=[clock])
        return clock.seconds

    def predict(self, images):
        """Logits as a NumPy array."""
        return self.model.predict_on_batch(images)

    def weights_bytes(self):
        """Of all weights."""
        return _bytes(self.model.variables)

    def training_bytes(self):
        """Of gradients and optimizer state."""
        return _bytes(self.model.trainable_variables) + _bytes(self.model.optimizer.variables)


def _bytes(variables):
    return sum(int(np.prod(v.shape)) * np.dtype(v.dtype).itemsize for v in variables)


class TorchContestant:
    """A PyTorch module, images `(batch, 3, height, width)` to logits, in a loop of its own."""

    macs = None

    def __init__(self, module, layout, dtype, compiled):
        import torch

        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._layout = layout
        self._is_mixed = dtype == "mixed_bfloat16"
        self._module = module.to(self._device, memory_format=layout)
        self._call = torch.compile(self._module) if compiled else self._module
        self._trained = [p for p in module.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.parameters = sum(p.numel() for p in module.parameters())

    def _tensor(self, images):
        images = self._torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2)
        return images.contiguous(memory_format=self._layout)

    def _autocast(self):
        return self._torch.autocast(self._device.type, self._torch.bfloat16, enabled=self._is_mixed)

    def train(self, images, labels, steps, untimed=0):
        torch = self._torch
        self._module.train()
        loss_function = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
        for step in range(untimed + steps):
            if step == untimed:
                began = clock()
            with self._autocast():
                logits = self._call(self._tensor(images))
            loss = loss_function(logits.float(), torch.from_numpy(labels).to(self._device))
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            if step + 1 == untimed:
                loss.item()
        loss.item()
        return clock() - began

    def predict(self, images):
        self._module.eval()
        with self._torch.inference_mode(), self._autocast():
            return self._call(self._tensor(images)).float().cpu().numpy()

    def weights_bytes(self):
        return sum(x.nbytes for x in [*self._module.parameters(), *self._module.buffers()])

    def training_bytes(self):
        state = [x for row in self._optimizer.state.values() for x in row.values()]
        return sum(x.nbytes for x in [*self._trained, *state])


def timm_vit(image_size, small):
    import torch
    from input_one_core import define_torchvision_operators

    define_torchvision_operators(torch)
    import timm

    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2} if small else {}
    return timm.create_model(
        "vit_base_patch16_224",
        img_size=image_size,
        class_token=False,
        global_pool="avg",
        num_classes=CLASSES,
        drop_path_rate=0.1,
        **sizes,
    )


def plain_ci2p_vit(small):
    from plain_torch import CI2PViT

    sizes = {**SMALL, "compressor_channels": SMALL_COMPRESSOR} if small else {}
    return CI2PViT(CLASSES, **sizes)
