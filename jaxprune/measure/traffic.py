r"""Traffic: the bytes that a checkpoint, a federated update and a gradient exchange take, dense and under masks.

Formulas, exact to the byte for the payload; headers of files and messages come on top. Of a leaf of $n$ entries of
$b$ bytes, of which a mask keeps $k$:

=============  ==================================================
dense          $n b$
bitmask        $\lceil n / 8 \rceil + k b$
coo            $k (4 + b)$: an int32 index for each kept value
entropy bound  $n H(k / n) / 8 + k b$, $H$ in bits: what no code of random positions can go below
=============  ==================================================

A leaf with a scalar mask True is sent whole, one with False not at all. A mask with size-1 axes, such as that of
channels, is sent in its own shape.
"""

import math
from typing import Any

import jax
import numpy as np

from jaxprune.masks import check_masks_fit, kept_count
from jaxprune.measure.figure import Figure
from jaxprune.trees import PyTree

_INDEX_BYTES = 4
_INDEX_LIMIT = 2**31


def checkpoint_bytes(params: PyTree, masks: PyTree | None = None) -> dict[str, Figure]:
    """What the arrays of a checkpoint take, dense and in three sparse forms.

    Args:
      params: parameters, concrete or abstract.
      masks: a concrete mask tree for them; without it only the dense form is given.

    Returns:
      Theoretical bytes: "dense", "bitmask", "coo" and "entropy bound". `file_bytes` measures a file.

    Raises:
      ValueError: the masks do not fit the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.ones((2, 8), jnp.float32)}
      >>> masks = {"w": jnp.arange(16).reshape(2, 8) < 4}
      >>> {form: figure.value for form, figure in checkpoint_bytes(params, masks).items() if form != "entropy bound"}
      {'dense': 64.0, 'bitmask': 18.0, 'coo': 32.0}
    """
    result = {"dense": _figure(_dense(params), "entries x itemsize")}
    if masks is None:
        return result
    leaves = _leaves(params, masks)
    values = sum(leaf.values for leaf in leaves)
    return result | {
        "bitmask": _figure(values + sum(leaf.bitmask for leaf in leaves), "one bit a position, and the kept values"),
        "coo": _figure(values + sum(leaf.indices for leaf in leaves), "an int32 index for each kept value"),
        "entropy bound": _figure(
            values + sum(leaf.entropy for leaf in leaves),
            "entropy of the positions, and the kept values",
            "a bound for positions at random, by leaf; patterns with structure can take less",
        ),
    }


