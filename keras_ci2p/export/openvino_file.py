"""The end of each conversion to OpenVINO."""

from pathlib import Path

from keras_ci2p.export import metadata
from keras_ci2p.export.formats import FORMATS, output_name
from keras_ci2p.export.runtimes import import_openvino


def write_openvino(converted, directory, model, entries):
    """Writes an `openvino.Model` with named input and output, of any batch size, its weights in float32.

    Args:
        converted: What `openvino.convert_model` made of `model`.
        directory: Where to; gets an .xml and a .bin.
        model: The classifier.
        entries: Metadata.
    """
    openvino = import_openvino()

    (images,), (output,) = converted.inputs, converted.outputs
    images.get_node().set_partial_shape(openvino.PartialShape([-1, *model.image_shape]))
    images.tensor.set_names({"images"})
    output.tensor.set_names({output_name(model)})
    converted.validate_nodes_and_infer_types()
    metadata.to_openvino(entries, converted)
    openvino.save_model(converted, Path(directory) / FORMATS["openvino"].main_file, compress_to_fp16=False)
