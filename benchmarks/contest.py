"""How the benchmarks measure: contestants in turns, memory in processes of their own, tables and files."""

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
from pathlib import Path

import contestants
import keras
from common import MEMORY_SETTINGS, settings_of

from keras_ci2p import utils
from keras_ci2p.backend import arithmetic, environment, peak_device_memory, peak_memory

RESULTS = Path(__file__).parent / "results"


def parser(description, **defaults):
    """Command line with what all benchmarks take; `defaults` are those of this one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestants", nargs="+", metavar="NAME", help=f"default: {', '.join(contestants.names())}")
    parser.add_argument("--rounds", type=int, default=defaults["rounds"])
    parser.add_argument("--dtype", default="float32", help="float32 or mixed_bfloat16")
    parser.add_argument("--compiled", action="store_true", help="torch.compile on torch; the others compile anyway")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="seconds, with tiny models: only that it runs")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser


def chosen(args):
    """Names of the contestants; ends with a sentence where one is unknown."""
    unknown = set(args.contestants or ()) - set(contestants.names())
    if unknown:
        known = ", ".join(contestants.names())
        sys.exit(f"Unknown on {keras.backend.backend()}: {', '.join(sorted(unknown))}. There are: {known}")
    return args.contestants or contestants.names()


def make(name, args, image_size):
    return contestants.make(name, image_size, args.dtype, args.compiled, args.small)


def alternate(actions, rounds):
    """Seconds of each action in each round, `{name: [seconds]}`, in turns.

    Args:
        actions: dict of functions that return the seconds they took; each round begins with another.
        rounds: How often.
    """
    seconds = {name: [] for name in actions}
    order = list(actions)
    for number in range(rounds):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            seconds[name].append(actions[name]())
            print(f"round {number + 1} of {rounds}, {name}: {seconds[name][-1]:.3f} s", flush=True)
    return seconds


def within(values, form):
    """A spread as text, "-" for None."""
    if values is None:
        return "-"
    median, least, most = (format(values[key], form) for key in ("median", "least", "most"))
    return f"{median} ({least}..{most})"


def spread(values):
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def measure_memory(make_contestant, act, training):
    """Bytes at the peak of `act(contestant)`, after two calls that compile it and fill what stays.

    Returns:
        dict of `peak`, on a GPU of what lies there; `resident`, weights and, with `training`, gradients and optimizer
        state; `imported`, what the process held before there was a contestant (on a GPU 0); `rest`, the peak without
        the other two; and `since_reset`: whether the system let the peak begin anew after those two calls.
    """
    imported = imported_bytes()
    contestant = make_contestant()
    for _ in range(2):
        act(contestant)
    release_free_memory()
    can_reset = reset_peak_memory()
    act(contestant)
    on_device = peak_device_memory()
    peak = peak_memory() if on_device is None else on_device
    imported = imported if on_device is None else 0
    resident = contestant.weights_bytes() + (contestant.training_bytes() if training else 0)
    return {
        "peak": peak,
        "resident": resident,
        "imported": imported,
        "rest": peak - resident - imported,
        "since_reset": can_reset and on_device is None,
    }


def imported_bytes():
    """What the process holds with the backend at work."""
    keras.ops.convert_to_numpy(keras.ops.matmul(keras.ops.ones((64, 64)), keras.ops.ones((64, 64))))
    release_free_memory()
    reset_peak_memory()
    return peak_memory()


def reset_peak_memory():
    """Lets `peak_memory` begin anew; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def release_free_memory():
    """Gives back what the compiler has left, where the C library can."""
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)(0)


def memory_in_own_process(name):
    """What the script that runs, with the same arguments and `--memory-of NAME`, prints as its last line, from JSON."""
    process = subprocess.run([sys.executable, *sys.argv, "--memory-of", name], capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"Memory of {name}: {process.stderr[-2000:]}")
    row = json.loads(process.stdout.splitlines()[-1])
    print(f"memory of {name}: {row['peak'] / 1e9:.2f} GB", flush=True)
    return row


def markdown(header, rows):
    """A table with the first column left, the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write(name, args, result, plot):
    """Writes JSON and plot below `args.out`, named after benchmark, backend and dtype.

    Args:
        name: Of the benchmark.
        args: Of the command line; they are recorded.
        result: dict.
        plot: Function that draws `result` on a `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    settings = {"settings": settings_of(args), **MEMORY_SETTINGS}
    result = {**settings, **environment(), **arithmetic(), **result}
    path = args.out / "-".join([name, result["backend"], *([args.dtype] if args.dtype != "float32" else [])])
    utils.write_json(path.with_suffix(".json"), result)
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    plot(figure, result)
    figure.suptitle(f"{result['backend']}, {args.dtype}, {result['device']}, {result['threads']} threads", fontsize=10)
    with utils.atomic_file(path.with_suffix(".png")) as temporary:
        figure.savefig(temporary, dpi=120)
    print(f"written: {path}.json, .png")


def bars(axes, spreads, title):
    """Horizontal bars of the medians, with the spread as a line, from the top down."""
    for i, (name, value) in enumerate(spreads.items()):
        axes.barh(name, value["median"], color=f"C{i}")
        axes.hlines(i, value["least"], value["most"], color="0.2", linewidth=1.2)
        axes.annotate(
            f"{value['median']:.3g}", (value["most"], i), (6, 0), textcoords="offset points", va="center", fontsize=9
        )
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    axes.set_title(title, fontsize=11)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
