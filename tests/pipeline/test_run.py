import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.pipeline.account import account
from jaxprune.pipeline.budget import fraction_to_remove
from jaxprune.pipeline.prune import levels
from tests.pipeline import toy
from tests.pipeline.runs import BATCHES, DENSE, TRAINED, kernels, no_zeros, run, same


def test_sparsity():
    corruptions = {"noise": jp.pipeline.noise(0.5)}
    made = run(jp.Target(sparsity=0.6, max_drop=0.05), methods="auto", corruptions=corruptions)
    assert made.met and made.plan is None
    assert jp.sparsity(kernels(made.masks), kernels(made.params)) == 0.6
    assert sum(int((leaf == 0).sum()) for leaf in kernels(made.params).values()) == 96
    assert made.quality >= DENSE - 0.05 and made.dense_quality == DENSE
    assert made.quality == toy.evaluate(made.apply_fn, made.params)
    losses = made.prediction.losses
    assert set(losses) == set(jp.pipeline.WEIGHTS)
    assert losses[made.prediction.best] == min(losses.values()) < losses["random"]
    # To half a weight in each of the two kernels.
    assert [each.removed for each in made.history] == pytest.approx(levels(0.6, 4), abs=1 / 160)
    dense, pruned = made.report.rows()
    assert dense["values"]["noise"] < DENSE and pruned["values"]["noise"] < made.quality
    assert made.preprocessed.sensitivity is not None and made.preprocessed.cost.parameters == 178


@pytest.mark.parametrize(
    ("sparsity", "met", "options"),
    [
        (0.8, True, {"methods": "wanda"}),  # of each row: 6 of 8, or 13 of 16
        (0.7, True, {"structure": jp.Channel()}),  # 11 of 16 channels, and 1 of 2
        (0.7, True, {"structure": jp.Block((4, 4))}),  # the second kernel is half of a block wide
        (0.9, False, {"structure": jp.Channel()}),  # one of the two outputs always stays
        (1 - 2 / 3, False, {"structure": jp.NM(2, 3)}),  # 8 and 16 are no multiples of 3: what is left over stays
    ],
)
def test_what_is_reported_is_what_the_masks_remove(sparsity, met, options):
    made = run(jp.Target(sparsity=sparsity, max_drop=99.0), steps=10, rounds=2, **{"methods": "magnitude"} | options)
    gone = jp.sparsity(kernels(made.masks), kernels(TRAINED))
    assert made.met == met == (gone >= sparsity - 0.5 / 160)
    assert made.history[-1].removed == gone == made.report.trials[-1].sparsity
    assert f"{'Met' if met else 'Not met; the best that was found'}: {gone:.1%} of the prunable" in made.report.reached


def test_macs_makes_smaller_arrays():
    made = run(jp.Target(macs=0.5, max_drop=0.1), methods="auto", distillation=0.1)
    assert made.met and made.plan is not None
    width = made.params["up"]["kernel"].shape[1]
    assert width <= 8 and made.params["down"]["kernel"].shape == (width, 2)
    assert made.params["up"]["bias"].shape == (width,)
    x = BATCHES[0][0]
    hidden = jax.nn.relu(x @ made.params["up"]["kernel"] + made.params["up"]["bias"][None])
    expected = hidden @ made.params["down"]["kernel"] + made.params["down"]["bias"][None]
    np.testing.assert_allclose(made.apply_fn(made.params, x), expected, rtol=1e-5, atol=1e-6)
    assert set(made.prediction.losses) == set(jp.pipeline.CUTS)


def test_what_is_gone_is_what_the_plan_removes():
    """Sixteen units go one by one: a cut for 0.47 takes eight of them, which is 0.5, and all that 0.5 asks for."""
    model = jp.trace(toy.apply_fn, TRAINED, BATCHES[0][0])
    scoring = jp.pipeline.Scoring(toy.apply_fn, toy.loss_fn, model, BATCHES[:1])
    made = jp.pipeline.prune(
        scoring, TRAINED, BATCHES, toy.evaluate, criterion="magnitude", removed=0.47, cuts=True, tx=toy.TX, steps=1,
        rounds=1, dense_quality=DENSE, max_drop=10.0,
    )  # fmt: skip
    assert made.removed == made.history[0].removed == 0.5 == 1 - model.cost(plan=made.plan).macs / model.cost().macs


def test_what_stays_is_a_multiple():
    made = run(jp.Target(macs=0.6, max_drop=10.0), round_to=4)
    assert made.met and made.params["up"]["kernel"].shape[1] == 8  # of 16; 9 are within the budget


