import functools
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

import jaxprune as jp
from jaxprune.report import Trial
from tests.pipeline import toy

STEPS = 40


class Killed(Exception):
    """What stands for a kill in a test."""


def compare(**options):
    arguments = {"tx": toy.TX, "steps": STEPS, "seeds": (0, 1), "sparsities": (0.8,), "progress": False} | options
    return jp.compare(toy.apply_fn, toy.init, toy.loss_fn, toy.batches(), toy.evaluate, **arguments)


def test_every_method_by_name():
    names = list(jp.pipeline.METHODS)
    made = compare(methods=names, seeds=(0,), steps=12)
    assert [trial.method for trial in made.trials] == ["dense", *names]
    for trial in made.trials[1:]:
        # One-shot methods prune each row by itself: of 8 inputs 6 go, of 16 inputs 13.
        one_shot = trial.method in ("one_shot_magnitude", "wanda", "wanda+refit", "sparsegpt", "alps")
        assert abs(trial.values["sparsity_prunable"] - 0.8) < (0.05 if one_shot else 1e-9), trial
        assert np.isfinite(trial.quality)
    assert made.trials[0].values["kept_weights"] == 8 * 16 + 16 + 16 * 2 + 2


def test_the_training_flops_are_those_of_the_ledger():
    """Both matrices have the same sparsity, so a pruned call costs its density times the dense one."""
    made = compare(methods=["random", "gmp", "rigl", "wanda", "top_kast"], seeds=(0,), sparsities=(0.75,))
    flops = {trial.method: trial.values.get("training_flops") for trial in made.trials}
    call = 2 * 32 * (8 * 16 + 16 * 2)
    settings = jp.pipeline.Settings(0.75, STEPS)
    ledger = functools.partial(jp.measure.training_flops, dense=call, steps=STEPS)
    schedule = jp.schedules.cubic(**settings.window())
    expected = {
        "dense": 3 * call * STEPS,
        "random": 3 * call * STEPS / 4,
        "gmp": ledger("gmp", sparsity=0.75, schedule=schedule).value,
        "rigl": ledger("rigl", sparsity=0.75, every=settings.window()["every"]).value,
        "wanda": 3 * call * STEPS,  # of the dense model that it prunes
    }
    assert flops.pop("top_kast") is None  # no formula
    assert flops == pytest.approx(expected)
    assert flops["random"] < flops["rigl"] < flops["gmp"] < flops["dense"]
    made.report().print(Console(width=200, file=(shown := io.StringIO())))
    assert "training flops" in shown.getvalue() and "theoretical" in shown.getvalue()


def test_seeds_are_joined_and_the_best_is_named():
    made = compare(methods=("random", "gmp"), measure=lambda apply_fn, params: {"sum": params["up"]["bias"].sum()})
    rows = {row["method"]: row for row in made.report().rows()}
    assert set(rows) == {"dense", "random", "gmp"}
    for name, row in rows.items():
        own = [trial.quality for trial in made.trials if trial.method == name]
        assert row["mean"] == pytest.approx(np.mean(own)) and row["spread"] == pytest.approx(np.std(own, ddof=1))
    assert made.best(0.8) == max(("random", "gmp"), key=lambda name: rows[name]["mean"])
    assert "sum" in made.trials[0].values
    assert str(made).startswith("Comparison of pruning methods\n") and "│ gmp    │" in str(made)
    with pytest.raises(ValueError, match=r"no trial has sparsity 0.7; there are \[0.8\]"):
        made.best(0.7)


def test_a_seed_is_reproduced_by_optimise():
    """The dense trial of seed 1: its own initial parameters, and batches from step `steps` on."""
    made = compare(methods=("random",), seeds=(0, 1))
    params = toy.init(jax.random.fold_in(jax.random.key(1), 0))
    trained = jp.pipeline.optimise(
        toy.apply_fn, params, toy.loss_fn, toy.batches(), tx=toy.TX, steps=STEPS, start=STEPS
    )
    assert made.trials[1].quality == pytest.approx(toy.evaluate(toy.apply_fn, trained.params), rel=1e-4)


def test_a_method_that_diverged_is_not_the_best():
    nan = float("nan")
    trials = [Trial("gmp", 0.9, 0, nan), Trial("gmp", 0.9, 1, 0.95), Trial("random", 0.9, 0, 0.9)]
    assert jp.pipeline.Comparison(trials).best(0.9) == "random"
    with pytest.raises(ValueError, match=r"at sparsity 0.9 no method is the best: gmp diverged"):
        jp.pipeline.Comparison(trials[:2]).best(0.9)


