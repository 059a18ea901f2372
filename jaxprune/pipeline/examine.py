"""`test`: what the pruned model is worth and what it costs, beside the dense one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxprune import measure
from jaxprune.measure import Figure
from jaxprune.pipeline.batches import Apply, Evaluate
from jaxprune.pipeline.robustness import CORRUPTIONS, Corruption, robustness
from jaxprune.tracing import Model
from jaxprune.trees import PyTree

Models = Mapping[str, tuple[Apply, PyTree]]


@dataclasses.dataclass(frozen=True)
class Tested:
    """What `test` found, of a dense and a pruned model.

    Attributes:
      quality: by model.
      robustness: by corruption of the inputs, the quality by model; empty where no input is floating.
      costs: by name, a figure by model, the dense one first; each says how it is known.
    """

    quality: dict[str, float]
    robustness: dict[str, dict[str, float]]
    costs: dict[str, dict[str, Figure]]


def test(
    models: Models,
    eval_fn: Evaluate,
    inputs: Any,
    *,
    model: Model,
    masks: PyTree | None = None,
    plan: Any = None,
    key: jax.Array,
    corruptions: Mapping[str, Corruption] = CORRUPTIONS,
    repetitions: int = 51,
    energy_seconds: float = 0.0,
) -> Tested:
    """Measures quality, robustness, size, memory, latency and energy of a dense and a pruned model.

    Args:
      models: `(apply_fn, params)` by name, the dense one first.
      eval_fn: `(apply_fn, params) -> quality`.
      inputs: one batch of inputs, for latency and energy.
      model: the trace of the dense model.
      masks: of the dense parameters, for a model of which single weights are pruned; or
      plan: the indices that stay, for one that is smaller. With neither, all weights count.
      key: a typed PRNG key, for the corruptions.
      corruptions: of the inputs, see `robustness`.
      repetitions: of the measurement of latency.
      energy_seconds: how long to measure energy; 0 for not at all.

    Returns:
      See `Tested`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> apply_fn, params = lambda p, x: x @ p["w"], {"w": jnp.ones((4, 2))}
      >>> masks = jp.compute_masks(params, 0.5)
      >>> model = jp.trace(apply_fn, params, jnp.ones((3, 4)))
      >>> models = {"dense": (apply_fn, params), "pruned": (apply_fn, jp.apply_masks(params, masks))}
      >>> evaluate = lambda apply_fn, params: float(apply_fn(params, jnp.ones((1, 4))).sum())
      >>> made = test(models, evaluate, jnp.ones((3, 4)), model=model, masks=masks, key=jax.random.key(0))
      >>> made.quality, made.costs["weights"]["pruned"].value
      ({'dense': 8.0, 'pruned': 4.0}, 4.0)
    """
    dense, pruned = models
    quality = {name: float(eval_fn(jax.jit(f), p)) for name, (f, p) in models.items()}
    robust = robustness(models, eval_fn, inputs, key=key, corruptions=corruptions)
    costs = size(models, model, masks, plan)
    costs["peak memory of a call"] = {name: measure.memory(f, p, inputs)["peak"] for name, (f, p) in models.items()}
    calls = {name: _call(f, p, inputs) for name, (f, p) in models.items()}
    costs["latency"] = dict(measure.latency(calls, repetitions=repetitions))
    if energy_seconds > 0:
        costs["energy"] = dict(measure.energy(calls, seconds=energy_seconds))
    else:
        absent = Figure.absent("J", "not asked for: energy_seconds=0")
        costs["energy"] = {dense: absent, pruned: absent}
    return Tested(quality, robust, costs)


def size(models: Models, model: Model, masks: PyTree | None, plan: Any) -> dict[str, dict[str, Figure]]:
    """Weights, multiply-adds and bytes of a dense and a pruned model, see `test`."""
    dense, pruned = models
    before, after = model.cost(), model.cost(masks=None if plan is not None else masks, plan=plan)
    params = models[dense][1]
    stored = measure.checkpoint_bytes(params)
    packed = measure.checkpoint_bytes(models[pruned][1], None if plan is not None else _masked_alone(masks))
    in_memory = {name: _counted(_bytes(p), "bytes", "sizes of the arrays") for name, (_, p) in models.items()}
    return {
        "weights": {dense: _counted(before.parameters, "", "count"), pruned: _counted(after.parameters, "", "count")},
        "multiply-adds a call": {
            dense: Figure(before.macs, "MACs", before.word, "jaxpr"),
            pruned: Figure(after.macs, "MACs", after.word, "jaxpr"),
        },
        "bytes in memory": in_memory,
        "bytes stored": {dense: stored["dense"], pruned: packed.get("bitmask", packed["dense"])},
    }


def _masked_alone(masks: PyTree) -> PyTree:
    """The masks, with the scalar True for what is kept whole: no mask is stored for it."""
    return jax.tree.map(lambda mask: np.ones((), bool) if np.all(mask) else mask, masks)


def _counted(value: float, unit: str, source: str) -> Figure:
    return Figure(float(value), unit, "measured", source)


def _bytes(params: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def _call(apply_fn: Apply, params: PyTree, inputs: Any) -> Any:
    jitted = jax.jit(apply_fn)
    return lambda: jitted(params, inputs)
