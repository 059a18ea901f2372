"""Files: what is written comes back to the bit, and takes the bytes of the formula and a little more."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.measure import checkpoint_bytes, file_bytes, read_file, write_file


def model(dtype=jnp.float32):
    """Parameters with a leaf of every kind of mask."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "dense": {"kernel": jax.random.normal(keys[0], (65, 31), dtype), "bias": jnp.arange(31, dtype=dtype)},
        "channels": jax.random.normal(keys[1], (3, 17), dtype),
        "gone": jax.random.normal(keys[2], (5, 5), dtype),
        "count": jnp.arange(3),
    }
    masks = {
        "dense": {"kernel": jax.random.uniform(keys[3], (65, 31)) < 0.1, "bias": jnp.asarray(True)},
        "channels": (jnp.arange(17) % 2 == 0)[None, :],
        "gone": jnp.asarray(False),
        "count": True,
    }
    return params, masks


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("pruned", [True, False])
def test_round_trip(tmp_path: Path, dtype, pruned: bool) -> None:
    params, masks = model(dtype)
    path = write_file(tmp_path / "model", params, masks if pruned else None)
    assert path.name == "model.npz"
    back = read_file(path, jax.eval_shape(lambda: params))
    expected = jp.apply_masks(params, masks) if pruned else params
    jax.tree.map(np.testing.assert_array_equal, back, expected)
    assert jax.tree.map(lambda x: x.dtype, back) == jax.tree.map(lambda x: x.dtype, expected)


@pytest.mark.parametrize("pruned", [True, False])
def test_size_is_the_formula_and_headers(tmp_path: Path, pruned: bool) -> None:
    params, masks = model()
    found = file_bytes(params, masks if pruned else None)
    formula = checkpoint_bytes(params, masks)["bitmask" if pruned else "dense"]
    assert found.value == write_file(tmp_path / "x.npz", params, masks if pruned else None).stat().st_size
    assert found.kind == "measured"
    assert found.value is not None
    assert formula.value is not None
    arrays = 9 if pruned else 5
    assert formula.value < found.value <= formula.value + arrays * 400 + 200


def test_says_what_is_wrong(tmp_path: Path) -> None:
    params, masks = model()
    path = write_file(tmp_path / "model.npz", params, masks)
    with pytest.raises(ValueError, match="dense/kernel"):
        read_file(path, {**params, "dense": {**params["dense"], "kernel": jnp.zeros((4, 4))}})
    with pytest.raises(ValueError, match="channels does not fit float16"):
        read_file(path, jax.tree.map(lambda x: x.astype(jnp.float16), params))
    with pytest.raises(ValueError, match="extra is not in the file"):
        read_file(path, {**params, "extra": jnp.zeros(2)})
    with pytest.raises(ValueError, match="also holds gone"):
        read_file(path, {name: leaf for name, leaf in params.items() if name != "gone"})
    with pytest.raises(ValueError, match="does not broadcast"):
        write_file(path, {"w": jnp.zeros(3)}, {"w": jnp.ones(2, bool)})
