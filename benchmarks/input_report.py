"""The results of `input.py` as a table and a plot."""

import numpy as np

from keras_ci2p import utils

SPREAD = {"elinewidth": 1, "ecolor": "0.25", "capsize": 3}


def report(result):
    print(f"{result['photos']} photos, {result['image_size']} px, {result['repeats']} repeats: median (least..most)")
    print("\nmicroseconds of one core for each photo")
    for name, numbers in result["steps_us"].items():
        print(f"  {name:28}{text(numbers)}")
    print(f"  {'sum':28}{sum(numbers['median'] for numbers in result['steps_us'].values()):8.0f}")
    print("\nphotos a second on one core, without Mixup and CutMix")
    for name, numbers in result["one_core"].items():
        print(f"  {name:28}{text(numbers)}")
    print("\nphotos a second of image_folder")
    for kind in ("threads", "workers"):
        for cores, numbers in result["cores"][kind].items():
            print(f"  {kind + ' on ' + cores + (' core' if cores == '1' else ' cores'):28}{text(numbers)}")
    start = result["cores"]["seconds_to_first_batch_of_workers"]
    print(f"  seconds to the first batch of workers: {start['median']:.1f} ({start['least']:.1f}..{start['most']:.1f})")


def text(numbers):
    return f"{numbers['median']:8.0f} ({numbers['least']:.0f}..{numbers['most']:.0f})"


def plot(path, result):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("Without input.png: pip install matplotlib")
        return
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    steps, one_core, cores = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    bars(steps, result["steps_us"], "µs a photo, one core", "{:.0f}")
    steps.invert_yaxis()
    colors = ["C0" if name == "keras_ci2p" else "0.6" for name in result["one_core"]]
    bars(one_core, result["one_core"], "photos / s, one core", "{:.0f}", colors)
    one_core.invert_yaxis()
    width = 0.38
    for i, kind in enumerate(("threads", "workers")):
        rows = result["cores"][kind]
        places = np.arange(len(rows)) + (i - 0.5) * width
        medians = [numbers["median"] for numbers in rows.values()]
        drawn = cores.bar(places, medians, width, yerr=errors(rows), error_kw=SPREAD, label=kind, color=("C0", "C1")[i])
        cores.bar_label(drawn, fmt="{:.0f}", padding=3, fontsize=9)
    cores.set_xticks(range(len(rows)), list(rows))
    cores.set_xlabel("cores")
    cores.set_title("photos / s, image_folder", fontsize=11)
    cores.margins(y=0.3)
    cores.legend(frameon=False, ncols=2, loc="upper center")
    cores.spines[["top", "right"]].set_visible(False)
    env = result["environment"]
    figure.suptitle(
        f"The paper's augmentation, {result['image_size']} px, {result['photos']} photos; {env['processor']}, "
        f"Pillow {env['pillow']}",
        fontsize=11,
    )
    with utils.atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def bars(axes, rows, title, form, color="C0"):
    medians = [numbers["median"] for numbers in rows.values()]
    drawn = axes.barh(list(rows), medians, xerr=errors(rows), error_kw=SPREAD, color=color)
    axes.bar_label(drawn, fmt=form, padding=6, fontsize=9)
    axes.set_title(title, fontsize=11)
    axes.margins(x=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def errors(rows):
    return np.array([[n["median"] - n["least"], n["most"] - n["median"]] for n in rows.values()]).T
