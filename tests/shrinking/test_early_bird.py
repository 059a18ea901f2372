"""Early-bird tickets: settled plans, by hand and from `select`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.shrinking.small import mlp, mlp_model, mlp_params


def plan(*bits: str) -> jp.Plan:
    return jp.Plan({f"g{k}": np.array([bit == "1" for bit in b]) for k, b in enumerate(bits)})


def drawn(watcher: jp.EarlyBird, *plans: jp.Plan) -> list[float]:
    distances = []
    for each in plans:
        watcher = watcher.update(each)
        distances.append(watcher.distance)
    return distances


def test_distance_is_the_largest_share_decided_otherwise() -> None:
    a, b, c = plan("1100", "10"), plan("1010", "10"), plan("1010", "01")
    # Until there are as many plans as the window asks for, nothing is settled.
    assert drawn(jp.early_bird(window=2), a, b, c) == [1.0, 1.0, 4 / 6]
    assert drawn(jp.early_bird(window=1), a, b, c, c) == [1.0, 2 / 6, 2 / 6, 0.0]


def test_only_the_window_counts() -> None:
    a, b = plan("1100"), plan("0011")
    assert drawn(jp.early_bird(window=2), a, b, b, b)[-2:] == [1.0, 0.0]
    watcher = jp.early_bird(window=2)
    for each in (a, b, b, b, b):
        watcher = watcher.update(each)
    assert len(watcher.history) == 3 and watcher.found


def test_threshold_is_exclusive() -> None:
    steps = (plan("1111111110"), plan("1111111101"))
    watcher = jp.early_bird(window=1, threshold=0.2)
    for each in steps:
        watcher = watcher.update(each)
    assert watcher.distance == 0.2 and not watcher.found
    assert watcher._replace(threshold=0.21).found


def test_groups_that_a_plan_does_not_name_are_whole() -> None:
    assert drawn(jp.early_bird(window=1), plan("11", "1100"), plan("11"))[-1] == 2 / 6
    assert drawn(jp.early_bird(window=1), jp.Plan({}), jp.Plan({}))[-1] == 0


def test_errors() -> None:
    watcher = jp.early_bird().update(plan("1100"))
    with pytest.raises(ValueError, match="another size than those before; start again after a cut"):
        watcher.update(plan("110"))
    # Also where a plan in between does not name the group.
    with pytest.raises(ValueError, match="another size"):
        watcher.update(jp.Plan({})).update(plan("110"))
    with pytest.raises(ValueError, match=r"window >= 1"):
        jp.early_bird(window=0)
    with pytest.raises(ValueError, match=r"threshold=1.5"):
        jp.early_bird(threshold=1.5)


def test_plans_of_select_settle_in_training() -> None:
    model, params = mlp_model(), mlp_params()
    x = jax.random.normal(jax.random.key(0), (16, 4))

    @jax.jit
    def epoch(params):
        grads = jax.grad(lambda p: jnp.mean((mlp(p, x) - 1) ** 2) + 0.01 * jp.group_lasso(model, p))(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), jp.group_scores(model, params)

    watcher, found_at = jp.early_bird(window=3, threshold=0.05), None
    for step in range(40):
        params, scores = epoch(params)
        watcher = watcher.update(jp.select(model, scores, 0.5))
        if watcher.found:
            found_at = step
            break
    assert found_at is not None and found_at >= 3
    assert jp.verify(model, jp.select(model, scores, 0.5), params, x, strict=True).exact
