import keras
import numpy as np
import pytest

from keras_ci2p.training import RECIPES, Recipe
from keras_ci2p.training.optim import FusedAdamW, make_optimizer

STEPS = 10


def rate(optimizer, step):
    return float(keras.ops.convert_to_numpy(optimizer._learning_rate(step)))


# 1.25e-6 + (1e-4 - 1.25e-6) * (1 + cos(pi * (epoch - 20) / 280)) / 2 after the warm-up.
@pytest.mark.parametrize(
    ("epoch", "published"),
    [(0, 1e-4 / 3), (10, 6.68342e-5), (20, 1e-4), (90, 8.55382e-5), (150, 5.6154e-5), (160, 5.0625e-5), (300, 1.25e-6)],
)
def test_learning_rates_of_the_paper(epoch, published):
    for name in ("paper", "paper_literal"):
        optimizer = make_optimizer(RECIPES[name], STEPS)
        np.testing.assert_allclose(rate(optimizer, epoch * STEPS), published, rtol=1e-4)


def test_the_literal_schedule_rises_again():
    optimizer = make_optimizer(RECIPES["paper_literal"], STEPS)
    # model: 8.1e-5 in the last epoch, as the paper's own code.
    np.testing.assert_allclose(rate(optimizer, 499 * STEPS), 8.1e-5, rtol=1e-2)


def test_the_warm_up_is_by_steps_and_the_cosine_by_epochs():
    optimizer = make_optimizer(RECIPES["paper"], STEPS)
    rates = [rate(optimizer, step) for step in range(23 * STEPS)]
    np.testing.assert_allclose(np.diff(rates[: 20 * STEPS]), (1e-4 - 1e-4 / 3) / 199, rtol=2e-3)
    np.testing.assert_allclose(rates[199], 1e-4, rtol=1e-5)
    assert len(set(rates[200:210])) == 1 and rates[210] < rates[209]
    smooth = make_optimizer(RECIPES["paper"].override({"cosine_steps": "batch"}), STEPS)
    assert rate(smooth, 221) < rate(smooth, 220) < rate(smooth, 219)


@pytest.mark.parametrize("warmup", [0, 5, 100])
def test_short_runs(warmup):
    optimizer = make_optimizer(Recipe(learning_rate=1e-3, epochs=2, warmup_epochs=warmup), 1)
    assert all(0 < rate(optimizer, step) <= 1e-3 * 1.001 for step in range(2))


def test_adamw_as_in_the_paper():
    optimizer = make_optimizer(RECIPES["paper"], STEPS)
    config = optimizer.get_config()
    expected = {"weight_decay": 0.05, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8, "global_clipnorm": None}
    assert {key: config[key] for key in expected} == expected
    assert not config["use_ema"] and config["gradient_accumulation_steps"] is None


def test_the_schedule_can_be_stored():
    schedule = make_optimizer(RECIPES["paper"], STEPS)._learning_rate
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert float(again(1234)) == float(schedule(1234))


def train_one_weight(recipe, gradients):
    """The weight after steps with the given gradients, and the optimizer."""
    weight = keras.Variable([1.0])
    optimizer = make_optimizer(recipe, steps_per_epoch=100)
    optimizer.build([weight])
    values = []
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor([gradient])])
        values.append(float(weight.numpy()[0]))
    return np.array(values), optimizer


PLAIN = Recipe(warmup_epochs=0, learning_rate=0.1, weight_decay=0.0, cosine_steps="batch")


def test_accumulation_averages_gradients():
    accumulated, _ = train_one_weight(PLAIN.override({"accumulate": 2}), [1.0, -0.5, 0.5, 0.0])
    np.testing.assert_array_equal(accumulated[[0, 2]], [1.0, accumulated[1]])
    straight, _ = train_one_weight(PLAIN.override({"accumulate": 1}), [0.25, 0.25])
    np.testing.assert_allclose(accumulated[[1, 3]], straight, rtol=1e-4)


