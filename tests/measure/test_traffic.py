"""Bytes of checkpoints, federated updates and gradients against the formulas for every position by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.measure import checkpoint_bytes, gradient_bytes, update_bytes


def exactly(kept: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.arange(size) < kept)


@pytest.mark.parametrize(
    ("sparsity", "bitmask", "coo", "bound"), [(0.9, 7.6, 5, 8.7), (0.99, 24, 50, 80), (0.5, 1.88, 1, 1.88)]
)
def test_bits_a_weight(sparsity: float, bitmask: float, coo: float, bound: float) -> None:
    """1 + 32 (1 - s), 64 (1 - s) and H(s) + 32 (1 - s) bits; ratios as published (reference, 4c)."""
    size = 40_000
    params = {"w": jax.ShapeDtypeStruct((200, 200), jnp.float32)}
    masks = {"w": exactly(round((1 - sparsity) * size), size).reshape(200, 200)}
    found = {form: figure.value for form, figure in checkpoint_bytes(params, masks).items()}
    share = 1 - sparsity
    entropy = -(share * np.log2(share) + sparsity * np.log2(sparsity))
    assert found["dense"] == 4 * size
    assert found["bitmask"] == pytest.approx(size * (1 + 32 * share) / 8)
    assert found["coo"] == pytest.approx(size * 64 * share / 8)
    assert found["entropy bound"] == pytest.approx(size * (entropy + 32 * share) / 8)
    ratios = [found["dense"] / found[form] for form in ("bitmask", "coo", "entropy bound")]
    assert ratios == pytest.approx([bitmask, coo, bound], rel=0.02)


def test_masks_are_sent_in_their_own_shape() -> None:
    params = {"channels": jnp.zeros((10, 16), jnp.bfloat16), "whole": jnp.zeros(7), "gone": jnp.zeros((3, 3))}
    masks = {"channels": (jnp.arange(16) < 4)[None, :], "whole": True, "gone": False}
    found = {form: figure.value for form, figure in checkpoint_bytes(params, masks).items()}
    assert found["dense"] == 10 * 16 * 2 + 7 * 4 + 9 * 4
    assert found["bitmask"] == 2 + 40 * 2 + 7 * 4
    assert found["coo"] == 4 * 4 + 40 * 2 + 7 * 4
    assert list(checkpoint_bytes(params)) == ["dense"]
    assert {figure.kind for figure in checkpoint_bytes(params, masks).values()} == {"theoretical"}


def test_updates() -> None:
    size = 800
    params = {"w": jnp.zeros((20, 40), jnp.float32), "b": jnp.zeros(5, jnp.float32)}
    first = exactly(80, size)
    second = first.copy()
    second[np.flatnonzero(first)[:3]] = False
    second[np.flatnonzero(~first)[:3]] = True
    far = np.roll(first, 1)
    previous, few, many = ({"w": mask.reshape(20, 40), "b": True} for mask in (first, second, far))
    values = 80 * 4 + 5 * 4
    same = update_bytes(params, previous, previous)
    assert same["dense"].value == size * 4 + 20
    assert same["mask and values"].value == size / 8 + values
    assert same["values only"].value == same["mask delta and values"].value == values
    moved = update_bytes(params, few, previous)
    assert moved["values only"].value is None
    assert "6 positions" in moved["values only"].note
    assert moved["mask delta and values"].value == values + 6 * 4
    assert (first != far).sum() * 4 > size / 8  # so a bitmask is shorter than a list
    assert update_bytes(params, many, previous)["mask delta and values"].value == values + size / 8
    assert list(update_bytes(params, few)) == ["dense", "mask and values"]


def test_gradients() -> None:
    params = {"w": jnp.zeros((20, 40), jnp.float32), "b": jnp.zeros(5, jnp.float32)}
    masks = {"w": exactly(80, 800).reshape(20, 40), "b": True}
    found = {form: figure.value for form, figure in gradient_bytes(params, masks, devices=8).items()}
    assert found["operand dense"] == 805 * 4
    assert found["operand kept"] == 85 * 4
    assert found["sent kept"] == pytest.approx(85 * 4 * 2 * 7 / 8)
    assert gradient_bytes(params, devices=1)["sent dense"].value == 0


def test_says_what_is_wrong() -> None:
    params = {"w": jnp.zeros((2, 4))}
    with pytest.raises(ValueError, match="devices=0"):
        gradient_bytes(params, devices=0)
    with pytest.raises(ValueError, match="previous"):
        update_bytes(params, {"w": True}, {"w": jnp.ones(3, bool)})
    with pytest.raises(ValueError, match="masks"):
        checkpoint_bytes(params, {"w": jnp.ones(3, bool)})
