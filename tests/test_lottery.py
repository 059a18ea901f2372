"""The lottery ticket driver: densities, nesting, rewinding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

PARAMS = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((10, 10)), jnp.float32), "b": jnp.ones(10)}
EARLY = {"w": PARAMS["w"] + 1.0, "b": PARAMS["b"] * 2}


def train(params, masks):
    return jax.tree.map(lambda p, m: jnp.where(m, 3.0 * p - 1.0, 0.0), params, masks)


@pytest.mark.parametrize("early", [None, EARLY])
def test_tickets(early):
    tickets = list(jp.lottery_ticket(train, PARAMS, rounds=3, rate=0.2, rewind_to=early))
    assert [t.round for t in tickets] == [0, 1, 2, 3]
    assert [int(np.broadcast_to(t.masks["w"], (10, 10)).sum()) for t in tickets] == [100, 80, 64, 51]
    np.testing.assert_array_equal(tickets[0].start["w"], PARAMS["w"])
    source = PARAMS if early is None else early
    for before, after in itertools.pairwise(tickets):
        assert after.sparsity == pytest.approx(1 - 0.8**after.round)
        assert not bool((after.masks["w"] & ~before.masks["w"]).any())  # nested
        np.testing.assert_array_equal(after.start["w"], np.where(after.masks["w"], source["w"], 0))
        np.testing.assert_array_equal(after.start["b"], source["b"])
        # The smallest of what was trained goes.
        kept = np.abs(before.trained["w"])[np.asarray(after.masks["w"])]
        gone = np.abs(before.trained["w"])[np.asarray(before.masks["w"] & ~after.masks["w"])]
        assert kept.min() >= gone.max()


def test_the_driver_is_lazy_and_passes_settings_on():
    calls = []

    def counting(params, masks):
        calls.append(1)
        return params

    tickets = jp.lottery_ticket(counting, PARAMS, rounds=5, rate=0.5, where="b")
    assert next(tickets).round == 0 and len(calls) == 1
    second = next(tickets)
    assert int(second.masks["b"].sum()) == 5 and bool(second.masks["w"].all())


def test_no_rounds_is_the_dense_ticket():
    [ticket] = jp.lottery_ticket(train, PARAMS, rounds=0)
    assert ticket.sparsity == 0 and bool(ticket.masks["w"].all())


@pytest.mark.parametrize("rate", [0, 1, -0.5, 2])
def test_bad_rates(rate):
    with pytest.raises(ValueError, match=f"rate={rate}"):
        jp.lottery_ticket(train, PARAMS, rounds=1, rate=rate)


def test_bad_rounds():
    with pytest.raises(ValueError, match="rounds=-1"):
        jp.lottery_ticket(train, PARAMS, rounds=-1)
