"""PyTorch: its own kernels where Keras composes them or copies images, settings, and processes under torchrun."""

import collections
import contextlib
import functools
import os

import keras
import torch
import torch.distributed as dist
from keras import ops
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from keras_ci2p.backend import common
from keras_ci2p.backend.common import Devices, batch_normalizations, random_states
from keras_ci2p.utils import num_cpus

# === Kernels ===


def _tensor(value):
    return None if value is None else ops.convert_to_tensor(value)


def eager(kernel):
    """A kernel of PyTorch's own that is left to Keras where PyTorch traces it, for `torch.compile` or as TorchScript.

    The compiler does away with copies by itself, and PyTorch 2.13's fails on views of images of symbolic size that are
    kept for the gradient. In TorchScript, by which Keras writes ONNX, sizes are computed, but padding must be constant.
    """

    @functools.wraps(kernel)
    def eager_kernel(*args, **kwargs):
        if torch.compiler.is_dynamo_compiling() or torch.jit.is_tracing():
            return getattr(common, kernel.__name__)(*args, **kwargs)
        return kernel(*args, **kwargs)

    return eager_kernel


def linear(inputs, kernel, bias=None):
    """`common.linear`, where Keras adds the bias in a pass of its own."""
    kernel = _tensor(kernel)
    if inputs.dtype != kernel.dtype:
        return common.linear(inputs, kernel, bias)
    return torch.nn.functional.linear(inputs, kernel.T, _tensor(bias))


def pointwise_conv2d(inputs, kernel):
    """`common.pointwise_conv2d`, as a product."""
    return torch.nn.functional.linear(inputs, _tensor(kernel)[0, 0].T)


