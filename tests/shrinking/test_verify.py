"""`verify`: it agrees with exact plans, names what is approximate, and finds what is broken."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.shrinking.small import PLAN, inputs, mlp, mlp_model, mlp_params
from tests.zoo.models._model import Draw

PARAMS, MODEL, X = mlp_params(), mlp_model(), inputs()
verify_module = importlib.import_module("jaxprune.shrinking.verify")


def soft(params, x):
    """The softmax runs over what is cut: its zeros still count."""
    hidden = jax.nn.relu(x @ params["a"])
    return jax.nn.softmax(hidden @ params["b"], axis=-1) @ params["c"]


def soft_model():
    draw = Draw(1)
    params = {"a": draw.normal(4, 6), "b": draw.normal(6, 8), "c": draw.normal(8, 3)}
    return jp.trace(soft, params, X), params


def test_an_exact_plan() -> None:
    result = jp.verify(MODEL, PLAN, PARAMS, X, strict=True)
    assert result.exact and not result.approximate
    assert result.error == result.exact_error == float(result) < 1e-5
    assert 0 < result.noise < 1e-5
    assert str(result).startswith(f"error {result.error:.1e}")


def test_approximate_groups_are_reported_and_left_out() -> None:
    model, params = soft_model()
    assert {name: group.exactness for name, group in model.groups.items()} == {
        "a:1": "consumers",
        "b:1": "approximate",
    }
    plan = jp.Plan({"a:1": np.arange(6) < 4, "b:1": np.arange(8) < 4})
    result = jp.verify(model, plan, params, X, strict=True)
    assert list(result.approximate) == ["b:1"] and "reduce_" in result.approximate["b:1"]
    assert result.exact and result.error > 1e-2 > 1e-5 > result.exact_error
    assert "b:1 is approximate" in str(result)
    # A group that the plan keeps whole accounts for nothing.
    whole = jp.Plan({"a:1": np.arange(6) < 4, "b:1": np.ones(8, bool)})
    assert not jp.verify(model, whole, params, X).approximate


def rolled(tree, group=MODEL.groups["first/kernel:1"]):
    """What `shrink` gives for the indices next to those of the plan."""
    wrong = jp.Plan({**PLAN.keep, group.id: np.roll(PLAN.keep[group.id], 1)})
    return jp.shrink(MODEL, wrong, tree)


def test_a_broken_cut_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "shrink", lambda model, plan, tree: rolled(tree))
    assert not jp.verify(MODEL, PLAN, PARAMS, X).exact
    with pytest.raises(AssertionError, match=r"departs from the masked model by .* please report"):
        jp.verify(MODEL, PLAN, PARAMS, X, strict=True)


def test_a_cut_that_mixes_members_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One member is cut at other indices than the rest."""

    def mixed(model, plan, tree):
        right = jp.shrink(model, plan, tree)
        return {**right, "first": {**right["first"], "bias": rolled(tree)["first"]["bias"]}}

    monkeypatch.setattr(verify_module, "shrink", mixed)
    with pytest.raises(AssertionError, match="departs from the masked model"):
        jp.verify(MODEL, PLAN, PARAMS, X, strict=True)


def test_a_broken_function_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(model, plan):
        return lambda params, x: 1.001 * mlp(params, x)

    monkeypatch.setattr(verify_module, "shrunk_function", function)
    assert jp.verify(MODEL, PLAN, PARAMS, X).error == pytest.approx(1e-3, rel=0.01)
    with pytest.raises(AssertionError, match="departs from the masked model"):
        jp.verify(MODEL, PLAN, PARAMS, X, strict=True)
    monkeypatch.setattr(verify_module, "shrunk_function", lambda model, plan: lambda params, x: mlp(params, x)[:, :2])
    with pytest.raises(AssertionError, match=r"shape \(2, 2\) after the cut, not \(2, 3\)"):
        jp.verify(MODEL, PLAN, PARAMS, X)


def test_nan_is_no_agreement() -> None:
    result = jp.verify(MODEL, PLAN, PARAMS, X.at[0, 0].set(jnp.nan))
    assert result.error == math.inf and not result.exact
    with pytest.raises(AssertionError, match="by inf of the largest output"):
        jp.verify(MODEL, PLAN, PARAMS, X.at[0, 0].set(jnp.nan), strict=True)


@pytest.mark.parametrize("sign", [1, -1])
def test_infinities_that_agree(sign: int) -> None:
    def apply(params, x):
        y = x @ params["a"] @ params["b"]
        return jnp.concatenate([y, jnp.full_like(y, sign * jnp.inf)], -1)

    draw = Draw(2)
    params = {"a": draw.normal(4, 6), "b": draw.normal(6, 3)}
    assert jp.verify(jp.trace(apply, params, X), jp.Plan({"a:1": np.arange(6) < 3}), params, X, strict=True).exact


def test_integer_boolean_and_key_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(params, x):
        logits = mlp(params, x)
        return {"class": jnp.argmax(logits, -1), "sure": logits > 0, "key": jax.random.key(0), "empty": jnp.zeros((0,))}

    model = jp.trace(apply, PARAMS, X)
    assert jp.verify(model, PLAN, PARAMS, X, strict=True).error == 0
    broken = jp.shrunk_function(model, PLAN)

    def function(model, plan):
        return lambda params, x: {**(made := broken(params, x)), "class": made["class"] + 1}

    monkeypatch.setattr(verify_module, "shrunk_function", function)
    assert not jp.verify(model, PLAN, PARAMS, X).exact


def test_outputs_that_are_cut_themselves() -> None:
    def apply(params, x):
        hidden = jnp.tanh(x @ params["a"])
        return {"hidden": hidden, "out": hidden @ params["b"]}

    draw = Draw(3)
    params = {"a": draw.normal(4, 6), "b": draw.normal(6, 3)}
    model = jp.trace(apply, params, X, frozen_outputs="out")
    plan = jp.Plan({"a:1": np.arange(6) % 2 == 0})
    assert jp.verify(model, plan, params, X, strict=True).exact
    assert jp.shrunk_function(model, plan)(jp.shrink(model, plan, params), X)["hidden"].shape == (2, 3)


def test_features_that_are_cut() -> None:
    params = {"a": Draw(3).normal(4, 6)}
    model = jp.trace(lambda params, x: jnp.tanh(x @ params["a"]), params, X, frozen_outputs=False)
    plan = jp.Plan({"a:1": np.arange(6) % 2 == 0})
    assert jp.verify(model, plan, params, X, strict=True).exact
    assert jp.shrunk_function(model, plan)(jp.shrink(model, plan, params), X).shape == (2, 3)


def test_bfloat16_has_its_own_noise() -> None:
    params, x = mlp_params(jnp.bfloat16), inputs(dtype=jnp.bfloat16)
    result = jp.verify(mlp_model(jnp.bfloat16), PLAN, params, x, strict=True)
    assert result.exact and result.noise > 1e-4


def test_errors() -> None:
    with pytest.raises(ValueError, match="which has 8 here"):
        jp.verify(MODEL, jp.Plan({"first/kernel:1": np.ones(9, bool)}), PARAMS, X)
    with pytest.raises(ValueError, match="params has another tree structure"):
        jp.verify(MODEL, PLAN, {"first": PARAMS["first"]}, X)
