"""`select`: the budget is met and nothing is given away; scopes, floors, multiples, and every bad value."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.shrinking.toy_models import HEADS, HEADS_MODEL, MLP, MLP_MODEL, X, arrays
from tests.zoo.models import ZOO


def resnet() -> tuple[jp.Model, dict[str, np.ndarray]]:
    zoo = ZOO["linen_resnet"]()
    model = jp.trace(zoo.apply_fn, zoo.params, *zoo.args)
    draw = np.random.default_rng(0)
    return model, {name: draw.random(group.size) for name, group in model.groups.items()}


RESNET = resnet()
SCORES = {"a:1": np.array([3.0, 1.0, 6.0, 2.0, 5.0, 4.0]), "b:1": np.array([30.0, 10.0, 50.0, 20.0, 40.0])}


def kept(plan: jp.Plan, model: jp.Model = MLP_MODEL) -> dict[str, int]:
    return {name: int(plan.keep[name].sum()) if name in plan.keep else g.size for name, g in model.groups.items()}


def chosen(plan: jp.Plan, name: str) -> list[int]:
    return np.flatnonzero(plan.keep[name]).tolist()


def test_a_share_keeps_the_highest() -> None:
    plan = jp.select(MLP_MODEL, SCORES, 0.5, scope="local")
    assert plan.fingerprint == MLP_MODEL.fingerprint
    assert chosen(plan, "a:1") == [2, 4, 5] and chosen(plan, "b:1") == [2, 4]  # 6 of 11 go
    assert not jp.select(MLP_MODEL, SCORES, 0.0).keep


def share(plan: jp.Plan, model: jp.Model, budget: str) -> float:
    small, full = model.cost(plan=plan), model.cost()
    name = {"params": "parameters", "macs": "macs", "bytes": "weight_bytes"}[budget]
    return getattr(small, name) / getattr(full, name)


def one_more(plan: jp.Plan, model: jp.Model, scores: Any) -> list[jp.Plan]:
    """The plans that keep one index more: for each group, the best that it removes."""
    plans = []
    for name, mask in plan.keep.items():
        more = mask.copy()
        more[np.argmax(np.where(mask, -np.inf, np.asarray(scores[name])))] = True
        plans.append(jp.Plan({**plan.keep, name: more}))
    return plans


@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
@pytest.mark.parametrize("budget", ["params", "macs", "bytes"])
def test_a_budget_is_met_and_used_up(budget: str, scope: str) -> None:
    model, scores = RESNET
    for fraction in (0.9, 0.5, 0.2):
        plan = jp.select(model, scores, jp.Budget(**{budget: fraction}), scope=scope)
        assert share(plan, model, budget) <= fraction
        # The last index that went was needed: without it, one of the groups has one more.
        assert any(share(more, model, budget) > fraction for more in one_more(plan, model, scores))


def test_one_group_is_tight_for_every_index() -> None:
    params = arrays({"a": (3, 20), "b": (20, 2)})
    model = jp.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, X)
    scores = jp.group_scores(model, params)
    for budget in ("params", "macs", "bytes"):
        for fraction in (0.99, 0.62, 0.3, 0.05):
            plan = jp.select(model, scores, jp.Budget(**{budget: fraction}))
            assert kept(plan, model)["a:1"] == math.floor(20 * fraction + 1e-9)


def test_a_budget_of_two_axes_is_counted_jointly() -> None:
    plan = jp.select(HEADS_MODEL, jp.group_scores(HEADS_MODEL, HEADS), jp.Budget(macs=0.3))
    count = kept(plan, HEADS_MODEL)
    assert share(plan, HEADS_MODEL, "macs") <= 0.3
    assert share(plan, HEADS_MODEL, "macs") == pytest.approx(count["a:1:0"] * count["a:1:1"] / 12)


def test_latency_from_a_table() -> None:
    asked: list[dict[str, int]] = []

    def latency(counts: Any) -> float:
        asked.append(dict(counts))
        return 1e-3 * (10 + counts["a:1"] * 5 + 8 * math.ceil(counts["b:1"] / 2))

    budget = jp.Budget(latency=0.7, latency_of=latency)
    plan = jp.select(MLP_MODEL, SCORES, budget, scope="local")
    full = latency({"a:1": 6, "b:1": 5})
    assert latency(kept(plan)) <= 0.7 * full
    assert asked[0] == {"a:1": 6, "b:1": 5}
    assert any(latency(kept(more)) > 0.7 * full for more in one_more(plan, MLP_MODEL, SCORES))
    assert repr(budget) == "Budget(latency=0.7)"


def test_all_limits_of_a_budget_are_met() -> None:
    plan = jp.select(MLP_MODEL, SCORES, jp.Budget(params=0.9, macs=0.3))
    assert share(plan, MLP_MODEL, "macs") <= 0.3
    plan = jp.select(MLP_MODEL, SCORES, jp.Budget(params=0.4, macs=1.0))
    assert share(plan, MLP_MODEL, "params") <= 0.4


def test_scopes() -> None:
    # All scores of a:1 are below those of b:1, so a global ranking takes from a:1 alone.
    plan = jp.select(MLP_MODEL, SCORES, 4 / 11, scope="global")
    assert kept(plan) == {"a:1": 2, "b:1": 5} and chosen(plan, "a:1") == [2, 4]
    assert kept(jp.select(MLP_MODEL, SCORES, 4 / 11, scope="local")) == {"a:1": 4, "b:1": 3}
    assert kept(jp.select(MLP_MODEL, SCORES, 4 / 11, scope=lambda group: group.id)) == {"a:1": 4, "b:1": 3}
    assert kept(jp.select(MLP_MODEL, SCORES, 4 / 11, scope=lambda group: "all")) == {"a:1": 2, "b:1": 5}
    # The two hidden layers play the same part.
    assert len({group.operations for group in MLP_MODEL.groups.values()}) == 1
    assert kept(jp.select(MLP_MODEL, SCORES, 4 / 11, scope="isomorphic")) == {"a:1": 2, "b:1": 5}
    # Heads and features of heads do not.
    scores = {"a:1:0": np.arange(4.0), "a:1:1": np.arange(3.0) + 10}
    assert kept(jp.select(HEADS_MODEL, scores, 3 / 7, scope="isomorphic"), HEADS_MODEL) == {"a:1:0": 2, "a:1:1": 2}
    assert kept(jp.select(HEADS_MODEL, scores, 3 / 7, scope="global"), HEADS_MODEL) == {"a:1:0": 1, "a:1:1": 3}


def test_counts_are_rounded_up() -> None:
    for target in (0.2, 0.5, 0.9):
        exact = kept(jp.select(MLP_MODEL, SCORES, target, scope="local"))
        for multiple in (2, 4, 8):
            found = kept(jp.select(MLP_MODEL, SCORES, target, scope="local", round_to=multiple))
            for name, size in (("a:1", 6), ("b:1", 5)):
                assert found[name] == min(-(-exact[name] // multiple) * multiple, size)
    one = kept(jp.select(MLP_MODEL, SCORES, 0.9, scope="local", round_to={"a.*": 4, ".*": 3}))
    assert one == {"a:1": 4, "b:1": 3}
    assert kept(jp.select(MLP_MODEL, SCORES, 0.9, scope="local", round_to={"b:1": 4})) == {"a:1": 1, "b:1": 4}
    # A budget is met with the rounded counts.
    plan = jp.select(MLP_MODEL, SCORES, jp.Budget(macs=0.6), round_to=2, scope="local")
    assert share(plan, MLP_MODEL, "macs") <= 0.6 and kept(plan)["a:1"] % 2 == 0


def test_floors() -> None:
    assert kept(jp.select(MLP_MODEL, SCORES, 0.99)) == {"a:1": 1, "b:1": 1}
    assert kept(jp.select(MLP_MODEL, SCORES, 0.99, min_keep=3)) == {"a:1": 3, "b:1": 3}
    assert kept(jp.select(MLP_MODEL, SCORES, 0.99, min_keep=0.5)) == {"a:1": 3, "b:1": 3}
    assert kept(jp.select(MLP_MODEL, SCORES, 0.99, min_keep=100)) == {"a:1": 6, "b:1": 5}
    assert kept(jp.select(MLP_MODEL, SCORES, 0.99, min_keep=0.0)) == {"a:1": 1, "b:1": 1}
    assert kept(jp.select(MLP_MODEL, SCORES, 0.99, min_keep=1.0)) == {"a:1": 6, "b:1": 5}
    # What a floor saves in one group goes from another, until the budget is met.
    plan = jp.select(MLP_MODEL, SCORES, jp.Budget(macs=0.5), min_keep=3)
    assert share(plan, MLP_MODEL, "macs") <= 0.5 and min(kept(plan).values()) >= 3


def test_ignore_and_ratios() -> None:
    for ignore in ("b_bias", ["b_bias"], lambda path, _: path == "b_bias"):
        assert kept(jp.select(MLP_MODEL, SCORES, 0.5, ignore=ignore)) == {"a:1": 3, "b:1": 5}
    plan = jp.select(MLP_MODEL, SCORES, 0.5, ratios={"b.*": 0.8})
    assert kept(plan) == {"a:1": 3, "b:1": 1} and chosen(plan, "b:1") == [2]
    assert kept(jp.select(MLP_MODEL, SCORES, 0.0, ratios={"b.*": 0.4})) == {"a:1": 6, "b:1": 3}
    assert kept(jp.select(MLP_MODEL, SCORES, 0.5, ratios={"b:1": 0.0, ".*": 0.5})) == {"a:1": 3, "b:1": 5}
    # What is ignored stays whole, whatever a pattern of ratios says.
    assert kept(jp.select(MLP_MODEL, SCORES, 0.0, ratios={".*": 0.5}, ignore="b_bias")) == {"a:1": 3, "b:1": 5}
    # Ratios count towards a budget.
    plan = jp.select(MLP_MODEL, SCORES, jp.Budget(macs=0.5), ratios={"b.*": 0.4})
    assert kept(plan)["b:1"] == 3 and share(plan, MLP_MODEL, "macs") <= 0.5


def test_ties_keep_the_lowest_index() -> None:
    scores = {"a:1": np.ones(6), "b:1": np.ones(5)}
    plan = jp.select(MLP_MODEL, scores, 0.5, scope="local")
    assert chosen(plan, "a:1") == [0, 1, 2] and chosen(plan, "b:1") == [0, 1]
    plan = jp.select(MLP_MODEL, scores, 0.5, scope="global")  # the last index of a:1 is due too, but stays
    assert kept(plan) == {"a:1": 1, "b:1": 5} and chosen(plan, "a:1") == [0]


def test_scores_that_are_not_finite() -> None:
    scores = SCORES | {"a:1": np.array([3.0, np.nan, 6.0, -np.inf, 5.0, np.inf])}
    for scope in ("local", "global"):
        plan = jp.select(MLP_MODEL, scores, jp.Budget(params=0.55), scope=scope)
        assert {1, 5} <= set(chosen(plan, "a:1")) and 3 not in chosen(plan, "a:1")


def test_a_budget_out_of_reach_names_what_can_be_reached() -> None:
    least = jp.Plan({"a:1": np.arange(6) == 2, "b:1": np.arange(5) == 2})
    with pytest.raises(ValueError, match=r"Budget\(params=0\.05\) cannot be met.* of the full model stays") as caught:
        jp.select(MLP_MODEL, SCORES, jp.Budget(params=0.05))
    (named,) = re.findall(r"'params': ([0-9.]+)", str(caught.value))
    assert float(named) == pytest.approx(share(least, MLP_MODEL, "params"), abs=1e-4)
    assert kept(jp.select(MLP_MODEL, SCORES, jp.Budget(params=float(named)))) == {"a:1": 1, "b:1": 1}
    for keywords in ({"min_keep": 4}, {"round_to": 4}, {"ignore": "a"}, {"ratios": {"a.*": 0.1}}):
        with pytest.raises(ValueError, match=r"cannot be met.*lower min_keep or round_to, ignore less"):
            jp.select(MLP_MODEL, SCORES, jp.Budget(macs=0.3), **keywords)


def test_scores_of_another_model() -> None:
    with pytest.raises(ValueError, match=r"unknown: z:1; missing: b:1\. jaxprune\.group_scores gives them"):
        jp.select(MLP_MODEL, {"a:1": SCORES["a:1"], "z:1": SCORES["b:1"]}, 0.5)
    with pytest.raises(ValueError, match=r"unknown: none; missing: b:1"):
        jp.select(MLP_MODEL, {"a:1": SCORES["a:1"]}, 0.5)
    with pytest.raises(ValueError, match=r"the scores of group 'b:1' have shape \(6,\), not \(5,\)"):
        jp.select(MLP_MODEL, SCORES | {"b:1": np.ones(6)}, 0.5)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"target": 1.0}, r"target=1\.0; it is the share"),
        ({"target": -0.1}, r"target=-0\.1"),
        ({"scope": "everything"}, r"scope='everything'; it may be 'global', 'local', 'isomorphic' or a callable"),
        ({"round_to": 0}, r"round_to=0; give an integer of at least 1"),
        ({"round_to": 2.0}, r"round_to=2\.0"),
        ({"round_to": {"a.*": 0}}, r"round_to=.*give an integer of at least 1"),
        ({"round_to": {"z.*": 8}}, r"round_to has the pattern 'z\.\*', which matches no whole id.* a:1, b:1"),
        ({"round_to": {"(": 8}}, r"'\(' is not a regular expression"),
        ({"min_keep": 0}, r"min_keep=0; give a count of at least 1, or a share"),
        ({"min_keep": 1.5}, r"min_keep=1\.5"),
        ({"min_keep": -0.5}, r"min_keep=-0\.5"),
        ({"ratios": {"a:1": 1.0}}, r"ratios gives 1\.0 for group 'a:1'"),
        ({"ratios": {"a": 0.5}}, r"ratios has the pattern 'a', which matches no whole id"),
        ({"ratios": 0.5}, r"ratios=0\.5; give a mapping from a pattern"),
        ({"ignore": "nothing"}, r"matches no floating parameter"),
    ],
)
def test_bad_values(keywords: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jp.select(MLP_MODEL, SCORES, **({"target": 0.5} | keywords))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "an empty Budget; give params="),
        ({"params": 0.0}, r"Budget\(params=0\.0\); it is the fraction that may stay"),
        ({"macs": 1.1}, r"Budget\(macs=1\.1\)"),
        ({"bytes": -1}, r"Budget\(bytes=-1\)"),
        ({"latency": 0.5}, r"Budget\(latency=\) needs latency_of="),
        ({"params": 0.5, "latency_of": len}, r"Budget\(latency=\) needs latency_of="),
    ],
)
def test_bad_budgets(keywords: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jp.Budget(**keywords)


def test_a_model_without_groups() -> None:
    model = jp.trace(lambda p, x: x @ p["a"], {"a": MLP["a"]}, X)
    with pytest.raises(ValueError, match=r"no group from which anything could be removed; Model\.explain"):
        jp.select(model, {}, 0.5)


def test_the_plan_of_a_selection_computes_the_masked_model() -> None:
    plan = jp.select(MLP_MODEL, jp.group_scores(MLP_MODEL, MLP), jp.Budget(params=0.5))
    assert jp.verify(MLP_MODEL, plan, MLP, X).exact
    assert jax.tree.map(jnp.shape, jp.shrink(MLP_MODEL, plan, MLP))["c"] == (kept(plan)["b:1"], 2)
