"""Runs that are killed and go on, and folders of other runs."""

import sys

import jax
import pytest

import jaxprune as jp
from tests.pipeline import toy
from tests.pipeline.runs import BATCHES, run, same


class Killed(Exception):
    """What stands for a kill in a test."""


def test_a_killed_run_goes_on_to_the_same_model(tmp_path):
    """Killed three times, each time later: after the warm-up, within the rounds, and after the last training."""
    calls, kills = [], {1, 4, 9}

    def evaluate(apply_fn, params):
        calls.append(1)
        if len(calls) in kills:
            raise Killed
        return toy.evaluate(apply_fn, params)

    def go(folder):
        return jp.pipeline.run(
            toy.apply_fn, toy.init(jax.random.key(0)), toy.loss_fn, BATCHES, evaluate,
            target=jp.Target(sparsity=0.8, max_drop=0.1), tx=toy.TX, steps=50, warmup_steps=100, corruptions={},
            methods=("random", "taylor"), rounds=3, folder=folder, progress=False,
        )  # fmt: skip

    for _ in kills:
        with pytest.raises(Killed):
            go(tmp_path / "killed")
    resumed = go(tmp_path / "killed")
    kills.clear()
    whole = go(None)
    assert same(resumed.params, whole.params)
    assert resumed.history == whole.history


def test_other_settings_are_refused(tmp_path):
    target, options = jp.Target(sparsity=0.5, max_drop=1.0), {"folder": tmp_path, "rounds": 1, "steps": 4}
    first = run(target, where="up/kernel", **options)
    with pytest.raises(ValueError, match="steps: 4 then, 6 now"):
        run(target, where="up/kernel", **options | {"steps": 6})
    with pytest.raises(ValueError, match="where: 'up/kernel' then, 'down/kernel' now"):
        run(target, where="down/kernel", **options)
    with pytest.raises(ValueError, match="checksum of params: "):
        run(target, where="up/kernel", params=toy.init(jax.random.key(3)), **options)
    for name, value in {"rounds": 2, "calibration": 2, "round_to": 2, "key": jax.random.key(1)}.items():
        with pytest.raises(ValueError, match=rf"\({name}: "):
            run(target, where="up/kernel", **options | {name: value})
    again = run(target, where="up/kernel", **options)
    assert same(again.params, first.params) and again.met


@pytest.mark.parametrize("target", [{"sparsity": 0.5}, {"macs": 0.5}])
def test_a_round_that_was_kept_is_not_made_again(tmp_path, monkeypatch, target):
    """Its masks and its plan are read, not computed: they would not fit if anything else had changed."""
    target = jp.Target(**target, max_drop=99.0)
    first = run(target, folder=tmp_path, rounds=2, steps=6)

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(sys.modules["jaxprune.pipeline.prune"], "pruned", fail)
    again = run(target, folder=tmp_path, rounds=2, steps=6)
    assert again.history == first.history
    assert same(again.masks, first.masks) and same(again.params, first.params)
    assert (again.plan is None) == (first.plan is None) == (target.goal == "sparsity")
    assert again.plan is None or again.plan.to_json() == first.plan.to_json()
