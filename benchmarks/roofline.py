"""How close to the processor's limit a training step and a prediction come, and which part of them how close.

    KERAS_BACKEND=jax taskset -c 1 python benchmarks/roofline.py
    KERAS_BACKEND=torch python benchmarks/roofline.py --small        # seconds: only that it runs

The limit is the backend's own product of two float32 matrices of 2048 x 2048, in multiply-accumulates a second. In
each round it is measured beside the whole step, the whole prediction and each part alone; rounds in which it is below
80 % of the best are thrown away. The transformer's seconds are those of a step on latents without the patch generator's
and the optimizer's. Input is what a batch takes to be read and augmented, which other cores can do meanwhile. On one
core the seconds are those of the processor, on several those of the clock. A table for each model is printed;
benchmarks/results gets roofline-BACKEND.json and .png.
"""

import io
import statistics
import tempfile
import warnings
from pathlib import Path

import contest
import contestants
import keras
import numpy as np
from common import timed
from keras import ops
from PIL import Image

from keras_ci2p.data import Augmentation, image_folder

MODELS = ["CI2P-ViT base", "CI2P-ViT tiny"]
# Of the best round's probe; machines that are shared stall.
LEAST_OF_PROBE = 0.8
PROBE = "probe"


def main():
    args = parse()
    # That a random compressor is frozen.
    warnings.simplefilter("ignore")
    models = {}
    with tempfile.TemporaryDirectory() as directory:
        loader = batches(Path(directory), args)
        for name in args.contestants or MODELS:
            contestant = contest.make(name, args, args.image_size)
            actions = {PROBE: probe(args.probe_size), **actions_of(contestant, loader, args)}
            for action in actions.values():
                # Compiles, and fills what stays.
                action()
            models[name] = report(contestant, contest.alternate(actions, args.rounds), args)
            print(tables(name, models[name]), flush=True)
    contest.write("roofline", args, {"models": models}, plot)


def parse():
    parser = contest.parser(__doc__, rounds=7)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--probe-size", type=int, default=2048, help="rows and columns of the matrices")
    args = parser.parse_args()
    if args.small:
        args.image_size, args.batch_size, args.probe_size, args.rounds = 64, 2, 256, 2
    return args


def probe(size):
    """Action that takes the seconds of a product."""
    left, right = (ops.convert_to_tensor(np.random.default_rng(i).normal(size=(size, size)), "float32") for i in (0, 1))
    return lambda: timed(lambda: ops.convert_to_numpy(ops.matmul(left, right)[0, 0]))


def actions_of(contestant, loader, args):
    """By name, functions that return the seconds of one step, one prediction, or one of a part."""
    model = contestant.model
    images, labels = contestants.batch(args.image_size, args.batch_size)
    compressor = keras.Model(model.input, model.compressor(model.input))
    latents = compressor.predict_on_batch(images)
    on_latents = model.latent_classifier
    patches = keras.Model(on_latents.input, model.patch_generator(on_latents.input))
    tokens = np.zeros((args.batch_size, *patches.output_shape[1:]), "float32")
    compile_options = {"jit_compile": contestant.jit_compile}
    optimizer = contestants.FusedAdamW(contestants.LEARNING_RATE, weight_decay=contestants.WEIGHT_DECAY)
    on_latents.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True), **compile_options)
    # Without moments, so that there is hardly more than the gradients.
    patches.compile(keras.optimizers.SGD(contestants.LEARNING_RATE), "mean_squared_error", **compile_options)

    def predicting(network, inputs):
        return lambda: timed(lambda: network.predict_on_batch(inputs))

    def training(network, inputs, targets):
        return lambda: timed(lambda: float(network.train_on_batch(inputs, targets)))

    return {
        "training step": lambda: contestant.train(images, labels, 1, untimed=1),
        "step on latents": training(on_latents, latents, labels),
        "step of the patch generator": training(patches, latents, tokens),
        "optimizer": optimizer_step(model),
        "prediction": predicting(model, images),
        "compressor": predicting(compressor, images),
        "prediction on latents": predicting(on_latents, latents),
        "patch generator": predicting(patches, latents),
        "input": lambda: timed(lambda: next(loader)),
    }


