"""How fast the entropy coder is: images a second and core each way, beside CompressAI's in C++.

    KERAS_BACKEND=torch python benchmarks/codec.py --data PHOTOS [--oracle .venv-oracle]
    python benchmarks/codec.py --small         # noise: only that it runs

The latents of the shipped compressor, of the central 256 px of photos, are coded and decoded by numba's loops, by
Python's, and by CompressAI's where its environment is (`tests/oracle/run.sh` makes it), a process each, in turns.
Seconds are those of the processor, so that other work beside does not count. CompressAI's are of its functions alone,
without making the lists of integers that they take. benchmarks/results gets codec.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5
# Of what the loops' processes are given, by name.
LOOPS = {"numba": {}, "Python": {"NUMBA_DISABLE_JIT": "1"}}
OURS = """
import sys, time
import numpy as np
from keras_ci2p.codec.rans import decode_latents, encode_latents
from keras_ci2p.codec.tables import read_tables
file = dict(np.load(sys.argv[1]))
tables, _ = read_tables(file["tables"].tobytes())
prepare = lambda image: image
encode = lambda image: encode_latents(image, tables)
decode = lambda string: decode_latents(string, file["symbols"].shape[1:], tables)
"""
THEIRS = """
import sys, time
import numpy as np
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from compressai import ans
file = dict(np.load(sys.argv[1]))
rows, columns, channels = file["symbols"].shape[1:]
indexes = np.repeat(np.arange(channels), rows * columns).tolist()
arguments = file["cdf"].tolist(), file["length"].tolist(), file["offset"].tolist()
prepare = lambda image: image.transpose(2, 0, 1).ravel().tolist()
encode = lambda symbols: ans.RansEncoder().encode_with_indexes(symbols, indexes, *arguments)
decode = lambda string: ans.RansDecoder().decode_with_indexes(string, indexes, *arguments)
"""
MEASURE = """
images = [prepare(image) for image in file["symbols"]]
strings = [encode(image) for image in images[:2]]
decode(strings[0])
began = time.process_time()
strings = [encode(image) for image in images]
middle = time.process_time()
for string in strings:
    decode(string)
ended = time.process_time()
print(len(images) / (middle - began), len(images) / (ended - middle), sum(map(len, strings)))
"""


def main():
    args = parse()
    with tempfile.TemporaryDirectory() as directory:
        file, described = write_latents(Path(directory), args)
        coders = {name: (sys.executable, OURS, environment) for name, environment in LOOPS.items()}
        if args.oracle.is_dir():
            coders["CompressAI"] = (str(args.oracle / "bin" / "python"), THEIRS, {})
        rounds = [{name: measure(*coder, file) for name, coder in coders.items()} for _ in range(args.rounds)]
    rows = {}
    for name in coders:
        encoded, decoded, sizes = zip(*(each[name] for each in rounds), strict=True)
        rows[name] = {"encode": spread(encoded), "decode": spread(decoded), "bytes": int(sizes[0])}
    assert len({row["bytes"] for row in rows.values()}) == 1, "all write the same bytes"
    result = {**described, "rounds": args.rounds, "rows": rows}
    print("| coder | encodes, images/s | decodes, images/s |\n|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | "
            + " | ".join("{median:,.0f} ({least:,.0f}..{most:,.0f})".format(**row[key]) for key in ("encode", "decode"))
            + " |"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "codec.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten: {args.out / 'codec.json'}")


def parse():
    from common import add_data_argument

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_argument(parser)
    parser.add_argument("--images", type=int, default=100, help="default: 100")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--oracle", type=Path, default=Path(".venv-oracle"), help="environment of CompressAI")
    parser.add_argument("--small", action="store_true", help="noise, one round: only that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.small:
        args.images, args.rounds = 2, 1
    return args


def write_latents(directory, args):
    """The integers of the images and the tables, as a file; and what the result file says of them."""
    from keras_ci2p import Compressor
    from keras_ci2p.backend import environment
    from keras_ci2p.data import scan_images
    from keras_ci2p.training.configs import DEFAULT_COMPRESSOR
    from keras_ci2p.training.evaluation import held_out, middle_crops

    compressor = Compressor.from_preset(DEFAULT_COMPRESSOR)
    if args.small:
        batches = [np.random.default_rng(0).integers(0, 256, (args.images, 256, 256, 3), "uint8")]
    else:
        batches = [images for images, _ in middle_crops(held_out(scan_images(args.data), "val", args.images), 256, 4)]
    promised = sum(compressor.bits_per_pixel(images) * images[..., 0].size for images in batches)
    symbols = np.concatenate([compressor.encode_images(images)[0][0] for images in batches])
    tables = compressor.entropy_tables
    file = directory / "latents.npz"
    np.savez(
        file,
        symbols=symbols,
        tables=np.frombuffer(tables.to_bytes(), "uint8"),
        cdf=tables.quantized_cdf,
        length=tables.cdf_length,
        offset=tables.offset,
    )
    described = {"compressor": DEFAULT_COMPRESSOR, "images": len(symbols), "image_size": 256}
    return file, {**described, "promised_bytes": promised / 8, **environment()}


def measure(python, program, environment, file):
    """Images a second coded and decoded, and bytes of all strings."""
    done = subprocess.run(
        [python, "-c", program + MEASURE, str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return tuple(map(float, done.stdout.split()))


def spread(values):
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


if __name__ == "__main__":
    main()
