import json

import keras
import numpy as np
import pytest
from golden_weights import GOLDEN, golden_weight

from keras_ci2p import CI2PViT, CI2PViTDualScale, ViT
from keras_ci2p.convert import CheckpointError, from_mmpretrain, to_mmpretrain
from keras_ci2p.convert.mmpretrain import mmpretrain_entries
from keras_ci2p.layers.embedding import resize_position_embedding

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once

DUAL = {"early_dim": 16, "merge_at": 1}


@pytest.fixture(params=["ci2p", "ci2p_relu", "ci2p_dual", "vit"])
def state(request, nano):
    """A state dict of a small model in the layout of the paper's code."""
    if request.param == "vit":
        model = ViT((64, 64, 3), num_classes=3, **nano)
    else:
        relu = "-relu" if request.param == "ci2p_relu" else ""
        compressor = {"architecture": f"bmshj2018-factorized{relu}", "num_filters": 8, "latent_channels": 12}
        is_dual = request.param == "ci2p_dual"
        make, sizes = (CI2PViTDualScale, DUAL | nano) if is_dual else (CI2PViT, nano)
        model = make((64, 64, 3), num_classes=3, compressor=compressor, **sizes)
    return {entry.key: golden_weight(entry.key, entry.torch_shape) for entry in mmpretrain_entries(model)}


@pytest.mark.every_backend
def test_sizes_are_read_off_the_weights(state):
    model = from_mmpretrain(state, num_heads=2)
    backbone = model.backbone
    assert (backbone.hidden_dim, backbone.num_layers, backbone.mlp_dim, backbone.num_heads) == (32, 2, 48, 2)
    assert model.num_classes == 3
    assert model.image_shape == ((256, 256, 3) if isinstance(model, CI2PViT) else (64, 64, 3))
    if not isinstance(model, ViT):
        assert model.freeze_compressor
    if isinstance(model, CI2PViTDualScale):
        assert {name: getattr(backbone, name) for name in DUAL} == DUAL


def test_position_embedding_is_resized(state):
    model = from_mmpretrain(state, image_shape=(96, 32, 3))
    assert model(np.zeros((1, 96, 32, 3), "uint8")).shape == (1, 3)


@pytest.mark.parametrize("kind", ["vit", "ci2p_dual"])
def test_positions_of_any_grid_come_back(nano, kind):
    """Of a model that is not square, told by its image's shape or its grid."""
    sizes = {**nano, "num_heads": 2}
    if kind == "ci2p_dual":
        compressor = {"num_filters": 8, "latent_channels": 12}
        model = CI2PViTDualScale((192, 64, 3), compressor=compressor, **DUAL, **sizes)
    else:
        model = ViT((192, 64, 3), **sizes)
    positions = keras.ops.convert_to_numpy(model.get_layer("position_embedding").embedding)
    state = to_mmpretrain(model)
    for arguments in ({"image_shape": (192, 64, 3)}, {"grid": (12, 4)}):
        copy = from_mmpretrain(state, num_heads=2, **arguments)
        assert copy.image_shape == (192, 64, 3)
        found = keras.ops.convert_to_numpy(copy.get_layer("position_embedding").embedding)
        np.testing.assert_array_equal(found, positions)
    resized = from_mmpretrain(state, (64, 64, 3), num_heads=2, grid=(12, 4)).get_layer("position_embedding").embedding
    expected = resize_position_embedding(positions, (12, 4), (4, 4))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(resized), expected)
    for arguments in ({}, {"image_shape": (64, 64, 3)}, {"grid": (5, 5)}):
        with pytest.raises(CheckpointError, match="pos_embed has 48 positions, which make no"):
            from_mmpretrain(state, num_heads=2, **arguments)


@pytest.mark.parametrize("kind", ["pth", "pth in a training checkpoint", "safetensors"])
def test_files_and_dicts_agree(state, kind, tmp_path):
    if kind == "safetensors":
        from safetensors.numpy import save_file

        path = tmp_path / "model.safetensors"
        save_file(state, path)
    else:
        import torch

        path = tmp_path / "model.pth"
        tensors = {key: torch.tensor(value) for key, value in state.items()}
        torch.save({"state_dict": tensors, "meta": {"epoch": 3}} if "training" in kind else tensors, path)
    for loaded, given in zip(from_mmpretrain(path).weights, from_mmpretrain(state).weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(loaded), keras.ops.convert_to_numpy(given))


def test_weights_of_another_type_are_refused(state):
    with pytest.raises(CheckpointError, match="head.fc.bias is of type int32"):
        from_mmpretrain({**state, "head.fc.bias": np.zeros(3, "int32")})


def test_missing_extra_and_misshapen_keys_are_named(state):
    key = "head.fc.bias"
    with pytest.raises(CheckpointError, match=f"lacks {key}"):
        from_mmpretrain({k: v for k, v in state.items() if k != key})
    with pytest.raises(CheckpointError, match="backbone.extra"):
        from_mmpretrain({**state, "backbone.extra": np.zeros(3)})
    with pytest.raises(CheckpointError, match=rf"{key} has shape \(4,\).*\(3,\)"):
        from_mmpretrain({**state, key: np.zeros(4)})
    with pytest.raises(CheckpointError, match=f"{key}.*not finite"):
        from_mmpretrain({**state, key: np.full(3, np.nan)})
    with pytest.raises(CheckpointError, match="no weights of the paper's code"):
        from_mmpretrain({"weight": np.zeros(3)})


@pytest.mark.every_backend
def test_round_trip_is_exact(state):
    model = from_mmpretrain(state, num_heads=2)
    back = to_mmpretrain(model)
    assert all(np.array_equal(back[key], value) and back[key].dtype == value.dtype for key, value in state.items())
    again = from_mmpretrain(back, num_heads=2)
    for one, other in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other))


