"""Bytes and FLOPs by the formulas of the RigL paper (Evci et al. 2020, arXiv 1911.11134, appendices B and H).

FLOPs are two for each multiply-add of the matrix products; biases and ReLU are left out, as in the paper. What skips
zeros is theoretical: dense kernels multiply them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

import jaxprune as jp
from examples.models import lenet

PyTree = Any
_BYTES_OF_A_FLOAT = 4


class Flops(NamedTuple):
    """The FLOPs of a forward pass of one image.

    Attributes:
      dense: of dense kernels, zeros included (modelled).
      nonzero: if every zero were skipped (theoretical).
    """

    dense: int
    nonzero: int


def forward_flops(params: PyTree) -> Flops:
    """Counts the FLOPs of one image that has as many pixels as the first kernel has rows."""
    pixels = lenet.architecture(params)[0]
    model = jp.trace(lenet.apply, params, jax.ShapeDtypeStruct((1, pixels), np.float32))
    masks = jp.from_zeros(params, where=lenet.KERNELS)
    return Flops(2 * model.cost().macs, 2 * model.cost(masks=masks).macs)


def training_flops(method: str, forward: Flops, samples: int, every: int) -> float:
    """Appendix H: a backward pass costs two forward passes, and RigL exchanges weights by dense gradients.

    That is a little too much here, for weights are exchanged in the first three quarters of the training only.

    Args:
      method: `dense` or `rigl`.
      forward: of the model at its full size, with its zeros.
      samples: that the whole training sees.
      every: steps between exchanges of weights.
    """
    own = {"sparse": lambda _: forward.nonzero, "every": every} if method == "rigl" else {}
    return jp.measure.training_flops(method, dense=forward.dense, steps=samples, **own).value or 0.0


def formula_bytes(params: PyTree, bitmask: bool) -> int:
    """Appendix B: four bytes a value, and one bit a position of the kernels where a mask is stored.

    Args:
      params: the parameters.
      bitmask: store nonzero values and a mask; otherwise every element.
    """
    kernels = [np.asarray(layer["kernel"]) for layer in params.values()]
    biases = sum(layer["bias"].size for layer in params.values())
    if not bitmask:
        return _BYTES_OF_A_FLOAT * (biases + sum(kernel.size for kernel in kernels))
    values = biases + sum(int(np.count_nonzero(kernel)) for kernel in kernels)
    return _BYTES_OF_A_FLOAT * values + -(-sum(kernel.size for kernel in kernels) // 8)


def kernel_sparsity(params: PyTree) -> float:
    """The fraction of zeros in the kernels."""
    kernels = [np.asarray(layer["kernel"]) for layer in params.values()]
    return 1 - sum(int(np.count_nonzero(kernel)) for kernel in kernels) / sum(kernel.size for kernel in kernels)
