"""Reconstruction: each block of a pruned model is trained by itself to give what the dense one gives."""

import functools
import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import masks as masks_
from jaxprune import trees
from jaxprune.calibration.accumulate import counter
from jaxprune.calibration.statistics import column_norms
from jaxprune.posttraining._method import check_positive
from jaxprune.posttraining._needs import check_leaves, stack_of
from jaxprune.posttraining._segments import Segment, plan_segments
from jaxprune.posttraining.result import Apply
from jaxprune.posttraining.stages import Code, Data, Frame, _execute
from jaxprune.posttraining.units import Blocks, Loop
from jaxprune.posttraining.walk import Versions, Walk, read_batches
from jaxprune.tracing.layers import Layers, read_layers
from jaxprune.tracing.matrices import Matrix
from jaxprune.trees import PyTree


def reconstruct(
    apply_fn: Apply,
    params: PyTree,
    masks: PyTree,
    batches: Iterable[Any],
    tx: optax.GradientTransformation,
    *,
    dense_params: PyTree,
    steps: int = 100,
    blocks: Sequence[str] | None = None,
    progress: bool = False,
) -> PyTree:
    r"""Trains each block of a pruned model to give the outputs of the dense model, one after the other.

    In the order of the data flow, with the parameters $\theta$ of a block $f$ under its masks $m$, the inputs $\hat x$
    that the blocks before it give, and the inputs $x$ and parameters $\theta_0$ of the dense model:

    $$ \min_\theta \; \mathbb{E}\, \lVert f(\hat x; m \odot \theta) - f(x; \theta_0) \rVert^2 $$

    A block is a stretch of the traced program around its matrices; biases and scales that only it reads are trained
    with them, and everything else stays. Layers that a scan runs over are trained one by one. A block that training
    does not improve, over all batches, keeps its values. Optimisation is in float32; what is pruned is exactly zero at
    every step. Gradients are those of the operations that were traced: derivatives of one's own (`jax.custom_vjp`) are
    not used. The cost is a pass over the data of each of the two models, and `steps` gradients of each block.

    Args:
      apply_fn: a pure function of parameters and arguments.
      params: its pruned parameters.
      masks: a mask tree for them; only blocks with something pruned are trained.
      batches: the arguments of each call: a tuple of them, or the only one; all of the same shapes.
      tx: an Optax optimiser, which sees a tuple of the arrays of a block: `optax.adam(1e-3)`.
      dense_params: the parameters before pruning.
      steps: how many, for each block; each takes the next batch.
      blocks: regular expressions over paths, of which a match of the same text is the same block; by default numbered
        parts of paths (`layers/3/...`), and each step of a scan.
      progress: show a progress bar.

    Returns:
      The new parameters, of the same dtypes.

    Raises:
      ValueError: no batches or batches of several shapes, nothing pruned in what data is multiplied with, parameters
        or masks that do not fit, or a block with pruned weights that cannot be trained by itself: one that shares
        them with another, or reads them through more than a slice of a stack.

    Example:
      >>> import jaxprune as jp
      >>> dense = {"a": jnp.array([[1.0, 1.0], [1.0, 3.0]])}
      >>> pruned = {"a": jnp.array([[1.0, 0.0], [1.0, 3.0]])}
      >>> masks, batches = {"a": pruned["a"] != 0}, [jnp.array([[1.0, 1.0], [2.0, 2.0]])]
      >>> new = reconstruct(lambda p, x: x @ p["a"], pruned, masks, batches, optax.sgd(0.3), dense_params=dense)
      >>> new["a"].round(3).tolist()
      [[1.0, 0.0], [1.0, 4.0]]

    References:
      Wagner et al. 2025, A Free Lunch in LLM Compression: Revisiting Retraining after Pruning, arXiv 2510.14444.
    """
    check_positive(steps=steps)
    batches = read_batches(batches, "reconstruct")
    trees.check_same_structure(dense_params, params, "dense_params")
    layers = read_layers(apply_fn, params, *batches[0])
    dense = check_leaves(layers, dense_params)
    masks_.check_masks_fit(masks, params)
    full = jax.tree.leaves(masks_.full_masks(masks, params))
    pruned = {k for k, mask in enumerate(full) if trees.is_floating(layers.leaves[k]) and not np.asarray(mask).all()}
    matrices = [matrix for matrix in layers.matrices if matrix.leaf in pruned]
    if not matrices:
        raise ValueError(
            "the masks prune nothing of what data is multiplied with, so there is nothing to reconstruct; give those "
            "of the pruned model, such as `prune_one_shot(...).masks`."
        )
    leaves = [_zeroed(leaf, full[k]) if k in pruned else leaf for k, leaf in enumerate(jax.tree.leaves(params))]
    grouping = Blocks(None if blocks is None else tuple(blocks))
    walk = _Reconstruction(layers, [leaves, dense], full, pruned, tx, steps, grouping)
    stacks = {matrix.leaf: stack_of(matrix, layers) for matrix in matrices}
    with counter(progress, sum(map(math.prod, stacks.values())), "reconstruct") as walk.advance:
        walk.start(matrices, batches)
    return jax.tree.unflatten(jax.tree.structure(params), walk.leaves)


def _zeroed(leaf: Any, mask: Any) -> jax.Array:
    return jnp.where(mask, leaf, jnp.zeros((), jnp.asarray(leaf).dtype))


