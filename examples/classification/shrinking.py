"""Masks of whole channels made physical: the smaller network, proved equal, counted and timed."""

from __future__ import annotations

from typing import Any

import jax

import jaxprune as jp
from examples.classification import training
from examples.classification.tasks import Task
from jaxprune.measure.figure import Kind

PyTree = Any


def shrink(task: Task, params: PyTree, masks: PyTree, key: jax.Array) -> dict[str, float]:
    """Cuts the channels that are gone out of the arrays.

    A channel whose weights are all zero is a constant, its bias: that goes into the layers that read it, and then the
    channel itself can go.

    Args:
      task: the image task.
      params: trained parameters, zero where masked.
      masks: their masks.
      key: of the images to trace and verify with.

    Returns:
      What is left: weights (counted), multiply-adds of one image (modelled), accuracy and the latency of a batch as a
      fraction of the dense network's (measured); and the largest difference of the outputs, relative to the largest.

    Raises:
      AssertionError: the smaller network computes something else.
    """
    images, _ = task.feed.first_batch(key)
    model = jp.trace(task.apply, params, images)
    plan, folded = jp.dead_units(model, params, images, masks=masks)
    small, function = jp.shrink(model, plan, folded), jp.shrunk_function(model, plan)
    check = jp.verify(model, plan, folded, images, strict=True)
    cost = model.cost(plan=plan)
    dense, cut = jax.jit(task.apply), jax.jit(function)
    ratio = jp.measure.ratio(lambda: cut(small, images), lambda: dense(params, images), repetitions=31)
    return {
        "shrunk_weights": cost.parameters,
        "shrunk_macs": cost.macs / len(images),
        "shrunk_accuracy": training.accuracy(function, small, task.feed),
        "shrunk_latency_ratio": ratio.value or float("nan"),
        "shrunk_error": float(check),
    }


KINDS: dict[str, Kind] = {
    "shrunk_weights": "measured",
    "shrunk_macs": "modelled",
    "shrunk_accuracy": "measured",
    "shrunk_latency_ratio": "measured",
    "shrunk_error": "measured",
    "step_ms": "measured",
}
