"""The ledger against RigL's appendix H, step by step, and the break-even."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.measure import Figure, Ledger, break_even, saving, training_flops

DENSE = 1000.0
SPARSE = 100.0


def joules(value: float, spread: float | None = None) -> Figure:
    return Figure(value, "J", "measured", "rapl:package-0", spread)


@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("dense", 3 * DENSE),
        ("static", 3 * SPARSE),
        ("snip", 3 * SPARSE),
        ("set", 3 * SPARSE),
        ("snfs", 2 * SPARSE + DENSE),
        ("ste", 2 * SPARSE + DENSE),
        ("rigl", (3 * SPARSE * 100 + 2 * SPARSE + DENSE) / 101),
    ],
)
def test_formulas_of_the_paper(method: str, step: float) -> None:
    every = {"every": 100} if method == "rigl" else {}
    found = training_flops(method, dense=DENSE, steps=50, sparsity=0.9, **every)
    assert found.value == pytest.approx(50 * step)
    assert found.kind == "theoretical"
    assert ("hardware that skips zeros" in found.note) == (method != "dense")
    assert "1911.11134" in found.source or method == "ste"


def test_published_share_of_rigl() -> None:
    """ResNet-50 with uniform sparsity 0.8: 0.23 of the dense training FLOPs at the inference share 0.23 (table 2)."""
    found = training_flops("rigl", dense=1.0, steps=1, sparsity=0.8, every=100, sparse=lambda share: 0.23)
    assert found.value is not None
    assert found.value / 3 == pytest.approx(0.23, abs=0.005)


@pytest.mark.parametrize("begin", [3, 40])
def test_gmp_is_the_mean_over_the_masks_that_are_held(begin: int) -> None:
    schedule = jp.schedules.cubic(begin=begin, end=begin + 20, every=6)
    steps, level, expected = 35, 0.0, 0.0
    for step in range(steps):
        if bool(schedule.is_update(step)):
            level = 0.9 * float(schedule(step))
        expected += 3 * DENSE * (1 - level)
    found = training_flops("gmp", dense=DENSE, steps=steps, sparsity=0.9, schedule=schedule)
    assert found.value == pytest.approx(expected)


def test_gmp_of_the_pruner_itself() -> None:
    """The sparsity that the masks of a real training hold, step by step."""
    import optax

    pruner = jp.pruners.gmp(sparsity=0.75, begin=2, end=12, every=4)
    tx = jp.sparsify(optax.sgd(0.1), pruner)
    params = {"w": jax.random.normal(jax.random.key(0), (16, 16))}
    update = jax.jit(tx.update)
    state = tx.init(params)
    expected = 0.0
    for _ in range(16):
        _, state = update(params, state, params)
        expected += 3 * DENSE * (1 - jp.sparsity(jp.get_masks(state), params))
    schedule = jp.schedules.cubic(begin=2, end=12, every=4)
    found = training_flops("gmp", dense=DENSE, steps=16, sparsity=0.75, schedule=schedule)
    assert found.value == pytest.approx(expected, rel=1e-3)


def test_granet_pays_for_dense_gradients_now_and_then() -> None:
    schedule = jp.schedules.one_shot(0)
    found = training_flops("granet", dense=DENSE, steps=10, sparsity=0.9, schedule=schedule, every=9)
    assert found.value == training_flops("rigl", dense=DENSE, steps=10, sparsity=0.9, every=9).value


def test_flops_of_a_traced_model() -> None:
    params = {"a": jnp.ones((8, 16)), "b": jnp.ones((16, 4))}
    model = jp.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, jnp.ones((2, 8)))

    def sparse(share: float) -> float:
        return 2.0 * model.cost(masks=jp.compute_masks(params, share, where="a")).macs

    found = training_flops("static", dense=2.0 * model.cost().macs, steps=1, sparsity=0.5, sparse=sparse)
    assert found.value == 3 * 2 * 2 * (8 * 16 * 0.5 + 16 * 4)


def test_ledger_adds_by_unit_and_forgets_no_kind() -> None:
    ledger = (
        Ledger().add("dense training", joules(10.0)).add("dense training", Figure(5.0, "FLOPs", "theoretical", "f"))
    )
    ledger = ledger.add("fine-tuning", joules(2.5))
    assert ledger.total("J").value == 12.5
    assert ledger.total("J").kind == "measured"
    assert "total: 12.5 J (measured)" in str(ledger)
    ledger = ledger.add("scores", Figure(1.0, "J", "modelled", "codecarbon"))
    assert (ledger.total("J").value, ledger.total("J").kind) == (13.5, "modelled")
    ledger = ledger.add("export", Figure.absent("J", "no RAPL"))
    assert str(ledger.total("J")) == "not measured (export: no RAPL)"
    with pytest.raises(ValueError, match="FLOPs"):
        ledger.total("s")


def test_saving() -> None:
    found = saving(joules(3.0, 0.3), joules(1.0, 0.4))
    assert (found.value, found.spread, found.kind) == (2.0, pytest.approx(0.5), "measured")
    assert saving(joules(1.0), joules(3.0)).value == -2.0
    assert saving(Figure.absent("J", "no RAPL"), joules(1.0)).value is None
    with pytest.raises(ValueError, match="'s'"):
        saving(joules(1.0), Figure(1.0, "s", "measured", "clock"))


def test_break_even() -> None:
    found = break_even(joules(600.0), joules(0.25))
    assert (found.value, found.unit, found.kind, found.note) == (2400.0, "inferences", "measured", "")
    assert break_even(600.0, 2).value == 300.0
    assert break_even(joules(0.0), joules(0.25)).value == 0
    assert "spread" in break_even(joules(600.0), joules(0.25, 0.3)).note


def test_no_break_even() -> None:
    for gain, why in ((0.0, "saves nothing"), (-1.0, "costs more")):
        found = break_even(joules(600.0), joules(gain))
        assert found.value == math.inf
        assert why in found.note
    assert "no RAPL" in str(break_even(Figure.absent("J", "no RAPL"), joules(1.0)))
    theory = Figure(np.float64(2.0), "J", "theoretical", "formula")
    assert break_even(joules(4.0), theory).kind == "theoretical"


def test_says_what_is_wrong() -> None:
    schedule = jp.schedules.cubic(0, 10)
    with pytest.raises(ValueError, match="no formula"):
        training_flops("magic", dense=1.0, steps=1)
    with pytest.raises(ValueError, match="needs `schedule`"):
        training_flops("gmp", dense=1.0, steps=1)
    with pytest.raises(ValueError, match="no use for `schedule`"):
        training_flops("set", dense=1.0, steps=1, schedule=schedule)
    with pytest.raises(ValueError, match="needs `every`"):
        training_flops("rigl", dense=1.0, steps=1)
    with pytest.raises(ValueError, match="every=0"):
        training_flops("rigl", dense=1.0, steps=1, every=0)
    with pytest.raises(ValueError, match=r"sparsity=1\.0"):
        training_flops("set", dense=1.0, steps=1, sparsity=1.0)
    with pytest.raises(ValueError, match="one unit"):
        break_even(joules(1.0), Figure(1.0, "s", "measured", "clock"))