def test_bytes():
    made = run(jp.Target(bytes=0.5, max_drop=0.1), methods="magnitude")
    assert made.prediction.best == "magnitude" and set(made.prediction.losses) == {"magnitude", "random"}
    stored = made.report.costs["bytes stored"]
    assert made.met
    assert 0.45 < stored["pruned"].value / stored["dense"].value <= 0.5


def test_bytes_of_blocks():
    """Two outputs fill half a block of 4 x 4: to take the share of the blocks away is to take too few weights away."""
    made = run(jp.Target(bytes=0.4, max_drop=99.0), structure=jp.Block((4, 4)), steps=2, rounds=1)
    stored = made.report.costs["bytes stored"]
    assert made.met and stored["pruned"].value <= 0.4 * stored["dense"].value


def test_two_of_four():
    made = run(jp.Target(sparsity=0.5, max_drop=0.1), structure=jp.NM(2, 4))
    assert made.met and len(made.history) == 1
    groups = np.asarray(made.masks["up"]["kernel"]).reshape(2, 4, 16)
    assert (groups.sum(1) == 2).all()
    with pytest.raises(ValueError, match=r"has the sparsity 0\.5; ask for that one"):
        run(jp.Target(sparsity=0.6), structure=jp.NM(2, 4))


def test_a_pattern_that_loses_too_much_is_tried_once():
    """Between 2:4 and nothing there is nothing."""
    made = run(jp.Target(sparsity=0.5, max_drop=0.5), structure=jp.NM(2, 4), evaluate=no_zeros, steps=4)
    assert [(each.removed, each.accepted) for each in made.history] == [(0.5, False)]


@pytest.mark.parametrize(("ratio", "met"), [(0.5, True), (0.51, False)])
def test_latency_is_met_by_what_was_measured(monkeypatch, ratio, met):
    def clock(calls, **_):
        seconds = {name: 1.0 if name == "dense" else ratio for name in calls}
        return {name: jp.measure.Figure(value, "s", "measured", "a test") for name, value in seconds.items()}

    monkeypatch.setattr("jaxprune.measure.latency", clock)
    monkeypatch.setattr("jaxprune.pipeline.budget.latency", clock)
    made = run(jp.Target(latency=0.5, max_drop=10.0), rounds=1, steps=2)
    assert made.plan is not None and made.met == met


def test_what_cannot_be_met_ends_with_the_best_found():
    made = run(jp.Target(sparsity=0.97, max_drop=0.02))
    assert not made.met
    rejected = [each for each in made.history if not each.accepted]
    accepted = [each for each in made.history if each.accepted]
    assert rejected and accepted and all(each.drop <= 0.02 for each in accepted)
    assert made.history[-1].removed < 0.97
    reached = max(each.removed for each in accepted)
    assert jp.sparsity(kernels(made.masks), kernels(made.params)) == pytest.approx(reached, abs=0.01)
    assert made.quality >= DENSE - 0.02
    assert "Not met; the best that was found" in made.report.reached
    # After the first failure: half-way between what was good enough and what was not.
    first = made.history.index(rejected[0])
    before = max(each.removed for each in made.history[:first] if each.accepted)
    assert made.history[first + 1].removed == pytest.approx((before + rejected[0].removed) / 2, abs=1 / 160)


def test_nothing_can_go_leaves_the_dense_model():
    made = run(jp.Target(sparsity=0.9, max_drop=0.5), steps=5, methods=("random",), rounds=1, evaluate=no_zeros)
    assert not made.met and made.history and not any(each.accepted for each in made.history)
    assert made.quality == 0.0 and same(made.params, TRAINED)


def test_a_budget_below_one_channel_is_out_of_reach():
    made = run(jp.Target(macs=0.01, max_drop=100.0), rounds=2)
    assert not made.met and made.params["up"]["kernel"].shape == (8, 1)
    assert set(made.prediction.losses) == {"random", "magnitude"}
    assert any("cannot be met" in each.reason for each in made.history), made.history


