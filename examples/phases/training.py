"""One training in phases: the network is cut between them, and its optimiser goes on with what is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from examples.classification.training import MemoryFeed, TrainState, Update
from examples.models.residual import ResidualCNN
from jaxprune.frameworks import linen

PyTree = Any


@dataclass(frozen=True)
class Settings:
    """What a training does.

    Attributes:
      steps: in total, whatever the phases.
      width: channels of the first stage, before any cut.
      rate: the first learning rate; it falls to zero along a cosine.
      macs: the share of multiply-adds that stays after the last cut; 1 trains the dense network.
      cuts: in how many cuts the share is reached.
      draw_every: steps between the plans that the early-bird watcher compares.
      latest: the share of the steps after which the first cut is made, settled or not.
      between: the share of the steps between two cuts.
      lasso: strength of the group lasso before the last cut.
    """

    steps: int
    width: int = 48
    rate: float = 0.1
    macs: float = 1.0
    cuts: int = 2
    draw_every: int = 10
    latest: float = 0.12
    between: float = 0.06
    lasso: float = 1e-4


@dataclass
class Outcome:
    """What a training gave.

    Attributes:
      variables: parameters and batch statistics, at the size that is left.
      plan: from the dense network to it; None for a dense training.
      seconds: of the steps, the plans and the cuts, without compilation.
      compiling: seconds of tracing and compilation.
      history: a line for each cut.
    """

    variables: PyTree
    plan: jp.Plan | None = None
    seconds: float = 0.0
    compiling: float = 0.0
    history: list[str] = field(default_factory=list)


def network(variables: PyTree, x: jax.Array) -> jax.Array:
    """The original module, whatever the sizes of its variables."""
    with linen.follow_shapes():
        return ResidualCNN().apply(variables, x)  # pyright: ignore[reportReturnType]


def run(feed: MemoryFeed, settings: Settings, seed: int, tick: Callable[[int], None]) -> Outcome:
    """Trains one network.

    Args:
      feed: brings the images.
      settings: what to do.
      seed: of the initial weights and the batches.
      tick: called with the number of steps done.

    Returns:
      The network, and what it cost.
    """
    key = jax.random.key(seed)
    x, _ = feed.first_batch(key)
    variables = jax.jit(ResidualCNN(width=settings.width).init)(jax.random.fold_in(key, 1), x[:1])
    rates = optax.cosine_decay_schedule(settings.rate, settings.steps)
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rates, momentum=0.9, nesterov=True))
    outcome = Outcome(variables)
    state = TrainState(variables, optimizer.init(variables["params"]))
    whole = jp.trace(network, variables, x)
    model, plan, done = whole, jp.Plan({}), 0
    shares = [settings.macs ** ((cut + 1) / settings.cuts) for cut in range(settings.cuts)] if settings.macs < 1 else []
    due = settings.latest * settings.steps
    for share in [*shares, None]:
        until = settings.steps if share is None else min(due, settings.steps)
        wanted = None if share is None else jp.Budget(macs=share * whole.cost().macs / model.cost().macs)
        state, done, drawn = _phase(feed, settings, optimizer, model, state, key, done, until, wanted, outcome, tick)
        if drawn is None:
            break
        begin = time.perf_counter()
        _cut(model, drawn, state)  # compiles
        outcome.compiling += time.perf_counter() - begin
        begin = time.perf_counter()
        state = _cut(model, drawn, state)
        plan, due = plan.then(drawn), done + settings.between * settings.steps
        model = jp.trace(network, state.params, x)
        outcome.seconds += time.perf_counter() - begin
        outcome.history.append(f"cut after {done} steps to {model.cost().macs / whole.cost().macs:.2f} of the MACs")
    outcome.variables = state.params
    outcome.plan = plan if shares else None
    return outcome


def _phase(
    feed: MemoryFeed,
    settings: Settings,
    optimizer: optax.GradientTransformation,
    model: jp.Model,
    state: TrainState,
    key: jax.Array,
    done: int,
    until: float,
    budget: jp.Budget | None,
    outcome: Outcome,
    tick: Callable[[int], None],
) -> tuple[TrainState, int, jp.Plan | None]:
    """Trains at one size until the indices to keep have settled, or the phase is over; gives the plan for the cut."""
    advance = feed.advance(_update(optimizer, model, settings.lasso if budget is not None else 0.0))
    begin = time.perf_counter()
    jax.block_until_ready(advance(state, key, done, 1))  # compiles; the result is thrown away
    scores = jax.jit(partial(jp.group_scores, model, power=2.0, members="params/.*"))
    if budget is not None:
        jax.block_until_ready(scores(state.params))
    outcome.compiling += time.perf_counter() - begin
    watcher, drawn = jp.early_bird(window=3, threshold=0.1), None
    while done < until and done < settings.steps:
        begin = time.perf_counter()
        stop = min(done + settings.draw_every, settings.steps)
        for step in range(done, stop):
            state, _ = advance(state, key, step, 1)
        jax.block_until_ready(state)
        done = stop
        if budget is not None:
            drawn = jp.select(model, scores(state.params), budget, scope="global", min_keep=0.125)
            watcher = watcher.update(drawn)
        outcome.seconds += time.perf_counter() - begin
        tick(done)
        if watcher.found:
            break
    return state, done, drawn


def _cut(model: jp.Model, plan: jp.Plan, state: TrainState) -> TrainState:
    return jax.block_until_ready(TrainState(*(jp.shrink(model, plan, part) for part in state)))


def _update(optimizer: optax.GradientTransformation, model: jp.Model, lasso: float) -> Update:
    """The training step: plain Optax, on the parameters at whatever size they are."""

    def update(state: TrainState, x: jax.Array, y: jax.Array) -> tuple[TrainState, jax.Array]:
        def loss_of(params: PyTree) -> tuple[jax.Array, PyTree]:
            with linen.follow_shapes():
                variables = {**state.params, "params": params}
                logits, changed = ResidualCNN(train=True).apply(variables, x, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            penalty = lasso * jp.group_lasso(model, params) if lasso else jnp.zeros(())
            return loss + penalty, changed

        (loss, changed), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params["params"])
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params["params"])
        params = optax.apply_updates(state.params["params"], updates)
        return TrainState({**state.params, "params": params, **changed}, opt_state), loss

    return update
