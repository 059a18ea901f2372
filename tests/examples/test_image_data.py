"""The image loaders of the examples, on made files in the formats of the real ones."""

import gzip
import pickle
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.data import imagenet, images, sources


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
