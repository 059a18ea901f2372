"""Moments of the gradient: its mean and its mean square, over batches or over single examples."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune import trees
from jaxprune.pipeline.ablation import ablated_members
from jaxprune.pipeline.batches import Apply, Batch, Loss
from jaxprune.pipeline.sensitivity import check_batches
from jaxprune.tracing import Group, Model
from jaxprune.trees import PyTree


class GradientMoments(NamedTuple):
    r"""Moments of the gradient of the loss; zeros for parameters that are not floating.

    Attributes:
      mean: a tree of $\mathbb{E}[g]$, float32: `grads` of scores.
      squares: a tree of $\mathbb{E}[g^2]$, float32: `stats` of `jp.scores.fisher`.
      groups: float32[size] by the id of a group: $\mathbb{E}[(\sum_w g_w w)^2]$ over the weights $w$ that are zeroed to
        take an index out. Empty without a model.

    Example:
      >>> GradientMoments({"a": jnp.ones(2)}, {"a": jnp.ones(2)}, {}).mean["a"].tolist()
      [1.0, 1.0]
    """

    mean: PyTree
    squares: PyTree
    groups: dict[str, jax.Array]


def gradient_moments(
    apply_fn: Apply,
    params: PyTree,
    loss_fn: Loss,
    batches: Iterable[Batch],
    *,
    model: Model | None = None,
    per_example: bool = False,
) -> GradientMoments:
    r"""Takes the moments of the gradient over batches, or over all single examples of them.

    The mean square over examples is the diagonal of the empirical Fisher matrix. Over batches of $n$ examples it is
    about $n$ times smaller where the mean is near zero, in which case it ranks weights alike.

    Args:
      apply_fn: `apply_fn(params, inputs) -> outputs`.
      params: the parameters.
      loss_fn: `loss_fn(outputs, targets) -> scalar`, a mean over the examples.
      batches: pairs `(inputs, targets)`.
      model: the traced model, for the moments of groups.
      per_example: each example by itself, one gradient each: those of a batch are along the first axis of every array.

    Returns:
      The moments.

    Raises:
      ValueError: no batches.
      TypeError: a batch that is no pair.

    Example:
      >>> params = {"a": jnp.array([[1.0], [1.0]])}
      >>> batches = [(jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.zeros((2, 1)))]
      >>> loss_fn = lambda out, targets: jnp.mean((out - targets) ** 2) + 4 * jnp.mean(out)
      >>> found = gradient_moments(lambda p, x: x @ p["a"], params, loss_fn, batches, per_example=True)
      >>> found.mean["a"].tolist(), found.squares["a"].tolist()
      ([[2.0], [0.0]], [[20.0], [0.0]])

    References:
      LeCun et al. 1989, Optimal Brain Damage; Theis et al. 2018, arXiv 1801.05787; Molchanov et al. 2019, arXiv
      1906.10771, for groups.
    """
    groups = {} if model is None else model.groups
    floating = [trees.is_floating(leaf) for leaf in jax.tree.leaves(params)]

    def moments_of(leaves: list[Any], inputs: Any, targets: Any) -> GradientMoments:
        def loss_of(chosen: list[Any]) -> Any:
            rest = iter(chosen)
            every = [next(rest) if flag else leaf for flag, leaf in zip(floating, leaves, strict=True)]
            return loss_fn(apply_fn(jax.tree.unflatten(jax.tree.structure(params), every), inputs), targets)

        own = iter(jax.grad(loss_of)([leaf for flag, leaf in zip(floating, leaves, strict=True) if flag]))
        grads = [
            next(own).astype(jnp.float32) if flag else jnp.zeros(jnp.shape(leaf), jnp.float32)
            for flag, leaf in zip(floating, leaves, strict=True)
        ]
        products = {k: g * leaves[k].astype(jnp.float32) for k, g in enumerate(grads) if floating[k]}
        sums = {name: jnp.square(value) for name, value in index_sums(groups, products).items()}
        return GradientMoments(grads, [jnp.square(g) for g in grads], sums)

    def add(a: Any, b: Any) -> Any:
        return jax.tree.map(jnp.add, a, b)

    @jax.jit
    def of_batch(leaves: list[Any], inputs: Any, targets: Any) -> GradientMoments:
        if not per_example:
            return moments_of(leaves, inputs, targets)

        def step(total: GradientMoments, example: Any) -> tuple[GradientMoments, None]:
            return add(total, moments_of(leaves, *jax.tree.map(lambda x: x[None], example))), None

        count = jax.tree.leaves(inputs)[0].shape[0]
        first = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), (inputs, targets))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(moments_of, leaves, *first))
        total, _ = lax.scan(step, zeros, (inputs, targets))
        return jax.tree.map(lambda x: x / count, total)

    total, leaves, found = None, jax.tree.leaves(params), check_batches(batches)
    for inputs, targets in found:
        one = of_batch(leaves, *jax.tree.map(jnp.asarray, (inputs, targets)))
        total = one if total is None else add(total, one)
    assert total is not None
    mean, squares, sums = jax.tree.map(lambda x: x / len(found), total)
    treedef = jax.tree.structure(params)
    return GradientMoments(jax.tree.unflatten(treedef, mean), jax.tree.unflatten(treedef, squares), dict(sums))


def index_sums(groups: Mapping[str, Group], values: Mapping[int, Any]) -> dict[str, Any]:
    """The sum of a value of each weight over the weights that are zeroed to take an index out.

    Args:
      groups: groups by id.
      values: arrays of the parameters' shapes, by the parameters' positions.

    Returns:
      [size] by id of the group, for the groups that have such a weight among the values.
    """
    sums: dict[str, Any] = {}
    for name, group in groups.items():
        for member in ablated_members(group):
            if member.leaf in values:
                array = values[member.leaf]
                along = array.sum(tuple(axis for axis in range(array.ndim) if axis != member.axis))
                own = along[member.index].sum(1)
                sums[name] = sums[name] + own if name in sums else own
    return sums
