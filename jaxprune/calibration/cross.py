"""Cross-Gram matrices: what two versions of a model give a layer, row against row."""

from collections.abc import Callable
from typing import Any

import jax

from jaxprune import trees
from jaxprune.calibration.capture import Statistics, Tap, Weights
from jaxprune.calibration.inputs import rows_of
from jaxprune.calibration.statistics import cross_gram
from jaxprune.tracing.inputs import Input, find_inputs
from jaxprune.tracing.layers import read_layers
from jaxprune.tracing.sites import RAGGED_DOT
from jaxprune.trees import PyTree, Where


def capture_cross(
    apply_fn: Callable[..., Any], *, where: Where = None, weights: Weights | None = None
) -> Callable[..., Statistics]:
    r"""Makes of a function one that returns the cross-Gram matrices $X^\top \mathrm{diag}(w) \hat X$ of its layers.

    $X$ are the inputs of a layer under the first parameters (dense), $\hat X$ those under the second (pruned). With the
    Gram matrix of $\hat X$, which `capture` gives, they tell which weights would give the dense outputs from the pruned
    inputs. They are sums over rows: those of batches add. All rows of the chosen layers are in memory at once, so
    choose few with `where` if they are large.

    Rows must pair up. A layer that a loop reads again at each step, and the experts of a `lax.ragged_dot`, whose tokens
    the second model may send elsewhere, are left out.

    Args:
      apply_fn: a pure function of parameters and arguments.
      where: as for `capture`.
      weights: as for `capture`.

    Returns:
      A pure function `(params, other_params, *args) -> Statistics`, of float32[*stack, *batch, in, in]; jittable.

    Raises:
      ValueError: when called: nothing is left that `where` chooses, the weights do not fit, or the two trees of
        parameters have not the same structure.

    Example:
      >>> import jax.numpy as jnp
      >>> params, pruned = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 1))}, {"a": jnp.eye(2), "b": jnp.ones((2, 1))}
      >>> crosses = capture_cross(lambda p, x: x @ p["a"] @ p["b"])(params, pruned, jnp.array([[1.0, 2.0]]))
      >>> crosses["b"].tolist()
      [[3.0, 6.0], [3.0, 6.0]]

    References:
      Arai and Ichikawa 2025 (quantization error propagation), arXiv 2504.09629.
    """

    def crossed(params: PyTree, other_params: PyTree, *args: Any) -> Statistics:
        trees.check_same_structure(other_params, params, "other_params")
        layers = read_layers(apply_fn, params, *args)
        inputs, inputs_of = find_inputs(layers.chosen(where, params), layers.program)
        sources = [source for source in inputs if _pairs_up(source)]
        known = {source.name for source in sources}
        paired = {name: names for name, names in inputs_of.items() if known.issuperset(names)}
        if not paired:
            raise ValueError(
                f"no rows of two models pair up for {trees.list_paths(list(inputs_of))}: loops read them again at each "
                "step, or they are experts. Choose other parameters with `where`."
            )
        rows = []
        for version in (params, other_params):
            tap = Tap(layers.program, sources, rows_of, None if weights is None else weights(*args))
            tap([*jax.tree.leaves(version), *jax.tree.leaves(args)])
            rows.append(tap.found)
        used = dict.fromkeys(name for names in paired.values() for name in names)
        values = {name: cross_gram(rows[0][name][1], rows[1][name][1]) for name in used}
        return Statistics(values, {name: rows[0][name][0] for name in used}, tuple(paired.items()))

    return crossed


def _pairs_up(source: Input) -> bool:
    """Whether each row of one model is a row of the other, and none is summed on the way."""
    return source.site.kind != RAGGED_DOT and all(stacked for _, stacked in source.loops)