def optimizer_step(model):
    """Action that takes the seconds of an update of all weights, by gradients of zero."""
    optimizer = contestants.FusedAdamW(contestants.LEARNING_RATE, weight_decay=contestants.WEIGHT_DECAY)
    weights = model.trainable_variables
    optimizer.build(weights)
    gradients = [ops.zeros(weight.shape) for weight in weights]
    if keras.backend.backend() == "jax":
        import jax

        update = jax.jit(optimizer.stateless_apply)
        # Copies: a training step gives away the arrays that it was given.
        state = tuple([jax.numpy.copy(weight.value) for weight in group] for group in (optimizer.variables, weights))
        return lambda: timed(lambda: jax.block_until_ready(update(state[0], gradients, state[1])))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(lambda: optimizer.apply(gradients, weights))
        return lambda: timed(compiled)
    return lambda: timed(lambda: optimizer.apply(gradients, weights))


def batches(directory, args):
    """Endless batches of augmented JPEGs of an ordinary photo's size."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (directory / name).mkdir()
        for i in range(2 * args.batch_size):
            small = Image.fromarray(rng.integers(0, 256, (15, 20, 3), "uint8"))
            content = io.BytesIO()
            small.resize((300, 225), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
            (directory / name / f"{i}.jpg").write_bytes(content.getvalue())
    sizes = {"image_size": args.image_size, "batch_size": args.batch_size}
    return iter(image_folder(directory, **sizes, augment=Augmentation()).repeat())


def report(contestant, seconds, args):
    """What the rounds say: seconds by action, and for step and prediction the rows of a table."""
    probes = seconds[PROBE]
    kept = [i for i, value in enumerate(probes) if min(probes) / value >= LEAST_OF_PROBE]
    median = {name: statistics.median([values[i] for i in kept]) for name, values in seconds.items()}
    peak = args.probe_size**3 / median[PROBE]
    parts = contestant.macs.parts
    work = {
        name: [getattr(part, kind) * args.batch_size for kind in ("training", "macs")] for name, part in parts.items()
    }
    work["whole"] = [sum(values) for values in zip(*work.values(), strict=True)]
    work["transformer"] = [a + b for a, b in zip(work["transformer"], work.pop("head"), strict=True)]
    training = {
        "compressor": median["compressor"],
        "patch_generator": median["step of the patch generator"],
        "transformer": median["step on latents"] - median["step of the patch generator"] - median["optimizer"],
        "optimizer": median["optimizer"],
        "whole": median["training step"],
    }
    predicting = {
        "compressor": median["compressor"],
        "patch_generator": median["patch generator"],
        "transformer": median["prediction on latents"] - median["patch generator"],
        "whole": median["prediction"],
    }
    return {
        "rounds": len(probes),
        "kept_rounds": len(kept),
        "peak_gmacs_per_second": peak / 1e9,
        "seconds": seconds,
        "training": rows(training, {name: values[0] for name, values in work.items()}, peak),
        "prediction": rows(predicting, {name: values[1] for name, values in work.items()}, peak),
        "input_of_training_step": median["input"] / median["training step"],
    }


def rows(seconds, work, peak):
    return {
        name: {
            "seconds": value,
            "share": value / seconds["whole"],
            "gmacs": work.get(name, 0) / 1e9,
            "of_peak": work[name] / value / peak if name in work and value > 0 else None,
        }
        for name, value in seconds.items()
    }


def tables(name, model):
    header = (name, "of a training step", "of the peak", "of a prediction", "of the peak")

    def cells(row):
        if row is None:
            return "-", "-"
        return f"{row['share']:.0%}", "-" if row["of_peak"] is None else f"{row['of_peak']:.0%}"

    lines = [
        (part.replace("_", " "), *cells(row), *cells(model["prediction"].get(part)))
        for part, row in model["training"].items()
    ]
    lines.append(("input, beside it", f"{model['input_of_training_step']:.0%}", "-", "-", "-"))
    peak = f"{model['peak_gmacs_per_second']:.0f} GMAC/s, {model['kept_rounds']} of {model['rounds']} rounds"
    return f"\nPeak: {peak}\n\n{contest.markdown(header, lines)}"


def plot(figure, result):
    panels = figure.subplots(1, len(result["models"]), sharey=True, squeeze=False)[0]
    for axes, (name, model) in zip(panels, result["models"].items(), strict=True):
        kinds = [model["training"], model["prediction"]]
        # A difference of two times of a busy machine may be less than nothing.
        parts = [part for part in kinds[1] if all(kind[part]["of_peak"] is not None for kind in kinds)]
        for offset, kind in ((-0.2, "training"), (0.2, "prediction")):
            heights = [model[kind][part]["of_peak"] for part in parts]
            axes.bar(np.arange(len(parts)) + offset, heights, 0.4, label=kind)
        axes.set_xticks(range(len(parts)), [part.replace("_", " ") for part in parts])
        axes.set_title(f"{name}, share of the peak", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)


if __name__ == "__main__":
    main()
