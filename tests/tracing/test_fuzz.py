"""Random programs against the masked model, its gradient, a wrong index set, and the exchange of indices.

More of them: `JAXPRUNE_FUZZ_PROGRAMS=5000 pytest tests/tracing/test_fuzz.py`, or `python -m tests.zoo.fuzz`.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from tests.zoo.fuzz import MARGIN, Checker, Outcome, check, program, summary
from tests.zoo.models import ZOO
from tests.zoo.swap import distance, swap_indices

PROGRAMS = int(os.environ.get("JAXPRUNE_FUZZ_PROGRAMS", "300"))
CHUNK = 30


@pytest.mark.parametrize("first", range(0, PROGRAMS, CHUNK))
def test_random_programs(first: int) -> None:
    outcomes = [check(seed) for seed in range(first, min(first + CHUNK, PROGRAMS))]
    jax.clear_caches()  # no program is compiled twice
    faults = [f"seed {o.seed} {o.operations}: {fault}" for o in outcomes for fault in o.faults]
    assert not faults, "\n".join(faults)
    assert sum(bool(o.groups) for o in outcomes) > 0.6 * len(outcomes), summary(outcomes)
    noticed = [o.noticed for o in outcomes if o.noticed is not None]
    assert len(noticed) > 0.4 * len(outcomes) and sum(noticed) >= 0.8 * len(noticed), summary(outcomes)


@pytest.mark.parametrize("seed", range(4))
def test_verify_agrees(seed: int) -> None:
    made = program(seed)
    checker = Checker(made.apply_fn, made.params, made.args, seed)
    result = jp.verify(checker.model, checker.plan(), made.params, *made.args)
    assert result.exact, result


@pytest.mark.parametrize("name", ZOO)
def test_indices_of_zoo_groups_can_be_exchanged(name: str) -> None:
    zoo = ZOO[name]()
    outcome = Outcome(0, (name,))
    Checker(zoo.apply_fn, zoo.params, zoo.args, 0).swaps(outcome)
    assert not outcome.faults, outcome.faults


def test_the_exchange_notices_a_group_that_is_none() -> None:
    """Exchanging the indices of one member only changes the outputs, and so does ignoring a constant."""
    random = np.random.default_rng(0)
    params = {name: random.normal(size=(5, 5)).astype(np.float32) for name in "ab"}
    x, scale = random.normal(size=(2, 5)).astype(np.float32), np.arange(1, 6, dtype=np.float32)

    def function(params, x):
        return (jnp.tanh(x @ params["a"]) * jnp.asarray(scale)[None]) @ params["b"]

    checker = Checker(function, params, [x], 0)
    (group,) = checker.model.groups.values()
    swapped = swap_indices(checker.model, params, group, 1, 3)
    plain = checker.dense(params)
    assert distance(plain, checker.dense({**swapped, "b": params["b"]})) > 1e-3
    assert distance(plain, checker.dense(swapped)) > 1e-3
    outcome = Outcome(0, ())
    checker.swaps(outcome)
    assert not outcome.faults and outcome.skipped["swap with constants"] == 1


def removal_errors(function, params, *args):
    """The errors of a function over what rounding allows, and the faults of exchanges."""
    checker, outcome = Checker(function, params, args, 1), Outcome(0, ())
    assert checker.model.groups
    checker.swaps(outcome)
    return [error / MARGIN for error in checker.removal().values()], outcome.faults


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


NUMBERS = ("NWC", "WIO", "NWC")


def grouped(h, kernel):
    return lax.conv_general_dilated(h, kernel, (1,), "SAME", dimension_numbers=NUMBERS, feature_group_count=2)


def grouped_made_kernel(p, x):
    """Position c within a group is an input and, by the residual, an output: zero in says nothing of zero out."""
    h = x @ p["w"]
    return (h + grouped(h, jnp.exp(p["k"]))).sum(-1)


def grouped_tied(p, x):
    h = x @ p["w"]
    h = h + grouped(h, p["k"])
    return h.sum(-1), jnp.tanh(h) @ p["w"].T


def reduced_from_one_half(p, x):
    return lax.reduce(x @ p["w"], np.float32(0.5), lambda a, b: lax.max(a, b), (1,)).sum(-1)


def windows_from_one_half(p, x):
    h = lax.reduce_window(x @ p["w"], np.float32(0.5), lambda a, b: lax.max(a, b), (1, 2, 1), (1, 1, 1), "VALID")
    return h.sum(-1)


def empty_branches(p, x):
    """Bodies without any operation still have shapes."""
    return lax.cond(x.sum() > 0, lambda a, b: a, lambda a, b: b, x @ p["w"], x @ p["v"]) @ p["u"]


def empty_scan(p, x):
    h = x @ p["w"]
    last, every = lax.scan(lambda state, row: (row, state), h[0], h)
    return last @ p["u"], every @ p["u"]


def empty_checkpoint(p, x):
    return jax.checkpoint(lambda a: (a, a))(x @ p["w"])[1] @ p["u"]


def stacked_by_a_scan(p, x):
    return lax.scan(lambda state, _: (state, state), x @ p["w"], None, length=3)[1].sum(0) @ p["u"]


PARAMS = {"w": normal(3, 8), "v": normal(3, 8) ** 2, "k": normal(1, 4, 8), "u": normal(8, 2)}
FOUND = {
    grouped_made_kernel: "wk",
    grouped_tied: "wk",
    reduced_from_one_half: "w",
    windows_from_one_half: "w",
    empty_branches: "wvu",
    empty_scan: "wu",
    empty_checkpoint: "wu",
    stacked_by_a_scan: "wu",
}


@pytest.mark.parametrize("function", FOUND, ids=lambda function: function.__name__)
def test_programs_that_once_failed(function) -> None:
    errors, faults = removal_errors(function, {name: PARAMS[name] for name in FOUND[function]}, normal(2, 5, 3))
    assert not faults and all(error <= 1 for error in errors), (errors, faults)
