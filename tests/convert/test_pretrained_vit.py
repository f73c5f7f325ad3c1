import re

import keras
import numpy as np
import pytest
from torchvision_operators import define_torchvision_operators

from keras_ci2p import CI2PViT, ViT
from keras_ci2p.convert import CheckpointError, from_vit, to_mmpretrain
from keras_ci2p.layers.embedding import resize_position_embedding

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once

COMPRESSOR = {"num_filters": 8, "latent_channels": 12}


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


@pytest.fixture
def timm_state(rng):
    """A ViT of timm: 2 blocks, 32 wide, patches of 16 in a 4x4 grid, a class token, 5 classes."""
    d, h = 32, 48
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 17, d),
        "patch_embed.proj.weight": (d, 3, 16, 16),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
        "head.weight": (5, d),
        "head.bias": (5,),
    }
    for i in range(2):
        block = {
            "norm1": (d,),
            "attn.qkv": (3 * d, d),
            "attn.proj": (d, d),
            "norm2": (d,),
            "mlp.fc1": (h, d),
            "mlp.fc2": (d, h),
        }
        for name, shape in block.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
    return {key: rng.standard_normal(shape).astype("float32") for key, shape in shapes.items()}


def hugging_face(state, prefix=""):
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "head": "classifier",
        "norm": "layernorm",
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    renamed = {}
    for key, value in state.items():
        match = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+?)(\.weight|\.bias)?", key)
        block, name, leaf = match[1], match[2], match[3] or ""
        at = f"encoder.layer.{block}." if block else ""
        if name == "attn.qkv":
            for part, rows in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                renamed[f"{prefix}{at}attention.attention.{part}{leaf}"] = rows
        else:
            renamed[("" if name == "head" else prefix) + at + names[name] + leaf] = value
    return renamed


def transformer(model):
    return [to_numpy(w) for layer in model.layers if layer.name[:4] in ("bloc", "norm") for w in layer.weights]


@pytest.mark.every_backend
def test_ci2p_takes_the_transformer(timm_state, nano):
    model = CI2PViT((64, 64, 3), num_classes=3, compressor=COMPRESSOR, **nano)
    untouched = [to_numpy(w) for w in (*model.patch_generator.weights, *model.head.weights)]
    report = from_vit(timm_state, model)
    assert len(report["used"]) == 26
    assert report["ignored"].keys() == timm_state.keys() - set(report["used"])
    assert report["ignored"]["cls_token"] == "the model has no class token"
    block = model.get_layer("block_1")
    np.testing.assert_array_equal(to_numpy(block.qkv.kernel), timm_state["blocks.1.attn.qkv.weight"].T)
    np.testing.assert_array_equal(to_numpy(block.mlp_output.bias), timm_state["blocks.1.mlp.fc2.bias"])
    for before, weight in zip(untouched, (*model.patch_generator.weights, *model.head.weights), strict=True):
        np.testing.assert_array_equal(to_numpy(weight), before)


