import zipfile

import numpy as np
import pytest
from fuzz import fuzz

from keras_ci2p.convert import CheckpointError, from_compressai
from keras_ci2p.convert.state_dict import read_state_dict


def test_mutated_checkpoints(tmp_path):
    outcomes = fuzz(300, seed=1, directory=tmp_path)
    assert sum(n for (_, outcome), n in outcomes.items() if outcome == "refused") > 200


def test_zip_bomb(tmp_path):
    path = tmp_path / "bomb.pth.tar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000_000))
    with pytest.raises(CheckpointError, match="compressed"):
        from_compressai(path)


def test_what_a_real_training_checkpoint_holds_beside_its_weights(tmp_path, monkeypatch):
    """mmengine's HistoryBuffer and numpy values, from a process that has no mmengine."""
    import sys
    import types

    import torch

    name = "mmengine.logging.history_buffer"
    module = types.ModuleType(name)

    class HistoryBuffer:
        def __init__(self):
            self._log_history = np.array([1.0, 2.0])
            self._count_history = np.array([1, 1])
            self._statistics_methods = {"max": np.float64(2.0)}

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = name, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    with monkeypatch.context() as patched:
        for part in ("mmengine", "mmengine.logging"):
            patched.setitem(sys.modules, part, types.ModuleType(part))
        patched.setitem(sys.modules, name, module)
        stored = {
            "state_dict": {"weight": torch.arange(3.0)},
            "message_hub": {"loss": HistoryBuffer(), "epoch": np.int64(3)},
            "meta": {"seed": 1, "lr": np.float32(0.1)},
        }
        torch.save(stored, tmp_path / "epoch_3.pth")
    state = read_state_dict(tmp_path / "epoch_3.pth")
    np.testing.assert_array_equal(state["weight"], [0, 1, 2])


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "subprocess.Popen"])
def test_stand_ins_open_no_door(tmp_path, name):
    import importlib

    import torch

    witness = tmp_path / "witness"
    module, function = name.rsplit(".", 1)

    class Attack:
        def __reduce__(self):
            code = f"open({str(witness)!r}, 'w')" if function == "eval" else f"touch {witness}"
            return getattr(importlib.import_module(module), function), (code,)

    torch.save({"state_dict": {}, "message_hub": Attack()}, tmp_path / "attack.pth")
    with pytest.raises(CheckpointError, match="Nothing in it was executed"):
        read_state_dict(tmp_path / "attack.pth")
    assert not witness.exists()