def update_bytes(params: PyTree, masks: PyTree, previous: PyTree | None = None) -> dict[str, Figure]:
    """What one client or the server sends in a round of federated training.

    Args:
      params: parameters, concrete or abstract.
      masks: the concrete masks of this round.
      previous: those of the last round, which the receiver has.

    Returns:
      Theoretical bytes: "dense"; "mask and values"; and with `previous`, "values only", which suffices where no mask
      has changed, and "mask delta and values": of each leaf the shorter of a new bitmask and the int32 positions that
      changed.

    Raises:
      ValueError: masks do not fit the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.ones((8, 8), jnp.float32)}
      >>> masks = {"w": jnp.arange(64).reshape(8, 8) < 16}
      >>> {form: figure.value for form, figure in update_bytes(params, masks, masks).items()}
      {'dense': 256.0, 'mask and values': 72.0, 'values only': 64.0, 'mask delta and values': 64.0}
    """
    leaves = _leaves(params, masks)
    values = sum(leaf.values for leaf in leaves)
    result = {
        "dense": _figure(_dense(params), "entries x itemsize"),
        "mask and values": _figure(
            values + sum(leaf.bitmask for leaf in leaves), "one bit a position, and the kept values"
        ),
    }
    if previous is None:
        return result
    changes = _changes(params, masks, previous)
    changed = sum(change for change, _ in changes)
    if changed:
        result["values only"] = Figure.absent("bytes", f"{changed} positions of the masks changed since the last round")
    else:
        result["values only"] = _figure(values, "the kept values, where the receiver has the mask")
    delta = sum(min(_INDEX_BYTES * change, -(-positions // 8)) for change, positions in changes)
    result["mask delta and values"] = _figure(
        values + delta, "the kept values, and of each leaf its changed positions or a bitmask", f"{changed} changed"
    )
    return result


def gradient_bytes(params: PyTree, masks: PyTree | None = None, *, devices: int) -> dict[str, Figure]:
    """What each device sends when gradients are summed over devices that all hold the same masks.

    A ring all-reduce sends $2 (N - 1) / N$ times its operand. `gather_kept` makes it that small, and `all_reduce_bytes`
    reads the operand from a compiled program.

    Args:
      params: parameters, concrete or abstract; gradients have their shapes and dtypes.
      masks: a concrete mask tree for them.
      devices: $N$, over how many devices is summed.

    Returns:
      Theoretical bytes: "operand dense" and "sent dense", and under masks "operand kept" and "sent kept".

    Raises:
      ValueError: the masks do not fit, or there is no device.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.ones((8, 8), jnp.float32)}
      >>> masks = {"w": jnp.arange(64).reshape(8, 8) < 16}
      >>> {form: figure.value for form, figure in gradient_bytes(params, masks, devices=4).items()}
      {'operand dense': 256.0, 'sent dense': 384.0, 'operand kept': 64.0, 'sent kept': 96.0}
    """
    if devices < 1:
        raise ValueError(f"devices={devices}: gradients are summed over at least 1.")
    payloads: dict[str, float] = {"dense": _dense(params)}
    if masks is not None:
        payloads["kept"] = sum(leaf.values for leaf in _leaves(params, masks))
    result = {}
    for form, payload in payloads.items():
        result[f"operand {form}"] = _figure(payload, "entries that are summed x itemsize")
        result[f"sent {form}"] = _figure(
            payload * 2 * (devices - 1) / devices, "ring all-reduce: 2 (N - 1) / N of its operand", f"N={devices}"
        )
    return result


class _Leaf:
    """Bytes of one leaf under its mask."""

    def __init__(self, param: Any, mask: Any) -> None:
        shape = tuple(np.shape(param))
        itemsize = np.dtype(param.dtype).itemsize
        self.size = math.prod(shape)
        self.kept = kept_count(mask, shape)
        self.values = self.kept * itemsize
        scalar = not np.shape(mask)
        positions = math.prod(np.shape(mask))
        indices = kept_count(mask, np.shape(mask))
        self.bitmask = 0 if scalar else -(-positions // 8)
        # More than int32 can number are numbered by int64.
        self.indices = 0 if scalar else indices * _INDEX_BYTES * (2 if positions > _INDEX_LIMIT else 1)
        share = self.kept / self.size if self.size else 0.0
        self.entropy = 0.0 if scalar else positions * _binary_entropy(share) / 8


def _leaves(params: PyTree, masks: PyTree) -> list[_Leaf]:
    check_masks_fit(masks, params)
    return [_Leaf(p, m) for p, m in zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True)]


def _dense(params: PyTree) -> float:
    return float(sum(math.prod(np.shape(leaf)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(params)))


def _changes(params: PyTree, masks: PyTree, previous: PyTree) -> list[tuple[int, int]]:
    """How many positions of each leaf's mask changed, and how many there are."""
    check_masks_fit(previous, params, "previous")
    pairs = zip(jax.tree.leaves(masks), jax.tree.leaves(previous), strict=True)
    moved = [np.asarray(new) != np.asarray(old) for new, old in pairs]
    return [(int(np.count_nonzero(change)), change.size) for change in moved]


def _binary_entropy(share: float) -> float:
    return -sum(p * math.log2(p) for p in (share, 1 - share) if 0 < p < 1)


def _figure(value: float, formula: str, note: str = "") -> Figure:
    return Figure(float(value), "bytes", "theoretical", f"formula: {formula}", note=note)