@pytest.mark.every_backend
@pytest.mark.parametrize("size", [(64, 64, 3), (96, 32, 3)])
def test_vit_takes_the_embeddings_too(timm_state, nano, size):
    model = ViT(size, num_classes=3, **nano)
    report = from_vit(timm_state, model)
    assert set(report["ignored"]) == {"cls_token", "head.weight", "head.bias"}
    patches = timm_state["pos_embed"][:, 1:]
    expected = resize_position_embedding(patches, (4, 4), (size[0] // 16, size[1] // 16))
    np.testing.assert_allclose(to_numpy(model.get_layer("position_embedding").embedding), expected, atol=1e-6)
    kernel = timm_state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(to_numpy(model.get_layer("patch_embedding").kernel), kernel)


TOKENS = {
    "none": {},
    "class token": {"cls_token": 1},
    "class and distillation token": {"cls_token": 1, "dist_token": 1},
    "class token and registers": {"cls_token": 1, "reg_token": 4},
}


def with_tokens(state, tokens, rows, embeds_tokens=True):
    """The state with these tokens before its patches, and a position embedding of `rows` random rows for the latter."""
    rng = np.random.default_rng(3)
    state = {key: value for key, value in state.items() if key != "cls_token"}
    state |= {key: rng.standard_normal((1, count, 32)).astype("float32") for key, count in tokens.items()}
    patches = rng.standard_normal((1, rows, 32)).astype("float32")
    before = np.full((1, sum(tokens.values()) * embeds_tokens, 32), 77, "float32")
    return {**state, "pos_embed": np.concatenate([before, patches], axis=1)}, patches


@pytest.mark.parametrize("embeds_tokens", [True, False])
@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize(
    "size, rows, grid", [((128, 64), 32, (8, 4)), ((48, 176), 33, (3, 11)), ((64, 112), 25, (5, 5))]
)
def test_positions_of_any_grid_stay_where_they_are(timm_state, nano, size, rows, grid, tokens, embeds_tokens):
    """The model's own grid is copied, a square resized, whatever tokens stand before it."""
    model = ViT((*size, 3), **nano)
    state, patches = with_tokens(timm_state, tokens, rows, embeds_tokens)
    from_vit(state, model)
    own_grid = (size[0] // 16, size[1] // 16)
    expected = resize_position_embedding(patches, grid, own_grid)
    np.testing.assert_array_equal(to_numpy(model.get_layer("position_embedding").embedding), expected)


def test_positions_without_a_grid_are_refused(timm_state, nano):
    model = ViT((128, 64, 3), **nano)
    before = to_numpy(model.get_layer("position_embedding").embedding)
    for tokens, rows in (({}, 33), ({"cls_token": 1}, 30), ({"cls_token": 1, "dist_token": 1}, 15)):
        state, _ = with_tokens(timm_state, tokens, rows)
        count = state["pos_embed"].shape[1]
        with pytest.raises(CheckpointError, match=f"pos_embed has {count} positions, .*square or 8 x 4"):
            from_vit(state, model)
    np.testing.assert_array_equal(to_numpy(model.get_layer("position_embedding").embedding), before)


def test_positions_of_two_possible_grids_need_to_be_told(timm_state, nano):
    """36 positions are 6 x 6 or the model's own 9 x 4; 10 behind a class token 3 x 3, or without 5 x 2."""
    for size, tokens, rows, embeds, grid in (
        ((144, 64), {}, 36, True, (6, 6)),
        ((144, 64), {}, 36, True, (9, 4)),
        ((80, 32), {"cls_token": 1}, 9, True, (3, 3)),
        ((80, 32), {"cls_token": 1}, 10, False, (5, 2)),
        ((64, 64), {"cls_token": 1}, 12, True, (2, 6)),
    ):
        model = ViT((*size, 3), **nano)
        state, patches = with_tokens(timm_state, tokens, rows, embeds)
        with pytest.raises(CheckpointError, match="`grid`"):
            from_vit(state, model)
        from_vit(state, model, grid=grid)
        expected = resize_position_embedding(patches, grid, (size[0] // 16, size[1] // 16))
        np.testing.assert_array_equal(to_numpy(model.get_layer("position_embedding").embedding), expected)
    with pytest.raises(CheckpointError, match="no 5 x 2 grid"):
        from_vit(timm_state, model, grid=(5, 2))


def test_other_patch_size(timm_state, nano):
    report = from_vit(timm_state, ViT((64, 64, 3), patch_size=8, **nano))
    assert "8 wide" in report["ignored"]["patch_embed.proj.weight"]


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_hugging_face_layout(timm_state, nano, prefix):
    reference, model = ViT((64, 64, 3), **nano), ViT((64, 64, 3), **nano)
    from_vit(timm_state, reference)
    report = from_vit(hugging_face(timm_state, prefix), model)
    assert set(report["ignored"]) == {"cls_token", "head.weight", "head.bias"}
    for a, b in zip(model.backbone.weights, reference.backbone.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


def test_mmpretrain_layout(nano):
    source, model = ViT((64, 64, 3), **nano), ViT((64, 64, 3), **nano)
    state = {key: value for key, value in to_mmpretrain(source).items() if not key.startswith("head.")}
    from_vit(state, model)
    for a, b in zip(model.backbone.weights, source.backbone.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


def test_what_does_not_fit_changes_nothing(timm_state, nano):
    model = ViT((64, 64, 3), **nano)
    before = transformer(model)
    deeper = {**timm_state, "blocks.2.norm1.weight": np.ones(32)}
    scaled = {**timm_state, "blocks.0.ls1.gamma": np.ones(32)}
    shallower = {key: value for key, value in timm_state.items() if not key.startswith("blocks.1.")}
    wider = {**timm_state, "blocks.0.mlp.fc1.weight": np.ones((64, 32))}
    for state, message in (
        (deeper, "blocks.2.norm1.weight"),
        (scaled, "blocks.0.ls1.gamma"),
        (shallower, "lacks blocks.1"),
        (wider, r"blocks.0.mlp.fc1.weight has shape \(64, 32\)"),
        ({"conv.weight": np.ones(3)}, "no weights of timm or Hugging Face or mmpretrain"),
    ):
        with pytest.raises(CheckpointError, match=message):
            from_vit(state, model)
    for a, b in zip(before, transformer(model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("layout", ["timm", "hugging_face", "mmpretrain"])
def test_what_wraps_a_transformer(timm_state, nano, layout):
    """DDP, compilation, Lightning, DINO's teacher and student, MAE's and DeiT's `model`."""
    reference = ViT((64, 64, 3), **nano)
    state = timm_state
    if layout == "hugging_face":
        state = hugging_face(timm_state)
    elif layout == "mmpretrain":
        source = ViT((64, 64, 3), **nano)
        state = {key.removeprefix("backbone."): value for key, value in to_mmpretrain(source).items()}
    from_vit(state, reference)

    def behind(prefix, values=state):
        return {f"{prefix}{key}": value for key, value in values.items()}

    random = {key: value + 1 for key, value in state.items()}
    for stored in (
        {"model": state, "args": None},
        behind("module._orig_mod."),
        {"state_dict": {**behind("model."), **behind("ema_model.", random), "criterion.weight": np.ones(3)}},
        {"teacher": behind("module.backbone."), "student": behind("module.backbone.", random)},
        {"model": state, "model_ema": random, "optimizer": {"state": {0: {"exp_avg": np.ones(3)}}}},
    ):
        model = ViT((64, 64, 3), **nano)
        report = from_vit(stored, model)
        for a, b in zip(model.backbone.weights, reference.backbone.weights, strict=True):
            np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    from_vit(stored, model, key="model_ema")
    assert not np.array_equal(to_numpy(model.get_layer("norm").gamma), to_numpy(reference.get_layer("norm").gamma))
    assert report["used"]


def test_the_decoder_of_pretraining_is_left_out(timm_state, nano):
    pretrained = {
        **timm_state,
        "mask_token": np.ones((1, 1, 16)),
        "decoder_blocks.0.attn.qkv.weight": np.ones((48, 16)),
    }
    report = from_vit({"model": pretrained}, ViT((64, 64, 3), **nano))
    assert {"mask_token", "decoder_blocks.0.attn.qkv.weight"} <= report["ignored"].keys()


@pytest.mark.parametrize("layout", ["timm", "hugging_face"])
def test_attention_without_biases(timm_state, nano, layout):
    state = hugging_face(timm_state, "vit.") if layout == "hugging_face" else timm_state
    without = {key: value for key, value in state.items() if not re.search(r"(attn.qkv|query|key|value)\.bias$", key)}
    assert len(without) < len(state)
    model = ViT((64, 64, 3), **nano)
    block = model.get_layer("block_0")
    block.qkv.bias.assign(np.ones(96))
    report = from_vit(without, model)
    assert not to_numpy(block.qkv.bias).any() and "blocks.0.attn.qkv.bias" not in report["used"]
    np.testing.assert_array_equal(to_numpy(block.qkv.kernel), timm_state["blocks.0.attn.qkv.weight"].T)
    with pytest.raises(CheckpointError, match="lacks"):
        # Of one block alone.
        from_vit({key: timm_state[key] for key in timm_state if key != "blocks.0.attn.qkv.bias"}, model)


# Timm runs on torch.
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((64, 96), {"reg_tokens": 4, "qkv_bias": False}),
        ((32, 192), {"no_embed_class": True, "class_token": False, "global_pool": "avg"}),
        ((224, 448), {"num_classes": 0}),
        ((96, 64), {"reg_tokens": 4, "no_embed_class": True}),
    ],
)
def test_positions_of_a_module_of_timm(nano, size, options, tmp_path):
    """The module itself, its state dict, and both in files."""
    import torch

    define_torchvision_operators()
    from timm.models.vision_transformer import VisionTransformer

    theirs = VisionTransformer(size, embed_dim=32, depth=2, num_heads=2, mlp_ratio=1.5, **options)
    before = 0 if theirs.no_embed_class else theirs.num_prefix_tokens
    torch.save(theirs, tmp_path / "module.pt")
    torch.save({"model_state": torch.nn.DataParallel(theirs).state_dict()}, tmp_path / "state.pt")
    for source in (theirs, theirs.state_dict(), tmp_path / "module.pt", tmp_path / "state.pt"):
        model = ViT((*size, 3), **nano)
        from_vit(source, model)
        positions = to_numpy(model.get_layer("position_embedding").embedding)
        np.testing.assert_array_equal(positions, theirs.pos_embed.detach().numpy()[:, before:])
        tokens = np.random.default_rng(0).standard_normal((1, 6, 32)).astype("float32")
        with torch.no_grad():
            expected = theirs.blocks[1](theirs.blocks[0](torch.tensor(tokens))).numpy()
        actual = to_numpy(model.get_layer("block_1")(model.get_layer("block_0")(tokens)))
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_each_block_of_timm():
    """The same tokens through timm's ViT-B/16 and ours: every block within 2e-4."""
    import torch

    define_torchvision_operators()
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model("vit_base_patch16_224").eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model = CI2PViT((256, 256, 3), num_layers=12)
    from_vit(theirs.state_dict(), model)
    x = torch.randn(2, 64, 768)
    with torch.no_grad():
        for i, block in enumerate(theirs.blocks):
            expected, actual = block(x), model.get_layer(f"block_{i}")(x)
            assert (actual - expected).abs().max() < 2e-4, i
            x = expected
        assert (model.get_layer("norm")(x) - theirs.norm(x)).abs().max() < 2e-4


@pytest.mark.every_backend
def test_keras_hub(nano):
    import keras_hub

    theirs = keras_hub.models.ViTBackbone(
        image_shape=(64, 64, 3), patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=48
    )
    model = ViT((64, 64, 3), **nano)
    report = from_vit(theirs, model)
    assert set(report["ignored"]) == {"cls_token"}
    tokens = np.random.default_rng(0).standard_normal((2, 16, 32)).astype("float32")
    encoder = next(layer for layer in theirs.layers if type(layer).__name__ == "ViTEncoder")
    expected = to_numpy(encoder(tokens))
    x = tokens
    for name in ("block_0", "block_1", "norm"):
        x = model.get_layer(name)(x)
    np.testing.assert_allclose(to_numpy(x), expected, atol=2e-5)
    with pytest.raises(CheckpointError, match="no Vision Transformer"):
        from_vit(model, model)


@pytest.mark.parametrize("use_class_token", [True, False])
def test_keras_hub_of_any_image_shape(nano, use_class_token):
    """KerasHub's model tells its grid: 9 x 4 = 36 positions are no square of 6."""
    import keras_hub

    theirs = keras_hub.models.ViTBackbone(
        image_shape=(144, 64, 3),
        patch_size=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=48,
        use_class_token=use_class_token,
    )
    embedding = next(layer for layer in theirs.layers if type(layer).__name__ == "ViTPatchingAndEmbedding")
    positions = to_numpy(embedding.position_embedding.embeddings)[None, int(use_class_token) :]
    for size in ((144, 64), (64, 96)):
        model = ViT((*size, 3), **nano)
        from_vit(theirs, model)
        expected = resize_position_embedding(positions, (9, 4), (size[0] // 16, size[1] // 16))
        np.testing.assert_array_equal(to_numpy(model.get_layer("position_embedding").embedding), expected)