class _Reconstruction(Walk):
    """Trains on the way; the second version is the dense model."""

    def __init__(
        self,
        layers: Layers,
        versions: list[list[Any]],
        masks: list[Any],
        pruned: set[int],
        tx: optax.GradientTransformation,
        steps: int,
        blocks: Blocks,
    ):
        super().__init__(layers, column_norms, versions)
        self.masks, self.pruned = masks, pruned
        self.tx, self.steps, self.blocks = tx, steps, blocks
        self.plans: dict[Any, list[Segment | Loop]] = {}
        self.compiled: dict[Hashable, tuple[Any, Any]] = {}

    def process(
        self, frame: Frame, matrices: Sequence[Matrix], index: tuple[int, ...], values: Versions, outputs: bool
    ) -> Versions:
        """Trains the blocks of a frame: see `Walk`."""
        if frame.graph not in self.plans:
            self.plans[frame.graph] = plan_segments(frame, matrices, self.blocks)
            self.check(frame, matrices, self.plans[frame.graph])
        parts = self.plans[frame.graph]
        end = len(frame.nodes)
        position = 0
        for number, part in enumerate(parts):
            values = self.forward(frame, position, part.start, frame.needed(part.start, end, True), index, values)
            position, keep = part.stop, frame.needed(part.stop, end, True)
            last = number == len(parts) - 1 and not outputs
            if isinstance(part, Loop):
                values = self.loop(frame, part, index, values, set() if last else keep)
                continue
            mine, theirs = values
            made = {value for node in frame.nodes[part.start : part.stop] for value in node.outputs}
            goals = self.run(1, frame, part.start, part.stop, keep, index, theirs)
            self.train(frame, part, index, mine, goals, keep & made)
            values = [mine if last else self.run(0, frame, part.start, part.stop, keep, index, mine), goals]
        return self.forward(frame, position, end, frame.needed(end, end, True), index, values) if outputs else values

    def check(self, frame: Frame, matrices: Sequence[Matrix], parts: Sequence[Segment | Loop]) -> None:
        """Raises where pruned weights belong to no block."""
        inside = {leaf for part in parts if isinstance(part, Segment) for leaf in part.own}
        inside |= {matrix.leaf for part in parts if isinstance(part, Loop) for matrix in part.matrices}
        if alone := [matrix.name for matrix in matrices if matrix.leaf not in inside]:
            raise ValueError(
                f"{', '.join(alone)} cannot be trained block by block: something outside of the block reads the same "
                "parameter (a tied embedding), or a loop reads it through more than slices of a stack. Give masks that "
                "are True there, or `blocks` that hold all uses."
            )

    def train(
        self, frame: Frame, part: Segment, index: tuple[int, ...], values: list[Data], goals: list[Data], made: set[int]
    ) -> None:
        """Trains one block, and puts its parameters back if they are better."""
        floating = [value for value in sorted(made) if trees.is_floating(frame.layers.program.avals[value])]
        code = Code(frame)
        for node in frame.nodes[part.start : part.stop]:
            code.emit(frame, node)
        own = {n: k for n, (kind, k) in enumerate(code.leaves) if kind == "leaf" and k in part.own}
        own = {n: k for n, k in own.items() if trees.is_floating(self.leaves[k])}
        if not floating or not own:
            return
        outputs = tuple(code.slots[frame.depth, value] for value in floating)
        key = code.key, outputs, tuple(own)
        if key not in self.compiled:
            self.compiled[key] = _training(code, outputs, tuple(own), self.tx)
        step, error = self.compiled[key]
        at = tuple(jnp.asarray(k, jnp.int32) for k in index)
        fixed = self.stages.arguments(code, self.leaves, values[0])[0]
        inputs = [self.stages.arguments(code, self.leaves, x)[1] for x in values]
        data = [(x, [goal[value] for value in floating]) for x, goal in zip(inputs, goals, strict=True)]
        masks = tuple(self.masks[k][index] for k in own.values())
        trained = tuple(jnp.asarray(self.leaves[k])[index].astype(jnp.float32) for k in own.values())

        def total(trained: Any) -> float:
            return sum(float(error(trained, masks, fixed, *pair, at)) for pair in data)

        before, state = total(trained), self.tx.init(trained)
        start = trained
        for number in range(self.steps):
            trained, state = step(trained, state, masks, fixed, *data[number % len(data)], at)
        if not total(trained) <= before:
            trained = start
        for k, mask, new in zip(own.values(), masks, trained, strict=True):
            leaf = jnp.asarray(self.leaves[k])
            self.leaves[k] = leaf.at[index].set(_zeroed(new.astype(leaf.dtype), mask))
            if k in self.pruned:
                self.advance()


def _training(code: Code, outputs: tuple[int, ...], own: tuple[int, ...], tx: Any) -> tuple[Any, Any]:
    """A step of the optimiser, and the mean squared error, of the block of some code."""

    def error(trained: Any, masks: Any, fixed: Any, data: Any, goals: Any, index: Any) -> jax.Array:
        leaves = list(fixed)
        for n, values, mask in zip(own, trained, masks, strict=True):
            part = _zeroed(values, mask).astype(leaves[n].dtype)
            leaves[n] = leaves[n].at[index].set(part) if index else part
        found = _execute(code, list(outputs), leaves, data, list(index))
        pairs = zip(found, goals, strict=True)
        lost = functools.reduce(
            jnp.add, [jnp.sum(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32))) for a, b in pairs]
        )
        return lost / max(sum(np.size(goal) for goal in goals), 1)

    def step(trained: Any, state: Any, masks: Any, fixed: Any, data: Any, goals: Any, index: Any) -> tuple[Any, Any]:
        gradients = jax.grad(error)(trained, masks, fixed, data, goals, index)
        with jax.numpy_dtype_promotion("standard"):  # Optax does not keep to the strict one
            updates, state = tx.update(gradients, state, trained)
        return jax.tree.map(_zeroed, optax.apply_updates(trained, updates), masks), state

    return jax.jit(step), jax.jit(error)