def test_clipping():
    # Adam does not feel the size of a constant gradient, but that of the second beside the first.
    clipped, _ = train_one_weight(PLAIN.override({"clip_norm": 1}), [1.0, 100.0])
    straight, _ = train_one_weight(PLAIN, [1.0, 1.0])
    np.testing.assert_allclose(clipped, straight, rtol=1e-5)
    assert abs(train_one_weight(PLAIN, [1.0, 100.0])[0][1] - straight[1]) > 0.01


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_average_of_the_weights(accumulate):
    recipe = PLAIN.override({"ema": 0.5, "accumulate": accumulate})
    values, optimizer = train_one_weight(recipe, [1.0] * 3 * accumulate)
    average, momentum = values[0], 0.5 ** (1 / accumulate)
    # Keras keeps the weights themselves until the first update.
    for i, value in enumerate(values):
        average = value if i < accumulate else momentum * average + (1 - momentum) * value
    stored = float(optimizer._model_variables_moving_average[0].numpy()[0])
    np.testing.assert_allclose(stored, average, rtol=1e-5)
    assert abs(stored - values[-1]) > 0.01


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_average_of_the_weights_warms_up(accumulate):
    """After n updates as TensorFlow's `ExponentialMovingAverage` with `num_updates`; in the end the momentum given."""
    recipe = PLAIN.override({"ema_momentum": 0.4, "ema_warmup": True, "grad_accum_steps": accumulate})
    values, optimizer = train_one_weight(recipe, [1.0] * 9 * accumulate)
    average, momenta = values[0], [min(0.4, (1 + n) / (10 + n)) for n in range(9)]
    assert momenta[0] == 0.1 and momenta[-1] == 0.4 and sorted(momenta) == momenta
    for i, value in enumerate(values):
        momentum = momenta[i // accumulate] ** (1 / accumulate)
        average = value if i < accumulate else momentum * average + (1 - momentum) * value
    stored = float(optimizer._model_variables_moving_average[0].numpy()[0])
    np.testing.assert_allclose(stored, average, rtol=1e-5)
    assert optimizer.ema_momentum == pytest.approx(0.4 ** (1 / accumulate)), "as it was given"
    again = FusedAdamW.from_config(optimizer.get_config())
    assert again.ema_warmup and not FusedAdamW().ema_warmup
    with pytest.raises(ValueError, match="ema_warmup goes with an average"):
        Recipe(ema_warmup=True)


@pytest.mark.parametrize(
    "arguments",
    [
        {"weight_decay": 0.5, "epsilon": 1e-2, "global_clipnorm": 0.5},
        {"gradient_accumulation_steps": 2, "use_ema": True, "ema_momentum": 0.9},
    ],
    ids=["clipped", "accumulated"],
)
@pytest.mark.parametrize("waits", [True, False], ids=["cpu", "gpu"])
def test_the_fused_steps_are_those_of_keras(arguments, waits, monkeypatch):
    if not waits:
        # What a GPU takes: numbers that Python does not see.
        if keras.backend.backend() != "torch":
            pytest.skip("one way for all devices")
        monkeypatch.setattr("keras_ci2p.backend.torch._knows_numbers", lambda device: False)
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape).astype("float32") for shape in ((3, 4), (5,), (1,))]
    gradients = [[rng.normal(size=x.shape).astype("float32") for x in start] for _ in range(6)]
    found = []
    for optimizer_class in (keras.optimizers.AdamW, FusedAdamW):
        variables = [keras.Variable(x, name=f"x{i}") for i, x in enumerate(start)]
        optimizer = optimizer_class(keras.optimizers.schedules.CosineDecay(0.1, 8), **arguments)
        optimizer.exclude_from_weight_decay(var_names=["x1"])
        optimizer.build(variables)
        apply = optimizer.apply
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            apply = tf.function(optimizer.apply)
        for step in gradients:
            apply([keras.ops.convert_to_tensor(x) for x in step])
        found.append([keras.ops.convert_to_numpy(x) for x in (*variables, *optimizer.variables)])
    for x, theirs, own in zip(start, *found, strict=False):
        assert np.abs(theirs - x).max() > 0.03
        # Of the bias correction in float32 3e-5 are rounding.
        np.testing.assert_allclose(own, theirs, atol=5e-6)
    for theirs, own in zip(*found, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=5e-5, atol=5e-6)


def test_the_kernels_are_used(monkeypatch):
    variable = keras.Variable(np.ones(3, "float32"))
    optimizer = FusedAdamW(0.1)
    optimizer.build([variable])
    backend = keras.backend.backend()
    calls = []
    if backend == "torch":
        import torch as owner

        name = "_fused_adamw_"
    elif backend == "tensorflow":
        from tensorflow import raw_ops as owner

        name = "ResourceApplyAdam"
    else:
        pytest.skip("JAX's compiler needs no help")
    kernel = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: calls.append(1) or kernel(*args, **kwargs))
    optimizer.apply([keras.ops.ones(3)])
    assert calls == [1] and float(keras.ops.max(variable)) < 1


# PyTorch keeps gradients with the weights.
@pytest.mark.once
def test_the_gradients_are_freed_with_the_step():
    variable = keras.Variable(np.ones(3, "float32"))
    optimizer = FusedAdamW(0.1)
    optimizer.build([variable])
    variable.value.sum().backward()
    optimizer.apply([variable.value.grad])
    assert float(keras.ops.max(variable)) < 1 and variable.value.grad is None


def test_the_fused_optimizer_can_be_stored():
    optimizer = make_optimizer(RECIPES["paper"], STEPS)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert type(again) is FusedAdamW and again.get_config() == optimizer.get_config()
    with pytest.raises(ValueError, match="amsgrad"):
        FusedAdamW(0.1, amsgrad=True)


def test_a_compiled_step_is_the_same():
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(8, 6)).astype("float32"), rng.normal(size=(8, 4)).astype("float32")
    weights = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
        model.compile(FusedAdamW(1e-2), "mse", jit_compile=jit_compile)
        model.fit(images, labels, batch_size=4, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for plain, compiled in zip(*weights, strict=True):
        np.testing.assert_allclose(compiled, plain, atol=1e-6)
