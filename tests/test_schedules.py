"""Schedules: when masks move, and that they end at the target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import schedules

RAMPS = {
    "constant": schedules.constant,
    "linear": schedules.linear,
    "cubic": schedules.cubic,
    "cosine": schedules.cosine,
    "cyclic": schedules.cyclic,
}


@pytest.mark.parametrize("name", RAMPS)
@pytest.mark.parametrize(("begin", "end", "every"), [(0, 10, 1), (3, 17, 4), (5, 5, 7), (2, 9, 100), (0, 12, 12)])
def test_the_last_update_is_at_the_end_and_complete(name, begin, end, every):
    schedule = RAMPS[name](begin, end, every)
    steps = np.arange(end + 2 * every + 2)
    due = np.asarray(schedule.is_update(jnp.asarray(steps)))
    want = (steps >= begin) & (steps <= end) & (((steps - begin) % every == 0) | (steps == end))
    np.testing.assert_array_equal(due, want)
    assert due[begin] and due[end] and not due[end + 1 :].any()
    progress = np.asarray(schedule(jnp.asarray(steps)))
    assert progress.dtype == np.float32
    assert (progress[end:] == 1).all() and (progress[:begin] == 0).all()
    assert ((progress >= 0) & (progress <= 1)).all()
    if name != "cyclic":
        assert (np.diff(progress) >= 0).all()


@pytest.mark.parametrize("end", [3, 7, 10, 49, 1_000_003])
def test_progress_at_the_end_is_exactly_one(end):
    for make in RAMPS.values():
        assert float(make(0, end)(end)) == 1.0
        assert float(make(1, end)(end)) == 1.0


def test_the_curves():
    x = np.arange(21) / 20
    steps = jnp.arange(100, 121)
    for name, want in {
        "constant": np.ones(21),
        "linear": x,
        "cubic": 1 - (1 - x) ** 3,
        "cosine": (1 - np.cos(np.pi * x)) / 2,
    }.items():
        np.testing.assert_allclose(RAMPS[name](100, 120)(steps), want, atol=1e-6)
    cyclic = np.asarray(schedules.cyclic(0, 20, cycles=2)(jnp.arange(21)))
    want = 1 - (1 - (2 * x) % 1) ** 3
    want[-1] = 1
    np.testing.assert_allclose(cyclic, want, atol=1e-6)


def test_one_shot():
    schedule = schedules.one_shot(4)
    assert [t for t in range(9) if bool(schedule.is_update(t))] == [4]
    assert [float(schedule(t)) for t in (0, 3, 4, 9)] == [0, 0, 1, 1]


def test_traced_steps():
    schedule = schedules.cubic(2, 11, 3)
    both = jax.jit(lambda t: (schedule.is_update(t), schedule(t)))
    for t in range(14):
        due, progress = both(jnp.asarray(t, jnp.int32))
        assert bool(due) == bool(schedule.is_update(t))
        assert float(progress) == pytest.approx(float(schedule(t)), abs=1e-6)


def test_cosine_decay():
    t = np.arange(0, 120, 10)
    want = 0.15 * (1 + np.cos(np.pi * np.minimum(t / 100, 1)))
    np.testing.assert_allclose(schedules.cosine_decay(jnp.asarray(t), 100, 0.3), want, atol=1e-6)
    assert float(schedules.cosine_decay(100, 100, 0.3)) == 0.0


@pytest.mark.parametrize("make", [schedules.Schedule, *RAMPS.values()])
def test_bad_schedules(make):
    curve = [lambda x: x] if make is schedules.Schedule else []
    with pytest.raises(ValueError, match=r"begin=5, end=4.*begin <= end"):
        make(*curve, 5, 4)
    with pytest.raises(ValueError, match="begin=-1"):
        make(*curve, -1, 4)
    for every in (0, -3):
        with pytest.raises(ValueError, match=f"every={every}"):
            make(*curve, 0, 4, every)


def test_bad_cycles():
    with pytest.raises(ValueError, match="cycles=0"):
        schedules.cyclic(0, 4, cycles=0)
    with pytest.raises(ValueError, match="begin=-2"):
        schedules.one_shot(-2)
