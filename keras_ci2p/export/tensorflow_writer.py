"""What TensorFlow writes: SavedModel, and from it OpenVINO and LiteRT. Imported where it is Keras's backend."""

import functools
import tempfile
from pathlib import Path

import keras

from keras_ci2p.export import metadata
from keras_ci2p.export.batch_norm import fold_batch_norm
from keras_ci2p.export.runtimes import import_openvino


def write(model, path, format, opset, entries):
    """Writes `model` with its batch norms folded to `path`; any batch size can be run.

    Args:
        model: A classifier of fixed image size.
        path: File, or directory that exists.
        format: "tf_saved_model", "openvino" or "litert".
        opset: None.
        entries: Metadata, a dict.
    """
    folded = fold_batch_norm(model)
    if format == "tf_saved_model":
        _write_saved_model(folded, path)
        metadata.write_beside(entries, path)
        return
    with tempfile.TemporaryDirectory() as directory:
        _write_saved_model(folded, directory)
        if format == "litert":
            _write_litert(directory, path)
            metadata.append_to_litert(entries, path)
        else:
            from keras_ci2p.export.openvino_file import write_openvino

            write_openvino(import_openvino().convert_model(directory), path, model, entries)


def _write_saved_model(folded, path):
    archive = keras.export.ExportArchive()
    # What the function uses is stored; the model, tracked as `folded.export` does it, would be stored once more.
    serve = functools.partial(folded, training=False)
    archive.add_endpoint("serve", serve, input_signature=folded.inputs)
    archive.write_out(str(path), verbose=False)


def _write_litert(saved_model, path):
    import tensorflow as tf

    # Keras's own export also admits operations that only TensorFlow's large runtime has; none is needed.
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
    Path(path).write_bytes(converter.convert())
