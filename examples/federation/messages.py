"""What server and clients send each other, as bytes: every figure of traffic is the length of one of these messages.

Of each leaf that may be pruned only the kept values travel. The receiver knows the mask already, or it is sent before
the values: as one bit a weight, or as the int32 positions that changed since the last message, whichever is shorter. A
byte a leaf says which. A leaf that is never pruned, with the scalar mask True, is sent whole. Shapes are known to both
sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

PyTree = Any
_BITS, _CHANGES = b"\0", b"\1"
_POSITION = np.dtype("<i4")
_VALUE = np.dtype("<f4")


def encode_masks(masks: PyTree, known: PyTree | None) -> bytes:
    """Writes masks for a receiver that has others, or none.

    Args:
      masks: bool arrays; a scalar True takes no byte.
      known: those that the receiver has; None where it has none. The same object takes no byte at all.

    Returns:
      The message.
    """
    if masks is known:
        return b""
    parts: list[bytes] = []
    for k, mask in enumerate(_leaves(masks)):
        if not mask.shape:
            continue
        bits = np.packbits(mask.reshape(-1)).tobytes()
        if known is not None:
            moved = np.flatnonzero(mask != _leaves(known)[k]).astype(_POSITION).tobytes()
            if len(moved) < len(bits):
                parts += [_CHANGES, np.asarray(len(moved) // _POSITION.itemsize, _POSITION).tobytes(), moved]
                continue
        parts += [_BITS, bits]
    return b"".join(parts)


def decode_masks(message: bytes, known: PyTree, like: PyTree) -> tuple[PyTree, bytes]:
    """Reads what `encode_masks` wrote.

    Args:
      message: begins with the masks.
      known: the masks that the receiver has, or None.
      like: masks of the same shapes.

    Returns:
      The masks, and the rest of the message.
    """
    decoded: list[Any] = []
    for k, leaf in enumerate(_leaves(like)):
        if not leaf.shape:
            decoded.append(np.ones((), bool))
            continue
        kind, message = message[:1], message[1:]
        if kind == _BITS:
            length = -(-leaf.size // 8)
            flat = np.unpackbits(np.frombuffer(message[:length], np.uint8), count=leaf.size).astype(bool)
            message = message[length:]
        else:
            (count,) = np.frombuffer(message[: _POSITION.itemsize], _POSITION)
            end = _POSITION.itemsize * (1 + int(count))
            flat = _leaves(known)[k].reshape(-1).copy()
            moved = np.frombuffer(message[_POSITION.itemsize : end], _POSITION)
            flat[moved] = ~flat[moved]
            message = message[end:]
        decoded.append(flat.reshape(leaf.shape))
    return jax.tree.unflatten(jax.tree.structure(like), decoded), message


def encode_values(params: PyTree, masks: PyTree) -> bytes:
    """Writes the kept values of each leaf, in the order of their positions."""
    pairs = zip(_leaves(params), _leaves(masks), strict=True)
    return b"".join((leaf[mask] if mask.shape else leaf).astype(_VALUE).tobytes() for leaf, mask in pairs)


def decode_values(message: bytes, masks: PyTree, like: PyTree) -> tuple[PyTree, bytes]:
    """Reads what `encode_values` wrote.

    Args:
      message: begins with the values.
      masks: which positions they have.
      like: parameters of the same shapes.

    Returns:
      The parameters, with zeros where nothing was sent, and the rest of the message.
    """
    decoded: list[np.ndarray] = []
    for leaf, mask in zip(jax.tree.leaves(like), _leaves(masks), strict=True):
        kept = np.broadcast_to(mask, leaf.shape)
        length = _VALUE.itemsize * int(kept.sum())
        values = np.zeros(leaf.shape, np.float32)
        values[kept] = np.frombuffer(message[:length], _VALUE)
        decoded.append(values)
        message = message[length:]
    return jax.tree.unflatten(jax.tree.structure(like), decoded), message


def encode_extra(tree: PyTree, masks: PyTree, counts: Sequence[int]) -> bytes:
    """Writes the entries of largest magnitude that the masks leave out, as positions and values.

    Args:
      tree: such as the gradients of a client.
      masks: what is kept is not written.
      counts: how many entries of each leaf.

    Returns:
      The message, of 8 bytes an entry.
    """
    parts: list[bytes] = []
    for leaf, mask, count in zip(_leaves(tree), _leaves(masks), counts, strict=True):
        if count:
            flat = leaf.reshape(-1)
            outside = np.where(mask.reshape(-1), -1.0, np.abs(flat))
            chosen = np.sort(np.argpartition(outside, -count)[-count:])
            parts += [chosen.astype(_POSITION).tobytes(), flat[chosen].astype(_VALUE).tobytes()]
    return b"".join(parts)


def decode_extra(message: bytes, counts: Sequence[int], like: PyTree) -> PyTree:
    """Reads what `encode_extra` wrote, into a tree of zeros like the parameters."""
    decoded: list[np.ndarray] = []
    for leaf, count in zip(jax.tree.leaves(like), counts, strict=True):
        flat = np.zeros(leaf.size, np.float32)
        middle, end = _POSITION.itemsize * count, (_POSITION.itemsize + _VALUE.itemsize) * count
        flat[np.frombuffer(message[:middle], _POSITION)] = np.frombuffer(message[middle:end], _VALUE)
        decoded.append(flat.reshape(leaf.shape))
        message = message[end:]
    return jax.tree.unflatten(jax.tree.structure(like), decoded)


def _leaves(tree: PyTree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