@eager
def conv2d(inputs, kernel, bias, strides, dilation):
    """`common.conv2d`, where Keras copies the images to channels first and back."""
    # A view: PyTorch's memory format channels_last.
    images = inputs.permute(0, 3, 1, 2)
    kernel = _tensor(kernel).permute(3, 2, 0, 1)
    padding = [rate * (size // 2) for rate, size in zip(dilation, kernel.shape[2:], strict=True)]
    groups = images.shape[1] // kernel.shape[1]
    outputs = torch.nn.functional.conv2d(images, kernel, _tensor(bias), strides, padding, dilation, groups)
    return outputs.permute(0, 2, 3, 1)


@eager
def depthwise_conv2d(inputs, kernel, bias, strides, dilation):
    """`common.depthwise_conv2d`, as `conv2d` in as many groups as there are channels."""
    rows, columns, channels, multiplier = kernel.shape
    kernel = _tensor(kernel).reshape(rows, columns, 1, channels * multiplier)
    return conv2d(inputs, kernel, bias, strides, dilation)


@eager
def batch_norm(inputs, scale, offset, epsilon, synchronized=False):
    """`common.batch_norm`, which keeps two copies of the input for the gradient, by a kernel that keeps one.

    `torch.native_batch_norm`, checked on PyTorch 2.13. Means and variances have no gradients; PyTorch's devices are
    synchronised by `TorchDevices`.
    """
    channels = inputs.shape[-1]
    # An image in memory format channels_last, for which the kernel is fast.
    image = inputs.reshape(1, -1, 1, channels).permute(0, 3, 1, 2)
    outputs, mean, inverse_deviation = torch.native_batch_norm(image, scale, offset, None, None, True, 0.0, epsilon)
    variance = (inverse_deviation.square().reciprocal() - epsilon).clamp(min=0)
    return outputs.permute(0, 2, 3, 1).reshape(inputs.shape), mean, variance


def layer_norm(inputs, scale, offset, epsilon):
    """`common.layer_norm`; traced as TorchScript with the number of channels as a constant, which ONNX needs."""
    if scale is None or not torch.jit.is_tracing():
        return common.layer_norm(inputs, scale, offset, epsilon)
    return torch.nn.functional.layer_norm(inputs, scale.shape, _tensor(scale), _tensor(offset), epsilon)


# Up to so many tokens PyTorch's fused attention gains nothing on a CPU; with products in bfloat16 it takes a hundred
# times as long, since it prepares each of its many small products anew.
FEW_TOKENS = 64


def attention(query, key, value):
    """`common.attention`, by plain products for few tokens in float32 on a CPU."""
    # Symbolic tensors have no device.
    is_short = isinstance(query, torch.Tensor) and query.dtype == torch.float32 and query.shape[1] <= FEW_TOKENS
    if is_short and query.device.type == "cpu":
        return short_attention(query, key, value)
    return common.attention(query, key, value)


def short_attention(query, key, value):
    """`common.attention` by plain products."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    weights = torch.softmax(torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2)), -1)
    return torch.matmul(weights, value).transpose(1, 2)


def adamw_takes_all_weights():
    return True


# PyTorch 2.13 compiles everything but this kernel, with which it fails.
@torch.compiler.disable
@torch.no_grad()
def adamw_step(weights, gradients, momentums, velocities, step):
    """Takes a step of AdamW for many weights in one pass, and frees the gradients that the weights hold.

    `torch._fused_adamw_`, checked on a CPU with PyTorch 2.13.

    Args:
        weights, momentums, velocities: Keras variables, all on one device; changed in place.
        gradients: Tensors.
        step: `AdamWStep`.
    """
    parameters = [weight.value for weight in weights]
    if _knows_numbers(parameters[0].device):
        number = float(_tensor(step.iterations)) + 1
        numbers = {
            "lr": float(step.learning_rate),
            "weight_decay": step.weight_decay,
            # Keras adds epsilon before it corrects the bias, PyTorch after.
            "eps": step.epsilon / (1 - step.beta_2**number) ** 0.5,
        }
        number = torch.tensor(number)
    else:
        number, numbers = _without_waiting(parameters, step)
    torch._fused_adamw_(
        parameters,
        list(gradients),
        [momentum.value for momentum in momentums],
        [velocity.value for velocity in velocities],
        [],
        [number] * len(parameters),
        beta1=step.beta_1,
        beta2=step.beta_2,
        amsgrad=False,
        maximize=False,
        **numbers,
    )
    for parameter in parameters:
        parameter.grad = None


def _knows_numbers(device):
    """Whether Python's own numbers of a step can be had without waiting for a GPU to have computed them."""
    return device.type == "cpu"


def _without_waiting(parameters, step):
    """The same step by numbers that stay on the device: the bias corrections are in the learning rate.

    PyTorch's own are 1 after ever so many steps; the weights decay in a pass of their own.
    """
    if step.weight_decay:
        torch._foreach_mul_(parameters, 1 - step.weight_decay * step.learning_rate)
    number = _tensor(step.iterations).to(torch.float32) + 1
    corrected = step.learning_rate * torch.sqrt(1 - step.beta_2**number) / (1 - step.beta_1**number)
    return torch.full_like(number, 1e9), {"lr": corrected, "weight_decay": 0.0, "eps": step.epsilon}


# === Settings and facts ===

# CPU time of a step at 256 px: 0.86 of that without for tiny in batches of 4, 0.88 for base in batches of 2; for base
# in batches of 8 no difference beyond the scatter of a few percent.
gains_by_kept_memory = True
# glibc does not fill the gaps that its aligned blocks leave: by each step of 32 images ViT tiny at 128 px, which needs
# 0.7 GB, took 15 MB more, until it had 5.5 GB.
fragments_memory = True
# The words of JAX (`keras_ci2p.backend.MATMUL_PRECISIONS`) in those of torch.
_MATMUL_PRECISIONS = {"float32": "highest", "tensorfloat32": "high", "bfloat16": "medium"}


def stored_value(variable):
    # Where shapes alone are computed, variables are without values.
    if torch.compiler.is_compiling() or variable.value.is_meta:
        return None
    return common.stored_value(variable)


def is_recomputing():
    # Layers are called while gradients are computed by `torch.utils.checkpoint` alone, which asks the same.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


# More draws than there are between a layer and its gradient: base makes 24 in a step.
_KEPT_DRAWS = 10_000
_draws = collections.OrderedDict()


def drawn_once(draw):
    """`common.drawn_once`: PyTorch's own generator, which is set back for the second time, tells the draws apart."""
    ticket = int(torch.randint(2**62, (), device="cpu"))
    if not is_recomputing():
        _draws[ticket] = draw()
        if len(_draws) > _KEPT_DRAWS:
            _draws.popitem(last=False)
    elif ticket not in _draws:
        raise RuntimeError(
            "A layer that draws random numbers is computed once more for its gradient, and PyTorch's generator has not "
            "been set back, so that it would be the gradient of another loss. Leave `preserve_rng_state` of "
            "`torch.utils.checkpoint` at True, and draw no numbers from PyTorch's generator in between."
        )
    return _draws[ticket]


def make_deterministic():
    """Makes the same computation give the same result each time: by deterministic kernels, on a CPU in one thread."""
    # cuBLAS demands it; it reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


no_grad = torch.no_grad


def set_random_seed(seed):
    """`keras_ci2p.backend.set_random_seed`."""
    common.set_random_seed(seed)
    torch.manual_seed(seed)


def set_matmul_precision(precision):
    """`keras_ci2p.backend.set_matmul_precision`."""
    torch.set_float32_matmul_precision(_MATMUL_PRECISIONS[precision])


def arithmetic():
    """`keras_ci2p.backend.arithmetic`."""
    return {"threads": torch.get_num_threads(), "float32_products": torch.get_float32_matmul_precision()}


def accelerator():
    """Returns the name of the first GPU, None where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def peak_device_memory():
    """Returns the most bytes held on the first GPU so far, None where there is none."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


# === Devices ===


def open_devices(wanted):
    """`keras_ci2p.backend.open_devices`."""
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
        self.num_threads = max(1, num_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
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
            state.assign(state + ops.convert_to_tensor([self.shard[0], 0], state.dtype))
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

    def all_reduce_mean(self, logs):
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
