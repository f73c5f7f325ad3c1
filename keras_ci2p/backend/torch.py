"""PyTorch's own kernels, and its processes under torchrun."""

import contextlib
import os

import keras

from keras_ci2p.backend.common import Devices, batch_normalizations, random_states

if keras.backend.backend() == "torch":
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from torch.nn.utils import parameters_to_vector, vector_to_parameters


def on_torch():
    """Whether Keras computes with PyTorch."""
    return keras.backend.backend() == "torch"


def linear(inputs, kernel, bias=None):
    """Product along the last axis. Keras adds the bias in a pass of its own.

    Args:
        inputs: torch tensor `(..., channels)`.
        kernel: `(channels, units)`, of the same dtype.
        bias: `(units,)`, or None.
    """
    return torch.nn.functional.linear(inputs, kernel.T, bias)


def conv2d(inputs, kernel, bias, strides, padding, dilation):
    """Convolution of images, channels last. Keras copies them to channels first and back.

    Args:
        inputs: torch tensor `(batch, height, width, channels)`.
        kernel: `(rows, columns, channels / groups, filters)`, of the same dtype.
        bias: `(filters,)`, or None.
        strides, padding, dilation: `(rows, columns)`; the zeros of the padding are on both sides.
    """
    # A view: PyTorch's memory format channels_last.
    images = inputs.permute(0, 3, 1, 2)
    kernel = kernel.permute(3, 2, 0, 1)
    groups = images.shape[1] // kernel.shape[1]
    outputs = torch.nn.functional.conv2d(images, kernel, bias, strides, padding, dilation, groups)
    return outputs.permute(0, 2, 3, 1)


def batch_norm(inputs, scale, offset, epsilon):
    """Normalises each channel by the statistics of the batch.

    Args:
        inputs: torch tensor `(batch, ..., channels)`, float32 or float64.
        scale, offset: torch tensors `(channels,)`, or None.
        epsilon: Added to the variance.

    Returns:
        The normalised tensor, and the channels' means and (biased) variances, which have no gradients.
    """
    channels = inputs.shape[-1]
    # An image in memory format channels_last, for which the kernel is fast.
    image = inputs.reshape(1, -1, 1, channels).permute(0, 3, 1, 2)
    outputs, mean, inverse_deviation = torch.native_batch_norm(image, scale, offset, None, None, True, 0.0, epsilon)
    variance = (inverse_deviation.square().reciprocal() - epsilon).clamp(min=0)
    return outputs.permute(0, 2, 3, 1).reshape(inputs.shape), mean, variance


# Up to so many tokens PyTorch's fused attention gains nothing on a CPU; with products in bfloat16 it takes a hundred
# times as long, since it prepares each of its many small products anew.
SHORT = 64


def is_short(query):
    """Whether `short_attention` is for such a query: float32, on a CPU, of few tokens."""
    return query.dtype == torch.float32 and query.device.type == "cpu" and query.shape[1] <= SHORT


def short_attention(query, key, value):
    """`softmax(query key^T / sqrt(head_dim)) value`, each `(batch, tokens, heads, head_dim)`, by plain products."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    weights = torch.softmax(torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2)), -1)
    return torch.matmul(weights, value).transpose(1, 2)


def open_torch(wanted):
    """`open_devices` on torch."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if wanted is None and started > 1:
        raise ValueError(f"torchrun has started {started} processes: train with devices='all'.")
    if wanted is None:
        return Devices()
    on_gpu = _keras_uses_cuda()
    here = torch.cuda.device_count() if on_gpu else 1
    if started == 1:
        number = here if wanted == "all" else wanted
        if number == 1:
            return Devices()
        if on_gpu and number > here:
            raise ValueError(f"There are {here} GPUs, not {number}. Train on at most {here}, or on 'all'.")
        raise ValueError(
            f"torch trains on {number} devices in as many processes, which torchrun starts: "
            f"torchrun --nproc_per_node={number} -m keras_ci2p train ... --devices all"
        )
    if wanted not in ("all", started):
        raise ValueError(f"torchrun has started {started} processes. Received: devices={wanted}")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if on_gpu and local_rank >= here:
        raise ValueError(f"torchrun has started more processes than there are GPUs: --nproc_per_node={here}.")
    return TorchDevices(f"cuda:{local_rank}" if on_gpu else "cpu")


class TorchDevices(Devices):
    """The devices of all processes that `torchrun` has started; this process has one of them."""

    def __init__(self, device):
        self._device = device
        if device != "cpu":
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("gloo" if device == "cpu" else "nccl")
        self.count = dist.get_world_size()
        self.shard = (dist.get_rank(), self.count)
        self.num_threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        self._models = []

    @contextlib.contextmanager
    def scope(self):
        with keras.device(self._device):
            yield
        # Not after an error: the other processes are elsewhere, and end with this one.
        for model in self._models:
            vars(model).pop("train_step", None)
        dist.destroy_process_group()

    def prepare(self, model):
        """Gives the model a `train_step` that averages over the processes; all weights become those of the first.

        The loss must be a mean over the batch, as Keras's losses are.
        """
        parallel = DistributedDataParallel(model)
        for state in random_states(model):
            state.assign(state + keras.ops.convert_to_tensor([self.shard[0], 0], state.dtype))
        statistics = [
            variable.value
            for layer in batch_normalizations(model)
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        loss_tracker = next(metric for metric in model.metrics if metric.name == "loss")

        # As in keras/src/backend/torch/trainer.py, but for the two calls that the processes make together.
        def train_step(data):
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            y_pred = parallel(x, training=True)
            model.zero_grad()
            loss = model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
            loss_tracker.update_state(loss, sample_weight=len(keras.tree.flatten(x)[0]))
            model.optimizer.scale_loss(loss).backward()
            weights = model.trainable_weights
            with torch.no_grad():
                model.optimizer.apply([weight.value.grad for weight in weights], weights)
                self._average(statistics)
            return model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

        # A closure, since the wrapper holds the model: as an attribute it would be tracked as one of its layers.
        model.train_step = train_step
        self._models.append(model)

    def mean(self, logs):
        values = torch.tensor(list(logs.values()), dtype=torch.float32, device=self._device)
        dist.all_reduce(values)
        return dict(zip(logs, (values / self.count).tolist(), strict=True))

    def _average(self, tensors):
        if tensors:
            vector = parameters_to_vector(tensors)
            dist.all_reduce(vector)
            vector_to_parameters(vector / self.count, tensors)

    def _gather(self, digest):
        digests = [None] * self.count
        dist.all_gather_object(digests, digest)
        return digests


def _keras_uses_cuda():
    return torch.cuda.is_available() and os.environ.get("KERAS_TORCH_DEVICE", "cuda").startswith(("cuda", "gpu"))
