"""Train an image compressor on your own kind of pictures, and build a CI2P-ViT on it.

python examples/train_your_compressor.py pictures --out compressor          # any folder, no classes needed
python examples/train_your_compressor.py pictures --out compressor --init bmshj2018-factorized-mse-5 --steps 2000

OUT/reconstructions.png shows held-out pictures before and after; OUT/best is the compressor. Whatever ends it, the same
command goes on where it was.
"""

import argparse
import math
import os
from pathlib import Path

# The framework is chosen as in Keras: torch, jax or tensorflow.
os.environ.setdefault("KERAS_BACKEND", "jax")

from keras_ci2p import CI2PViT
from keras_ci2p.training import CompressorTrainConfig, train_compressor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="folder of pictures, at any depth")
    parser.add_argument("--out", type=Path, default="compressor", help="directory of the run; default: compressor")
    parser.add_argument("--quality", type=int, default=5, help="1 (small) to 8 (exact); default: 5, the paper's")
    parser.add_argument("--init", help="compressor to begin with, in place of random weights")
    parser.add_argument("--steps", type=int, default=6000, help="default: 6000")
    parser.add_argument("--crop-size", type=int, default=128, help="default: 128")
    parser.add_argument("--batch-size", type=int, default=8, help="default: 8")
    args = parser.parse_args()

    settings = CompressorTrainConfig(
        args.pictures,
        quality=args.quality,
        init=args.init,
        steps=args.steps,
        steps_per_epoch=min(500, args.steps),
        crop_size=args.crop_size,
        batch_size=args.batch_size,
        val_size=args.crop_size,
    )
    compressor, history = train_compressor(settings, args.out, resume=True)
    for row in history:
        print(f"step {row['step']:6}: {row['val_psnr']:.2f} dB at {row['val_bpp']:.3f} bits per pixel")
    print(f"Look at {args.out / 'reconstructions.png'}.")

    # The encoder's weights are copied and frozen, as in the paper; the rest is to be trained.
    model = CI2PViT(variant="tiny", num_classes=10, compressor=compressor)
    trained = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    print(f"{trained:,} parameters to be trained, {model.compressor.count_params():,} of the compressor frozen")
    print(f"Next: keras-ci2p train PHOTOS --compressor {args.out} --out run")


if __name__ == "__main__":
    main()
