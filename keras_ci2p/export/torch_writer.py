"""What PyTorch writes: .pt2, ONNX, OpenVINO. Imported where torch is Keras's backend."""

import json
import warnings

import keras
import torch

from keras_ci2p.export import metadata
from keras_ci2p.export.batch_norm import fold_batch_norm
from keras_ci2p.export.formats import output_name
from keras_ci2p.export.runtimes import import_openvino

# A protobuf file ends at 2 GB; torch moves weights to a second file from here on.
LARGEST_ONNX = 3 * 2**29


def write(model, path, format, opset, entries):
    """Writes `model` with its batch norms folded to `path`; any batch size can be run.

    Args:
        model: A classifier of fixed image size.
        path: File, or directory that exists.
        format: "torch", "onnx" or "openvino".
        opset: Of ONNX; None for torch's default.
        entries: Metadata, a dict.
    """
    with warnings.catch_warnings():
        # Of torch about itself.
        warnings.simplefilter("ignore")
        program = _program(model)
        if format == "torch":
            _write_torch(program, path, entries)
        elif format == "onnx":
            _write_onnx(program, path, output_name(model), opset, entries)
        else:
            from keras_ci2p.export.openvino_file import write_openvino

            write_openvino(import_openvino().convert_model(program), path, model, entries)


def _program(model):
    # The program remembers devices.
    with keras.device("cpu"):
        folded = fold_batch_norm(model)
        # Two, since torch takes a batch of one for a constant.
        images = torch.zeros(2, *folded.image_shape)
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(_Inference(folded).eval(), (images,), dynamic_shapes=({0: batch},), strict=False)
    for node in program.graph.nodes:
        # Paths of this machine.
        node.meta.pop("stack_trace", None)
    return program


class _Inference(torch.nn.Module):
    """A Keras model whose weights torch can see: `torch.export` takes those of Keras for nameless constants."""

    def __init__(self, model):
        super().__init__()
        # In a tuple, so that it is no submodule.
        self._model = (model,)
        for weight in model.weights:
            self.register_buffer(weight.path, weight.value.detach())

    def forward(self, images):
        (model,) = self._model
        state = list(zip(model.weights, self.buffers(), strict=True))
        # Else variables that wait for their values elsewhere would get them here, as a part of the program.
        with keras.StatelessScope(state_mapping=state, initialize_variables=False):
            return model(images, training=False)


def _write_torch(program, path, entries):
    # Else it would be stored too.
    program.example_inputs = None
    torch.export.save(program, path, extra_files={metadata.FILE_NAME: json.dumps(entries, ensure_ascii=False)})


def _write_onnx(program, path, output, opset, entries):
    size = sum(weight.nbytes for weight in program.state_dict.values())
    if size > LARGEST_ONNX:
        raise ValueError(f"The weights are too large for one ONNX file: {size:,} bytes, at most {LARGEST_ONNX:,}.")
    onnx_program = torch.onnx.export(
        program,
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        input_names=["images"],
        output_names=[output],
        opset_version=opset,
        verbose=False,
    )
    for node in onnx_program.model.graph:
        node.metadata_props.clear()
    onnx_program.model.metadata_props.update(metadata.to_onnx(entries))
    onnx_program.save(path, external_data=False)
