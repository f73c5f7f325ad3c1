"""`keras-ci2p predict`"""

import json
import sys

from keras_ci2p.cli.model import HELP


def add_parser(commands):
    parser = commands.add_parser(
        "predict",
        help="classify pictures",
        description="The most probable classes of each picture.",
    )
    parser.add_argument("model", metavar="RUN|PRESET", help=HELP)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="picture in any format that Pillow reads")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes for each picture; default: 5")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args):
    import keras
    import numpy as np

    from keras_ci2p.cli.model import open_model
    from keras_ci2p.data.transforms import center_crop, load_image
    from keras_ci2p.training.evaluation import evaluation_size

    if args.top < 1:
        raise ValueError(f"--top must be at least 1. Received: {args.top}")
    model, _ = open_model(args.model)
    names = model.class_names or [str(i) for i in range(model.num_classes)]
    results, unreadable = [], 0
    for path in args.images:
        try:
            image = center_crop(load_image(path), evaluation_size(model))
        except OSError as error:
            print(f"keras-ci2p: {path} cannot be read: {error}", file=sys.stderr)
            unreadable += 1
            continue
        outputs = model.predict_on_batch(image[None])
        is_logits = model.activation is None
        scores = keras.ops.convert_to_numpy(keras.ops.softmax(outputs) if is_logits else outputs)[0]
        best = np.argsort(-scores, kind="stable")[: args.top]
        top = [{"class": names[i], "probability": float(scores[i])} for i in best]
        results.append({"image": path, "top": top})
    if args.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    else:
        for result in results:
            print(result["image"])
            for row in result["top"]:
                print(f"  {100 * row['probability']:5.1f} %  {row['class']}")
    return 2 if unreadable else 0