def test_what_cannot_be_cut_ends_with_the_best_found():
    """Four fifths of the multiply-adds are in a matrix from which nothing can go: the first level is out of reach."""

    def apply_fn(params, x):
        return jax.nn.relu(x @ params["up"]) @ params["down"] + x @ params["fixed"]

    rng = np.random.default_rng(0)
    shapes = {"up": (32, 4), "down": (4, 32), "fixed": (32, 32)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    batches = [(np.ones((8, 32), np.float32), np.ones((8, 32), np.float32))] * 2
    made = jp.pipeline.run(
        apply_fn, params, toy.loss_fn, batches, lambda apply_fn, params: 0.0, target=jp.Target(macs=0.3),
        tx=toy.TX, steps=8, methods="magnitude", corruptions={}, progress=False,
    )  # fmt: skip
    assert not made.met and made.params["up"].shape == (32, 1)
    assert "Not met; the best that was found: 15.0% of the multiply-adds removed" in made.report.reached


def test_a_last_training_that_diverges_is_not_kept():
    """Two rounds of five steps, then the last training: its batches are NaN."""

    def batches(step):
        inputs, targets = BATCHES[step % len(BATCHES)]
        return inputs, targets if step < 10 else targets * np.nan

    made = run(jp.Target(macs=0.5, max_drop=99.0), batches=batches, steps=15, rounds=2)
    assert made.met and made.params["up"]["kernel"].shape[1] <= 8
    assert np.isfinite(made.quality)


def test_a_quality_of_nan_is_named():
    made = run(jp.Target(sparsity=0.5), evaluate=lambda apply_fn, params: float("nan"), steps=2, rounds=1)
    assert not made.met and "removed, quality is NaN." in made.report.reached


def test_nan_is_no_better_than_any_criterion():
    def losses(**values):
        return jp.pipeline.Prediction(0.5, 0.1, values, {}, ("magnitude",))

    nan = float("nan")
    assert losses(random=nan, magnitude=0.3).beats_random and losses(random=0.4, magnitude=0.3).beats_random
    assert not losses(random=0.3, magnitude=nan).beats_random and not losses(random=nan, magnitude=nan).beats_random


def test_the_scan_looks_at_what_the_criteria_see():
    """Three of six batches; the other three are held out, to compare the criteria on."""
    made = run(jp.Target(sparsity=0.5, max_drop=99.0), methods=("sensitivity",), steps=2, rounds=1)
    losses = [float(toy.loss_fn(toy.apply_fn(TRAINED, x), y)) for x, y in BATCHES]
    assert made.preprocessed.sensitivity.dense == pytest.approx(np.mean(losses[:3]), rel=1e-5)
    assert made.prediction.dense == pytest.approx(np.mean(losses[3:]), rel=1e-5)
    assert not any("single training batch" in note for note in made.report.notes)


def test_a_single_batch_is_named():
    made = run(jp.Target(sparsity=0.5, max_drop=99.0), batches=BATCHES[:1], steps=2, rounds=1)
    assert any("single training batch" in note for note in made.report.notes)


def test_cuts_take_no_where_and_no_structure(tmp_path):
    with pytest.raises(ValueError, match=r"where=up/\.\* beside Target\(macs=\.\.\.\)"):
        run(jp.Target(macs=0.5), where="up/.*", folder=tmp_path)
    assert not list(tmp_path.iterdir())  # the folder is still free for the call that was meant
    with pytest.raises(ValueError, match=r"structure=NM\(n=2, m=4.*beside Target\(latency=\.\.\.\)"):
        run(jp.Target(latency=0.5), structure=jp.NM(2, 4))


def test_a_module_that_can_be_called_is_a_tree():
    """Equinox: a tree of sparsities has the type of the parameters, and was taken for a function."""

    class Net(eqx.Module):
        up: jax.Array
        down: jax.Array

        def __call__(self, x):
            return jax.nn.relu(x @ self.up) @ self.down

    params = Net(TRAINED["up"]["kernel"], TRAINED["down"]["kernel"])
    made = jp.pipeline.run(
        lambda net, x: net(x), params, toy.loss_fn, BATCHES, toy.evaluate, target=jp.Target(sparsity=0.5, max_drop=99),
        tx=toy.TX, steps=2, rounds=1, methods="sensitivity", corruptions={}, progress=False,
    )  # fmt: skip
    assert made.met and made.prediction.best == "sensitivity" and type(made.params) is Net


def test_the_training_is_accounted_for():
    """Two rounds of 5 steps and the last 5: each step three forward passes, of two operations a multiply-add."""
    untrained = toy.init(jax.random.key(0))
    made = run(jp.Target(macs=0.5, max_drop=99.0), params=untrained, steps=15, rounds=2, warmup_steps=10)
    call = 2 * made.preprocessed.cost.macs
    note = next(note for note in made.report.notes if note.startswith("Pruning took"))
    assert (
        f"15 steps of training, three calls each: {flops(15 * 3 * call)} after {flops(10 * 3 * call)} for the warm-up"
        in note
    )
    assert f"saves {call / 2000:.3g} k FLOPs (modelled), so it is paid back after 90.0 inferences (theoretical)" in note
    peak = made.report.costs["peak memory of a call"]
    assert peak["shrunk"].kind == "modelled" and 0 < peak["shrunk"].value < peak["dense"].value
    assert "never comes back" in account(*[jp.measure.Figure(9.0, "MACs", "modelled", "jaxpr")] * 2, steps=1)


def flops(value):
    return str(jp.measure.Figure(value, "FLOPs", "theoretical", "formula"))


def test_two_dense_models_can_be_tested():
    model = jp.trace(toy.apply_fn, TRAINED, BATCHES[0][0])
    models = {"dense": (toy.apply_fn, TRAINED), "other": (toy.apply_fn, TRAINED)}
    made = jp.pipeline.test(
        models, toy.evaluate, BATCHES[0][0], model=model, key=jax.random.key(0), corruptions={}, repetitions=3
    )
    assert made.costs["bytes stored"]["other"] == made.costs["bytes stored"]["dense"]


def test_arguments_are_checked_before_anything_is_trained():
    with pytest.raises(ValueError, match="checkpoint_every=0"):
        run(jp.Target(sparsity=0.5), checkpoint_every=0)
    with pytest.raises(TypeError, match="step is int32"):
        run(jp.Target(sparsity=0.5), params=TRAINED | {"step": jnp.zeros((), jnp.int32)}, warmup_steps=10**9)


def test_empty_parameters_have_no_row():
    made = run(jp.Target(sparsity=0.5, max_drop=99.0), params=TRAINED | {"none": jnp.zeros(0)}, steps=2, rounds=1)
    assert made.met and "none" not in {layer.path for layer in made.report.layers}


def test_fraction_to_remove():
    params = {"w": jnp.zeros((32, 16), jnp.float32), "b": jnp.zeros(16, jnp.float32)}
    sparsity = fraction_to_remove(jp.Target(bytes=0.4), params, jp.Unstructured(), None)
    masks = jp.compute_masks(params | {"w": jax.random.normal(jax.random.key(0), (32, 16))}, sparsity)
    stored = jp.measure.checkpoint_bytes(params, masks)
    assert stored["bitmask"].value <= 0.4 * stored["dense"].value < stored["bitmask"].value + 8
    with pytest.raises(ValueError, match="even without any of the weights"):
        fraction_to_remove(jp.Target(bytes=0.03), params, jp.Unstructured(), None)


def test_targets():
    with pytest.raises(ValueError, match="exactly one"):
        jp.Target()
    with pytest.raises(ValueError, match="sparsity, macs given"):
        jp.Target(sparsity=0.5, macs=0.5)
    with pytest.raises(ValueError, match="Target\\(macs=2\\)"):
        jp.Target(macs=2)
    with pytest.raises(ValueError, match="max_drop=-1"):
        jp.Target(macs=0.5, max_drop=-1)


def test_unknown_criteria():
    with pytest.raises(ValueError, match="unknown criterion 'fisher'; for this target there are: random, magnitude"):
        run(jp.Target(sparsity=0.5), methods=("fisher",))
    with pytest.raises(ValueError, match="calibration=0"):
        run(jp.Target(sparsity=0.5), calibration=0)


def test_embeddings_leave_out_what_needs_inputs():
    def apply_fn(params, ids):
        return params["table"][ids] @ params["head"]

    params = {"table": jax.random.normal(jax.random.key(0), (10, 4)), "head": jnp.ones((4, 1))}
    batches = [(np.arange(10), np.ones((10, 1), np.float32))] * 2

    def evaluate(apply_fn, params):
        return -float(toy.loss_fn(apply_fn(params, batches[0][0]), batches[0][1]))

    made = jp.pipeline.run(
        apply_fn, params, toy.loss_fn, batches, evaluate, target=jp.Target(sparsity=0.5, max_drop=1.0),
        tx=optax.adam(0.05), steps=40, progress=False,
    )  # fmt: skip
    assert made.met
    assert set(made.prediction.skipped) == {"wanda", "sparsegpt"}
    assert "table: rows are looked up" in made.prediction.skipped["wanda"]


def test_a_function_without_products_has_no_macs_to_lose():
    def apply_fn(params, ids):
        return params["table"][ids].sum(-1)

    batches = [(np.arange(4), np.ones(4, np.float32))]
    with pytest.raises(ValueError, match="no multiply-adds, no dot and no convolution"):
        jp.pipeline.run(
            apply_fn, {"table": jnp.ones((10, 4))}, toy.loss_fn, batches, lambda apply_fn, params: 0.0,
            target=jp.Target(macs=0.5), tx=optax.adam(0.05), steps=4, progress=False,
        )  # fmt: skip
