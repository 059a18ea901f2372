"""Calibration over batches: sums, going on from earlier ones, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.draws import normal

PARAMS = {"a": jnp.eye(3), "b": jnp.ones((3, 2))}
BATCHES = [normal(k, 4, 3) for k in range(4)]


def net(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


def test_sums_over_batches() -> None:
    stats = jp.calibrate(net, PARAMS, BATCHES, jp.stats.gram)
    x = np.concatenate(BATCHES)
    np.testing.assert_allclose(stats["a"], x.T @ x, rtol=1e-5)
    np.testing.assert_allclose(stats["b"], np.tanh(x).T @ np.tanh(x), rtol=1e-5)
    assert float(stats.count("b")) == 16


def test_goes_on_from_earlier_statistics(tmp_path) -> None:
    whole = jp.calibrate(net, PARAMS, BATCHES, jp.stats.absolute_mean)
    first = jp.calibrate(net, PARAMS, BATCHES[:2], jp.stats.absolute_mean)
    jp.storage.save(tmp_path / "stats", first)
    restored = jp.storage.restore(tmp_path / "stats", first)
    second = jp.calibrate(net, PARAMS, iter(BATCHES[2:]), jp.stats.absolute_mean, init=restored)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, second)
    assert float(first.count("a")) == 8  # the caller's statistics are still there


def test_one_trace_for_batches_of_one_shape() -> None:
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return net(params, x)

    jp.calibrate(counted, PARAMS, BATCHES, jp.stats.column_norms)
    assert len(traces) == 1


def test_progress_bar(capsys) -> None:
    jp.calibrate(net, PARAMS, BATCHES, jp.stats.column_norms, progress=True)
    assert "calibrate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "there are no batches"),
        (BATCHES, {"weights": lambda x: jnp.zeros(4)}, "no rows with a weight reached a, b"),
        (BATCHES, {"where": "c"}, "matches no floating parameter"),
        (BATCHES, {"strict": True}, "no statistics can be had of these parameters"),
    ],
)
def test_says_what_is_wrong(batches, options, message) -> None:
    params = {**PARAMS, "unused": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=message):
        jp.calibrate(net, params, batches, jp.stats.gram, **options)


def test_statistics_of_another_model_are_refused() -> None:
    other = jp.calibrate(lambda p, x: x @ p["a"], PARAMS, BATCHES, jp.stats.gram)
    with pytest.raises(ValueError, match="init has statistics of other inputs"):
        jp.calibrate(net, PARAMS, BATCHES, jp.stats.gram, init=other)


def test_an_unknown_name_lists_those_there_are() -> None:
    stats = jp.calibrate(net, PARAMS, BATCHES[:1], jp.stats.gram)
    with pytest.raises(KeyError, match="no statistics of 'c'; there are a, b"):
        stats["c"]


def test_statistics_of_another_kind_are_refused() -> None:
    one = {"a": PARAMS["a"]}
    for first, then in (("column_norms", "gram"), ("moments", "gram"), ("gram", "absolute_mean")):
        init = jp.calibrate(lambda p, x: x @ p["a"], one, BATCHES[:1], getattr(jp.stats, first))
        with pytest.raises(ValueError, match=r"another statistic of the inputs of 'a', .*float32\[3"):
            jp.calibrate(lambda p, x: x @ p["a"], one, BATCHES[1:], getattr(jp.stats, then), init=init)
