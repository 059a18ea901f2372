"""Lottery tickets: iterative magnitude pruning with (late) rewinding, as a driver over the user's training."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import masks as masks_
from jaxprune import scores
from jaxprune.compute import compute_masks
from jaxprune.states import rewind
from jaxprune.structures import NM
from jaxprune.trees import PyTree


class Ticket(NamedTuple):
    """One round of `lottery_ticket`.

    Attributes:
      round: number of prunings so far; round 0 is dense.
      sparsity: fraction of zeros asked for.
      masks: the masks this round trained under.
      start: the rewound parameters this round trained from.
      trained: the parameters after training.

    Example:
      >>> Ticket(round=0, sparsity=0.0, masks={}, start={}, trained={}).round
      0
    """

    round: int
    sparsity: float
    masks: PyTree
    start: PyTree
    trained: PyTree


def lottery_ticket(
    train_fn: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    *,
    rounds: int,
    rate: float = 0.2,
    rewind_to: PyTree | None = None,
    **settings: Any,
) -> Iterator[Ticket]:
    r"""Trains, prunes the smallest weights, rewinds the rest, and again.

    After round r the density is `(1 - rate)^r`. A generator: take as many rounds as wanted, save any of them.

    Args:
      train_fn: `(params, masks) -> trained params`, with `jp.keep_masks(masks)` or `jp.pruners.static(masks=masks)`;
        it gets copies, which it may donate.
      params: initial parameters.
      rounds: number of prunings.
      rate: fraction of the kept weights pruned in each.
      rewind_to: parameters of an early step, for late rewinding; `params` by default.
      **settings: further arguments of `jp.compute_masks`, such as `allocation=` and `where=`.

    Yields:
      `rounds + 1` tickets, the dense one first.

    Raises:
      ValueError: `rounds < 0`, `rate` is not in (0, 1), or the structure is N:M.

    Example:
      >>> import jax.numpy as jnp
      >>> train = lambda params, masks: params
      >>> tickets = list(lottery_ticket(train, {"w": jnp.arange(4.0).reshape(2, 2)}, rounds=1, rate=0.5))
      >>> tickets[1].masks["w"].tolist()
      [[False, False], [True, True]]

    References:
      Frankle and Carbin 2019, arXiv 1803.03635; Frankle et al. 2020, arXiv 1912.05671.
    """
    if rounds < 0:
        raise ValueError(f"rounds={rounds}: the number of prunings must not be negative.")
    if not 0 < rate < 1:
        raise ValueError(f"rate={rate}: the fraction pruned in a round lies in (0, 1).")
    if isinstance(settings.get("structure"), NM):
        raise ValueError(
            f"structure={settings['structure']}: its pattern fixes the sparsity, which a lottery ticket raises round "
            "by round. Take Unstructured, Block or Channel, or prune to N:M once with jp.pruners.gmp."
        )
    if rounds:
        # What the first pruning would raise is raised now, not after a training.
        jax.eval_shape(lambda p: compute_masks(p, rate, **settings), params)
    return _rounds(train_fn, params, rounds, rate, params if rewind_to is None else rewind_to, settings)


def _rounds(
    train_fn: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    rounds: int,
    rate: float,
    early: PyTree,
    settings: dict[str, Any],
) -> Iterator[Ticket]:
    settings = {"score": scores.magnitude, **settings}
    # Dense, whatever sparsity a rule fixes for later rounds.
    masks = jax.tree.map(lambda _: jnp.asarray(True), params)
    start = params
    for number in range(rounds + 1):
        # A copy: training may donate what it is given, and later rounds rewind to it.
        trained = train_fn(jax.tree.map(jnp.copy, start), masks)
        sparsity = 1 - (1 - rate) ** number
        yield Ticket(number, sparsity, masks, start, trained)
        if number < rounds:
            pruned = masks_.apply_masks(trained, masks)
            masks = compute_masks(pruned, 1 - (1 - rate) ** (number + 1), among=masks, **settings)
            start = rewind(early, masks)
