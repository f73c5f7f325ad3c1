"""What `import keras_ci2p` costs on top of `import keras`.

    KERAS_BACKEND=jax python benchmarks/import_time.py

Each repetition starts a new interpreter that imports Keras and then keras_ci2p. The promise: at most 0.3 s more.
"""

import json
import statistics
import subprocess
import sys

REPETITIONS = 7
CODE = """
import time
began = time.perf_counter()
import keras
after_keras = time.perf_counter()
import keras_ci2p
print(after_keras - began, time.perf_counter() - after_keras, keras.backend.backend())
"""


def main():
    rows = []
    for _ in range(REPETITIONS):
        output = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
        keras_seconds, ours, backend = output.split()
        rows.append((float(keras_seconds), float(ours)))
    keras_seconds, ours = (statistics.median(column) for column in zip(*rows, strict=True))
    result = {
        "backend": backend,
        "repetitions": REPETITIONS,
        "keras_seconds": round(keras_seconds, 3),
        "keras_ci2p_seconds": round(ours, 3),
        "slowest_keras_ci2p_seconds": round(max(row[1] for row in rows), 3),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