def test_gradients_are_there_under_any_name():
    def own(settings):
        return jp.pruners.static(settings.sparsity, score=jp.scores.saliency, grads=settings.grads, **settings.shared())

    made = compare(methods={"snip": "snip", "my snip": "snip", "own": own}, seeds=(0,), steps=6)
    assert len({trial.quality for trial in made.trials[1:]}) == 1


def test_a_name_that_meant_another_method_is_refused(tmp_path):
    compare(methods={"mine": "random"}, seeds=(0,), steps=6, folder=tmp_path)
    with pytest.raises(ValueError, match=r"mine-0\.8-seed0, where 'mine' was random; now it is gmp"):
        compare(methods={"mine": "gmp"}, seeds=(0,), steps=6, folder=tmp_path)


def test_the_last_loss_is_there_after_a_kill(tmp_path):
    """Killed in the evaluation, when the last checkpoint is written."""
    calls = []

    def evaluate(apply_fn, params):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return toy.evaluate(apply_fn, params)

    def run(folder):
        return jp.compare(
            toy.apply_fn, toy.init, toy.loss_fn, toy.batches(), evaluate, tx=toy.TX, steps=6, seeds=(0,),
            methods=("gmp",), sparsities=(0.8,), folder=folder, checkpoint_every=4, progress=False,
        )  # fmt: skip

    with pytest.raises(Killed):
        run(tmp_path)
    assert run(tmp_path).trials == run(None).trials


def test_a_method_of_ones_own():
    def late(settings):
        return jp.pruners.gmp(settings.sparsity, begin=settings.at(0.9), end=settings.at(0.9), **settings.shared())

    made = compare(methods={"late": late, "early": "random"}, seeds=(0,))
    assert [trial.method for trial in made.trials] == ["dense", "late", "early"]


def test_two_of_four():
    made = compare(methods=("sr_ste", "wanda"), structure=jp.NM(2, 4), sparsities=None, seeds=(0,))
    assert {trial.sparsity for trial in made.trials} == {0.0, 0.5}
    assert all(trial.values["sparsity_prunable"] == 0.5 for trial in made.trials[1:])


def test_a_killed_comparison_goes_on(tmp_path):
    calls = []

    def evaluate(apply_fn, params):
        calls.append(1)
        if len(calls) == 4:
            raise Killed
        return toy.evaluate(apply_fn, params)

    def run(evaluate, **options):
        return jp.compare(
            toy.apply_fn, toy.init, toy.loss_fn, toy.batches(), evaluate, tx=toy.TX, steps=STEPS, seeds=(0, 1),
            methods=("gmp", "wanda"), sparsities=(0.8,), folder=tmp_path, progress=False, **options,
        )  # fmt: skip

    with pytest.raises(Killed):
        run(evaluate)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == [
        "dense-seed0",
        "dense-seed1",
        "gmp-0.8-seed0",
        "settings",
    ]
    made = run(evaluate)
    assert len(calls) == 4 + 3  # the fourth again, and the two that were missing
    whole = compare(methods=("gmp", "wanda"))
    assert [t.quality for t in made.trials] == pytest.approx([t.quality for t in whole.trials], rel=1e-5)
    # What a later process writes must be the same: no address of a function.
    saved = json.loads((tmp_path / "settings.json").read_text())
    assert "Layerwise" in saved["allocation"] and "0x" not in str(saved)
    with pytest.raises(ValueError, match="calibration: 8 then, 2 now"):
        run(evaluate, calibration=2)


def test_bad_arguments():
    with pytest.raises(ValueError, match="unknown method 'gpm'; known: random"):
        compare(methods=("gpm",))
    with pytest.raises(ValueError, match="give a sequence of names"):
        compare(methods="gmp")
    with pytest.raises(ValueError, match="'dense' is kept"):
        compare(methods={"dense": "gmp"})
    with pytest.raises(ValueError, match=r"1\.5 is none"):
        compare(sparsities=(1.5,))
    with pytest.raises(ValueError, match="seeds is empty"):
        compare(seeds=())
    with pytest.raises(ValueError, match=r"fixes the sparsity at 0\.5"):
        compare(structure=jp.NM(2, 4), sparsities=(0.8,))
