import json

import keras
import numpy as np
import pytest

from keras_ci2p import ViT
from keras_ci2p.training.run_dir import CheckpointCorrupt, Checkpoints


@pytest.fixture
def make(nano, rng):
    images = rng.uniform(0, 255, (8, 32, 32, 3)).astype("float32")
    labels = np.arange(8) % 2

    def build(fit=False, **kwargs):
        model = ViT((32, 32, 3), num_classes=2, drop_path_rate=0.5, **{**nano, **kwargs})
        model.compile(keras.optimizers.AdamW(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        if fit:
            model.fit(images, labels, verbose=0)
        return model

    return build


def state(model):
    metrics = {id(v) for v in model.metrics_variables}
    variables = [v for v in model.variables if id(v) not in metrics] + list(model.optimizer.variables)
    return {f"{i} {v.name}": keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}


def test_everything_comes_back(make, tmp_path):
    model = make(fit=True)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(model) is None
    checkpoints.save(3, model, {"history": [{"loss": 1.5}]})
    other = make()
    assert checkpoints.restore(other) == {"history": [{"loss": 1.5}]}
    expected, actual = state(model), state(other)
    assert any("seed" in path for path in expected), "random states are part of it"
    assert any("momentum" in path or "velocity" in path for path in expected), "and the optimizer's"
    for path, value in expected.items():
        np.testing.assert_array_equal(actual[path], value, err_msg=path)


def test_only_the_newest_is_kept(make, tmp_path):
    model = make(fit=True)
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2, 10):
        checkpoints.save(epoch, model, epoch)
        assert [path.name for path in tmp_path.iterdir()] == [f"epoch-{epoch:04d}"]
    assert checkpoints.restore(make()) == 10


def test_half_written_ones_do_not_count(make, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make(fit=True), "first")
    (tmp_path / "epoch-0002.partial-1a2b3c4d").mkdir()
    assert checkpoints.restore(make()) == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


def test_damage_and_another_model_are_refused(make, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make(fit=True), None)
    with pytest.raises(CheckpointCorrupt, match="another model"):
        checkpoints.restore(make(num_layers=1))
    path = tmp_path / "epoch-0001" / "state.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    model = make()
    before = state(model)
    with pytest.raises(CheckpointCorrupt, match="checksum"):
        checkpoints.restore(model)
    for name, value in state(model).items():
        if name in before:
            np.testing.assert_array_equal(value, before[name])
    (tmp_path / "epoch-0001" / "record.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointCorrupt):
        checkpoints.restore(make())


def test_no_code_is_loaded(make, tmp_path):
    """A state file with a pickled object in it is refused, not executed."""
    from keras_ci2p.utils import file_sha256 as sha256

    checkpoints = Checkpoints(tmp_path)
    model = make(fit=True)
    checkpoints.save(1, model, None)
    path = tmp_path / "epoch-0001" / "state.npz"
    arrays = dict(np.load(path))
    arrays["00000"] = np.array([print], dtype=object)
    np.savez(path, **arrays)
    record = json.loads((path.parent / "record.json").read_text())
    (path.parent / "record.json").write_text(json.dumps({**record, "sha256": sha256(path)}))
    with pytest.raises(CheckpointCorrupt, match="pickle"):
        checkpoints.restore(make())
