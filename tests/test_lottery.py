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


def test_training_that_donates_its_parameters():
    params = jax.tree.map(jnp.copy, PARAMS)
    donating = jax.jit(train, donate_argnums=0)
    tickets = list(jp.lottery_ticket(donating, params, rounds=2, rate=0.5))
    for donated, plain in zip(tickets, jp.lottery_ticket(train, PARAMS, rounds=2, rate=0.5), strict=True):
        np.testing.assert_array_equal(donated.start["w"], plain.start["w"])
        np.testing.assert_array_equal(donated.masks["w"], plain.masks["w"])


def test_a_sparsity_that_a_rule_fixes_begins_with_the_first_pruning():
    params = {"a": PARAMS["w"], "b": PARAMS["w"] + 1}
    rules = [jp.Rule(pattern="a", sparsity=0.5)]
    dense, first = jp.lottery_ticket(train, params, rounds=1, rate=0.4, rules=rules)
    assert bool(dense.masks["a"].all()) and bool(dense.masks["b"].all())
    assert [int(first.masks[name].sum()) for name in "ab"] == [50, 70]


def test_tickets_are_nested_though_the_score_likes_pruned_weights():
    def smallest(params, **inputs):
        return jax.tree.map(lambda p: -jnp.abs(p), params)

    tickets = list(jp.lottery_ticket(lambda params, masks: params, PARAMS, rounds=3, rate=0.4, score=smallest))
    for before, after in itertools.pairwise(tickets):
        assert not bool((after.masks["w"] & ~before.masks["w"]).any())


def test_settings_that_do_not_fit_raise_before_any_training():
    with pytest.raises(ValueError, match="'nothing' matches no floating parameter"):
        jp.lottery_ticket(train, PARAMS, rounds=1, where="nothing")


def test_n_of_m_is_refused():
    with pytest.raises(ValueError, match=r"NM\(n=2, m=4.*fixes the sparsity"):
        jp.lottery_ticket(train, PARAMS, rounds=1, structure=jp.NM(2, 4))
