"""GraSP: keep the weights whose removal would cost gradient flow."""

from collections.abc import Callable

import jax

from jaxprune.scores._score import Score, map_floating, widen
from jaxprune.trees import PyTree


def grasp(loss_fn: Callable[[PyTree], jax.Array]) -> Score:
    r"""Makes the GraSP score of a loss at initialisation.

    Removing `w` changes the squared gradient norm by about `-2 w (H g)`. The paper removes the weights with the
    highest `-w (H g)`; the importance to keep is therefore `w (H g)`. `H g` is one Hessian-vector product.

    Args:
      loss_fn: the loss as a function of all parameters, on a fixed batch; all leaves must be floating.

    Returns:
      A score.

    Example:
      >>> import jax.numpy as jnp
      >>> score = grasp(lambda p: jnp.sum(p["w"] ** 2))
      >>> score({"w": jnp.array([1.0, 2.0])})["w"].tolist()
      [4.0, 16.0]

    References:
      Wang et al. 2020, Picking Winning Tickets Before Training by Preserving Gradient Flow, arXiv 2002.07376.
    """

    def score(
        params: PyTree, *, grads: PyTree | None = None, key: jax.Array | None = None, stats: PyTree | None = None
    ) -> PyTree:
        del grads, key, stats
        gradient = jax.grad(loss_fn)
        flow, product = jax.jvp(gradient, (params,), (gradient(params),))
        del flow
        return map_floating(lambda w, hg: widen(w) * widen(hg), params, product)

    return score
