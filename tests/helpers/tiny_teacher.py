"""A teacher that takes no training."""

import json


def onnx_file(path, channels_first=False, metadata=None, probabilities=False, size=(32, 32)):
    """The logits are the means of red, green and blue; a feature map is every second pixel."""
    from onnx import TensorProto, checker, helper, save

    shape = ["batch", 3, *size] if channels_first else ["batch", *size, 3]
    rows, columns = (2, 3) if channels_first else (1, 2)
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["means"], keepdims=0),
        helper.make_node("Softmax" if probabilities else "Identity", ["means"], ["out"]),
        helper.make_node("Slice", ["images", "starts", "ends", "space", "steps"], ["features_2"]),
    ]
    values = {"axes": [rows, columns], "starts": [0, 0], "ends": [999, 999], "space": [rows, columns]}
    values["steps"] = [2, 2]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("features_2", TensorProto.FLOAT, ["batch", None, None, None]),
            helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 3]),
        ],
        [helper.make_tensor(name, TensorProto.INT64, [2], numbers) for name, numbers in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {f"keras_ci2p.{key}": json.dumps(value) for key, value in (metadata or {}).items()})
    checker.check_model(model)
    save(model, path)
    return path
