"""Structured pruning after training: scores for groups of a trace, and what the readers of a cut do to make up for it.

`flap_scores` rates the indices of groups by how much their readers would notice; after `jp.select`, `repair_consumers`
or `compensate_bias` changes the full parameters, and `jp.shrink` cuts them.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.calibration.capture import Statistics
from jaxprune.posttraining._factorization import filled_diagonal, inverse_factor
from jaxprune.posttraining._method import check_damping
from jaxprune.posttraining._needs import check_leaves, gram_matrix, moments_of, shape_of
from jaxprune.posttraining._operands import as_weights, find_operands, unscaled
from jaxprune.posttraining._refit import matmul
from jaxprune.posttraining.layer import over_axes
from jaxprune.shrinking.folding import Biases
from jaxprune.shrinking.plan import Plan
from jaxprune.tracing import Model, Site
from jaxprune.tracing.matrices import Arrangement, Matrix
from jaxprune.tracing.sites import CONVOLUTION, DOT
from jaxprune.trees import PyTree


def flap_scores(model: Model, params: PyTree, stats: Statistics, *, standardize: bool = True) -> dict[str, jax.Array]:
    r"""Scores an index by how much what it holds fluctuates, times the weights that read it.

    What does not fluctuate, a bias can replace (`compensate_bias`). Of the columns $j(i)$ of all matrices $W$ that
    read index $i$ of a group,

    $$ s_i = \sum_W \sum_{j \in j(i)} \mathrm{Var}(X_j)\, \lVert W_{:j} \rVert^2 $$

    A head has as many columns as features; all layers of a stack are summed. Scores are then standardised within each
    group, so that `jp.select` can rank all groups together.

    Args:
      model: the traced model.
      params: the parameters.
      stats: of `jp.stats.moments`.
      standardize: take off the mean of each group and divide by its standard deviation.

    Returns:
      float32[size] by the id of each group of the model. A group that no matrix with statistics reads has infinity
      everywhere: under `jp.select(..., scope="global")` it goes last.

    Raises:
      ValueError: parameters of another structure, statistics of another kind, or of no reader of any group.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.eye(2), "b": jnp.array([[1.0], [2.0]])}
      >>> x = jnp.array([[1.0, 3.0], [-1.0, 3.0]])
      >>> apply_fn = lambda p, x: x @ p["a"] @ p["b"]
      >>> model, stats = jp.trace(apply_fn, params, x), jp.calibrate(apply_fn, params, [x], jp.stats.moments)
      >>> flap_scores(model, params, stats, standardize=False)["a:1"].tolist()  # the second always holds 3
      [1.0, 0.0]

    References:
      An et al. 2023, Fluctuation-based Adaptive Structured Pruning (FLAP), arXiv 2312.11983.
    """
    leaves, operands = check_leaves(model.layers, params), find_operands(model.layers, model.layers.matrices)
    values: dict[int, jax.Array] = {}
    for matrix in model.layers.matrices:
        if matrix.name in stats:
            own = operands[matrix.name].weights(leaves) if matrix.name in operands else None
            found = _fluctuations(leaves[matrix.leaf], own, moments_of(matrix, stats).variance, matrix.arrangement)
            values[matrix.leaf] = values[matrix.leaf] + found if matrix.leaf in values else found
    scores, known = {}, False
    for name, group in model.groups.items():
        readers = [member for member in group.members if "in" in member.roles and member.leaf in values]
        if not readers:
            scores[name] = jnp.full(group.size, jnp.inf, jnp.float32)
            continue
        known, total = True, jnp.zeros(group.size, jnp.float32)
        for member in readers:
            others = tuple(axis for axis in range(values[member.leaf].ndim) if axis != member.axis)
            total = total + values[member.leaf].sum(others)[member.index].sum(1)
        if standardize:
            spread = jnp.std(total)
            total = (total - jnp.mean(total)) / jnp.where(spread > 0, spread, 1)
        scores[name] = total
    if not known:
        raise ValueError(
            "no group of the model is read by a matrix with statistics; calibrate without `where`, and see "
            "Model.coverage for what statistics can be had of."
        )
    return scores


@functools.partial(jax.jit, static_argnums=3)
def _fluctuations(leaf: Any, operand: Any, variance: jax.Array, arrangement: Arrangement) -> jax.Array:
    """The variance of the input of every weight times its square, in the shape of the parameter."""
    squares = jnp.square(as_weights(leaf, operand, arrangement)) * variance[..., None, :]
    return arrangement.from_matrix(squares, jnp.zeros(leaf.shape, jnp.float32))


def repair_consumers(model: Model, plan: Plan, params: PyTree, stats: Statistics, *, damping: float = 0.01) -> PyTree:
    r"""Gives the readers of what a plan removes the weights that reproduce their outputs best from what is left.

    For every matrix $W$ with columns of which the plan keeps the set $K$, and the Gram matrix $G$ of its inputs,

    $$ W'_K = (W G_{:K} + \lambda W_K) (G_{KK} + \lambda I)^{-1}, \quad W'_{\bar K} = 0 $$

    the least squares solution, held near the weights that were. Where rounding leaves it worse than plain cutting, the
    weights are only cut. Layers of a stack, experts, and the windows of convolutions are solved each by itself.

    Args:
      model: the traced model.
      plan: what goes.
      params: the full parameters.
      stats: of `jp.stats.gram`; a matrix without statistics stays as it is, and so does one whose values the
        function changes before use, unless it multiplies them with a mask or a scale.
      damping: $\lambda$ as a fraction of the mean of the diagonal of $G_{KK}$.

    Returns:
      Full parameters; `jp.shrink(model, plan, ...)` cuts them.

    Raises:
      ValueError: the plan or the parameters do not fit the model, statistics of another kind, or of none of the
        matrices that read what is removed.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[1.0], [1.0]])}
      >>> x = jnp.array([[1.0], [2.0]])
      >>> apply_fn = lambda p, x: x @ p["a"] @ p["b"]
      >>> model, stats = jp.trace(apply_fn, params, x), jp.calibrate(apply_fn, params, [x], jp.stats.gram)
      >>> plan = jp.Plan({"a:1": [False, True]})
      >>> repair_consumers(model, plan, params, stats, damping=0.0)["b"].tolist()
      [[0.0], [1.5]]
    """
    check_damping(damping)
    leaves, done = check_leaves(model.layers, params), False
    cut = _cut_matrices(model, plan)
    operands = find_operands(model.layers, (matrix for matrix, _ in cut))
    for matrix, mask in cut:
        if matrix.name not in stats:
            continue
        leaf, own, scale = leaves[matrix.leaf], None, None
        if matrix.name in operands:
            operand, reason = operands[matrix.name].examined(leaves)
            if reason or not operand.linear:
                continue
            use = operand.use(leaves)
            own, scale = use.weights(leaf), use.scale(leaf)
        gram = gram_matrix(matrix, stats, shape_of(matrix, model.layers))
        leaves[matrix.leaf] = _repair(leaf, own, scale, gram, mask, matrix.arrangement, damping)
        done = True
    _check_found(cut, done, stats)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _cut_matrices(model: Model, plan: Plan) -> list[tuple[Matrix, np.ndarray]]:
    """The matrices that lose columns, and for each a mask of its parameter, False where a column goes."""
    plan.check(model)
    sizes, found = model.sizes(plan.keep), []
    for matrix in model.layers.matrices:
        shape, dims = model.leaves[matrix.leaf].shape, model.dims_of(matrix.leaf)
        mask, cut = np.ones(shape, bool), False
        for axis in sorted({axis for site in matrix.sites for axis in site.contract}):
            own = sizes.mask(dims[axis])
            cut = cut or not own.all()
            mask &= own.reshape([-1 if k == axis else 1 for k in range(len(shape))])
        if cut:
            found.append((matrix, mask))
    return found


def _check_found(cut: Sequence[tuple[Matrix, np.ndarray]], done: bool, stats: Statistics) -> None:
    if cut and not done:
        raise ValueError(
            f"of {', '.join(matrix.name for matrix, _ in cut)}, which read what the plan removes, nothing can be "
            f"repaired: the statistics are of {', '.join(stats.names)}. Calibrate with these matrices in `where`."
        )


def _columns(mask: Any, arrangement: Arrangement) -> jax.Array:
    """bool[*stack, *batch, in]: which columns stay; all of them in a matrix that goes as a whole."""
    kept = jnp.any(arrangement.to_matrix(mask), -2)
    return kept | ~jnp.any(kept, -1, keepdims=True)


@functools.partial(jax.jit, static_argnums=(5, 6))
def _repair(
    leaf: Any, operand: Any, scale: Any, gram: jax.Array, mask: Any, arrangement: Arrangement, damping: float
) -> jax.Array:
    weights, kept = as_weights(leaf, operand, arrangement), _columns(mask, arrangement)
    solve = over_axes(functools.partial(_solve, damping=damping), weights.ndim - 2)
    new = unscaled(solve(weights, gram, kept, scale), scale).astype(leaf.dtype)
    return arrangement.from_matrix(jnp.where(kept[..., None, :], new, jnp.zeros((), leaf.dtype)), leaf)


def _solve(weights: jax.Array, gram: jax.Array, kept: jax.Array, scale: jax.Array | None, damping: float) -> jax.Array:
    """The columns that are kept, of one matrix; where the function multiplies with 0, they stay 0."""
    cut = jnp.where(kept[None, :], weights, 0)
    # Columns that go, or have no input, get the mean of the others on the diagonal, and stay what they were.
    inside = jnp.where(kept[:, None] & kept[None, :], gram, 0)
    diagonal, mean = filled_diagonal(inside)
    factor = inverse_factor(inside, damping)
    extra = diagonal - jnp.diagonal(inside) + factor.damping * mean
    aim = jnp.where(kept[None, :], matmul(weights, gram), 0) + cut * extra[None, :]
    free = kept[None, :] if scale is None else kept[None, :] & (scale != 0)
    new = jnp.where(free, matmul(matmul(aim, factor.upper.T), factor.upper), 0)

    def lost(matrix: jax.Array) -> jax.Array:
        change = matrix - weights
        return jnp.sum(jnp.matmul(change, gram, precision=lax.Precision.HIGHEST) * change)

    return jnp.where(lost(new) <= lost(cut), new, cut)


def compensate_bias(model: Model, plan: Plan, params: PyTree, stats: Statistics) -> tuple[PyTree, tuple[str, ...]]:
    r"""Adds what a plan removes, on average, to the biases after its readers: $b \mathrel{+}= W_{:P}\,\mathbb{E}[X_P]$.

    The bias of a matrix is the parameter that is added to its result at once, and that nothing else reads; also within
    a scan. With zero padding, the border of a convolution gets the average as well. Use this or `repair_consumers`,
    which changes the weights instead: both together would make up for the loss twice.

    Args:
      model: the traced model.
      plan: what goes.
      params: the full parameters.
      stats: of `jp.stats.moments`.

    Returns:
      Full parameters, which `jp.shrink(model, plan, ...)` cuts; and the names of the matrices that lose columns, and
      are as they were because they have no bias, or no statistics.

    Raises:
      ValueError: the plan or the parameters do not fit the model, or statistics of another kind.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.eye(2), "b": jnp.array([[1.0], [2.0]]), "c": jnp.zeros(1)}
      >>> x = jnp.array([[1.0, 3.0], [-1.0, 3.0]])
      >>> apply_fn = lambda p, x: x @ p["a"] @ p["b"] + p["c"][None]
      >>> model, stats = jp.trace(apply_fn, params, x), jp.calibrate(apply_fn, params, [x], jp.stats.moments)
      >>> new, without = compensate_bias(model, jp.Plan({"a:1": [True, False]}), params, stats)
      >>> new["c"].tolist(), without
      ([6.0], ())

    References:
      An et al. 2023 (FLAP), arXiv 2312.11983.
    """
    leaves, biases, without = check_leaves(model.layers, params), Biases(model), []
    dense = list(leaves)
    cut = _cut_matrices(model, plan)
    operands = find_operands(model.layers, (matrix for matrix, _ in cut))
    for matrix, mask in cut:
        found = [_bias_of(model, biases, site) for site in matrix.sites] if matrix.name in stats else [None]
        shape = shape_of(matrix, model.layers)
        rows = int(np.prod(shape[:-1]))
        operand = operands.get(matrix.name)
        if operand is not None and operand.ambiguous(dense):
            found = [None]
        if any(each is None or np.prod(model.leaves[each[0]].shape, dtype=int) != rows for each in found):
            without.append(matrix.name)
            continue
        mean = moments_of(matrix, stats).mean
        own = None if operand is None else operand.weights(dense)
        change = _mean_loss(dense[matrix.leaf], own, mean, mask, matrix.arrangement)
        for leaf, sign in dict.fromkeys(each for each in found if each is not None):
            bias = leaves[leaf]
            moved = bias.astype(jnp.float32) + sign * change.reshape(bias.shape)
            leaves[leaf] = moved.astype(bias.dtype)
    return jax.tree.unflatten(jax.tree.structure(params), leaves), tuple(without)


@functools.partial(jax.jit, static_argnums=4)
def _mean_loss(leaf: Any, operand: Any, mean: jax.Array, mask: Any, arrangement: Arrangement) -> jax.Array:
    weights = as_weights(leaf, operand, arrangement)
    gone = jnp.where(_columns(mask, arrangement), 0, mean)
    return jnp.einsum("...oi,...i->...o", weights, gone, precision=lax.Precision.HIGHEST)


def _bias_of(model: Model, biases: Biases, site: Site) -> tuple[int, int] | None:
    """The parameter that is added to the result of a site, over the axes of the matrix; and its sign."""
    node = site.node
    if site.kind == DOT:
        (sums, batches), rank = node.params["dimension_numbers"], len(model.program.shape(node.outputs[0]))
        batch = len(batches[0])
        own = len(model.program.shape(node.inputs[site.operand])) - len(sums[0]) - batch
        first = rank - own if site.operand else batch
        return biases.after(node, (*range(batch), *range(first, first + own)))
    if site.kind == CONVOLUTION:
        return biases.after(node, (node.params["dimension_numbers"].out_spec[1],))
    return None