@pytest.mark.parametrize(
    ("name", "model_class"), [("base_gdn", CI2PViT), ("dual_scale", CI2PViTDualScale), ("vit_b16", ViT)]
)
def test_every_key_of_the_reference_comes_back(name, model_class):
    """The paper's code loads strictly: the same keys and shapes, no more and no less."""
    shapes = json.loads((GOLDEN / "state_dict_shapes.json").read_text())[name]
    back = to_mmpretrain(model_class())
    assert {key: list(value.shape) for key, value in back.items()} == shapes


@pytest.mark.parametrize("state", ["ci2p_dual"], indirect=True)
def test_the_merge_is_in_one_block(state):
    merge = {key: value for key, value in state.items() if ".convReshape." in key}
    assert merge
    with pytest.raises(CheckpointError, match=r"convReshape.*Found in: \[\]"):
        from_mmpretrain({key: value for key, value in state.items() if key not in merge})
    twice = {key.replace(".blocks.1.", ".blocks.0."): value for key, value in merge.items()}
    with pytest.raises(CheckpointError, match=r"convReshape.*Found in: \[0, 1\]"):
        from_mmpretrain({**state, **twice})


def test_known_constants_are_no_error(state):
    from_mmpretrain({**state, "backbone.any.bn.num_batches_tracked": np.array(3)})


def as_mmengine_saves(state, classes=("ant", "bee", "cow")):
    return {
        "meta": {"epoch": 3, "dataset_meta": {"classes": classes}},
        "state_dict": {
            **state,
            "data_preprocessor.mean": np.array([123.675, 116.28, 103.53], "float32").reshape(3, 1, 1),
            "data_preprocessor.std": np.array([58.395, 57.12, 57.375], "float32").reshape(3, 1, 1),
            **{f"ema_{key.replace('.', '_')}": value for key, value in state.items()},
        },
        "ema_state_dict": {"steps": np.array(9), **{f"module.{key}": 2 * value for key, value in state.items()}},
        "optimizer": {"state": {}, "param_groups": []},
    }


def arrays(model):
    return [keras.ops.convert_to_numpy(weight) for weight in model.weights]


def test_what_mmengine_stores_beside_the_weights(state):
    stored = as_mmengine_saves(state)
    model = from_mmpretrain(stored)
    assert model.class_names == ["ant", "bee", "cow"]
    for loaded, given in zip(arrays(model), arrays(from_mmpretrain(state)), strict=True):
        np.testing.assert_array_equal(loaded, given)
    averaged = from_mmpretrain(stored, key="ema_state_dict")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(averaged.head.bias), 2 * state["head.fc.bias"])
    assert from_mmpretrain(as_mmengine_saves(state, classes=("ant", "bee"))).class_names is None


@pytest.mark.parametrize("state", ["vit", "ci2p"], indirect=True)
def test_images_normalised_otherwise_are_refused(state):
    stored = as_mmengine_saves(state)
    stored["state_dict"]["data_preprocessor.mean"] = np.full((3, 1, 1), 127.5, "float32")
    with pytest.raises(CheckpointError, match=r"normalised with mean \[127.5, 127.5, 127.5\], those of this package"):
        from_mmpretrain(stored)


@pytest.mark.parametrize("state", ["vit", "ci2p_dual"], indirect=True)
def test_a_fresh_head(state):
    headless = {key: value for key, value in state.items() if not key.startswith("head.")}
    with pytest.raises(CheckpointError, match="has no head .*give `num_classes`"):
        from_mmpretrain(headless)
    for stored in (headless, as_mmengine_saves(state)):
        model = from_mmpretrain(stored, num_classes=5)
        assert model.num_classes == 5 and model.class_names is None
        back = to_mmpretrain(model)
        assert all(np.array_equal(back[key], value) for key, value in headless.items())
        assert np.count_nonzero(back["head.fc.weight"])


@pytest.mark.parametrize("state", ["vit"], indirect=True)
def test_attention_without_biases(state):
    without = {key: value for key, value in state.items() if not key.endswith("attn.qkv.bias")}
    model = from_mmpretrain(without)
    assert not keras.ops.convert_to_numpy(model.get_layer("block_1").qkv.bias).any()
    with pytest.raises(CheckpointError, match="lacks backbone.layers.0.attn.qkv.bias"):
        from_mmpretrain({key: value for key, value in state.items() if key != "backbone.layers.0.attn.qkv.bias"})


class TestDamagedFiles:
    def write(self, tmp_path, state):
        import torch

        path = tmp_path / "model.pth"
        torch.save({key: torch.tensor(value) for key, value in state.items()}, path)
        return path

    def test_flipped_byte(self, state, tmp_path):
        path = self.write(tmp_path, state)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            from_mmpretrain(path)

    def test_cut_off(self, state, tmp_path):
        path = self.write(tmp_path, state)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(CheckpointError):
            from_mmpretrain(path)

    def test_empty_and_absent(self, tmp_path):
        (tmp_path / "empty.pth").touch()
        with pytest.raises(CheckpointError, match="empty"):
            from_mmpretrain(tmp_path / "empty.pth")
        with pytest.raises(CheckpointError, match="no checkpoint"):
            from_mmpretrain(tmp_path / "absent.pth")

    def test_code_is_not_executed(self, tmp_path):
        import torch

        witness = tmp_path / "witness"

        class Attack:
            def __reduce__(self):
                return open, (str(witness), "w")

        torch.save({"state_dict": Attack()}, tmp_path / "attack.pth")
        with pytest.raises(CheckpointError):
            from_mmpretrain(tmp_path / "attack.pth")
        assert not witness.exists()
