import numpy as np
import pytest

from keras_ci2p.layers import PositionEmbedding
from keras_ci2p.layers.embedding import cubic_resize_matrix, resize_position_embedding


# Numpy against torch, once is enough.
@pytest.mark.once
@pytest.mark.parametrize("new_grid", [(16, 16), (24, 12), (8, 20), (5, 7)])
def test_resizing_is_that_of_torch(new_grid, rng):
    import torch

    embedding = rng.standard_normal((1, 256, 4)).astype("float32")
    table = torch.tensor(embedding.reshape(1, 16, 16, 4)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(table, size=new_grid, mode="bicubic", align_corners=False)
    expected = expected.permute(0, 2, 3, 1).reshape(1, -1, 4).numpy()
    np.testing.assert_allclose(resize_position_embedding(embedding, (16, 16), new_grid), expected, atol=1e-5)


def test_same_grid_keeps_the_values(rng):
    embedding = rng.standard_normal((1, 6, 4)).astype("float32")
    np.testing.assert_array_equal(resize_position_embedding(embedding, (2, 3), (2, 3)), embedding)


def test_rows_sum_to_one():
    np.testing.assert_allclose(cubic_resize_matrix(7, 16).sum(1), 1)


def test_wrong_number_of_tokens():
    with pytest.raises(ValueError, match="grid"):
        PositionEmbedding((2, 3))(np.zeros((1, 5, 4), "float32"))
