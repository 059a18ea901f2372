"""`prune_one_shot`: statistics of all layers in one pass over the data, then each layer by itself."""

import itertools
from collections.abc import Iterable
from typing import Any

import jax

from jaxprune.calibration import Statistics, calibrate
from jaxprune.calibration.accumulate import as_arguments, bar
from jaxprune.calibration.capture import Weights
from jaxprune.posttraining._method import Method
from jaxprune.posttraining.layer import prune_matrix
from jaxprune.posttraining.result import Apply, Pruned, Sparsity, choose_matrices, finish, sparsity_of, start_masks
from jaxprune.structures import Structure, Unstructured
from jaxprune.tracing.layers import read_layers
from jaxprune.trees import PyTree, Where, paths


def prune_one_shot(
    apply_fn: Apply,
    params: PyTree,
    batches: Iterable[Any],
    method: Method,
    *,
    sparsity: Sparsity = None,
    structure: Structure = Unstructured(),
    where: Where = None,
    weights: Weights | None = None,
    stats: Statistics | None = None,
    strict: bool = False,
    progress: bool = False,
) -> Pruned:
    """Prunes a model without training, from the inputs that its layers see in the dense model.

    Memory: the statistics of all layers at once; for a method on Gram matrices that is 4 K^2 bytes for each distinct
    input of K features. `prune_sequential` holds those of one layer (or block) only.

    Where the function masks or scales a parameter before it multiplies with it, the product is what is scored, repaired
    and measured. Where it does something else that keeps zeros (a weight norm), the parameter is only masked; where
    zeros would not stay (standardised weights, a sum with a low-rank update), it is left out, and the result says so.

    Args:
      apply_fn: a pure function of parameters and arguments.
      params: its parameters.
      batches: the arguments of each call: a tuple of them, or the only one.
      method: one of `jp.posttraining`.
      sparsity: fraction of zeros of each matrix: one number, or one by the name (or path) of each matrix, as
        `jp.posttraining.owl` and `sensitivity_allocation` give them; an array for the layers of a stack. None under
        N:M.
      structure: what is pruned together: `Unstructured()`, `NM(n, m)` along the contracted axis, `Block((in, out))`.
      where: which parameters; by default all with two axes or more that data is multiplied with, but for embedding
        tables that are the head as well.
      weights: what each row of the data counts for, as for `calibrate`.
      stats: statistics that `calibrate` gave for `method.stat`; the batches are then read for their shapes only.
      strict: raise where a parameter that `where` chooses cannot be pruned; else the result says which, and why.
      progress: show a progress bar.

    Returns:
      Parameters, masks, and a report of each matrix.

    Raises:
      ValueError: no batches, a sparsity out of range or that N:M cannot have, nothing to prune, a matrix that no data
        reached.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.eye(4) + 0.1}
      >>> batches = [jax.random.normal(jax.random.key(0), (32, 4))]
      >>> method = jp.posttraining.sparsegpt()
      >>> pruned = jp.prune_one_shot(lambda p, x: x @ p["a"], params, batches, method, sparsity=0.5)
      >>> float((pruned.params["a"] == 0).mean())
      0.5
    """
    batches = map(as_arguments, batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("prune_one_shot: there are no batches, so there is nothing to learn from.")
    layers = read_layers(apply_fn, params, *first)
    choice = choose_matrices(layers, where, params, strict)
    shares = sparsity_of(choice.matrices, sparsity, structure)
    if stats is None:
        chosen = {matrix.path for matrix in choice.matrices}
        stats = calibrate(
            apply_fn,
            params,
            itertools.chain([first], batches),
            method.stat,
            where=jax.tree.unflatten(jax.tree.structure(params), [path in chosen for path in paths(params)]),
            weights=weights,
            progress=progress,
        )
    leaves, masks, reports = jax.tree.leaves(params), start_masks(jax.tree.leaves(params), choice.matrices), []
    for matrix in bar(choice.matrices, progress, "prune"):
        k = matrix.leaf
        leaves[k], masks[k], report = prune_matrix(
            matrix,
            leaves[k],
            masks[k],
            stats[matrix.name],
            stats.count(matrix.name),
            method,
            shares[matrix.name],
            structure,
            use=choice.use(matrix, leaves),
        )
        reports.append(report)
    return finish(params, leaves, masks, reports, choice.skipped)
