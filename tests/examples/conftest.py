"""Made files for the tests of the examples, none of them real data, and the promotion rules of their users."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """JAX's default promotion rules."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def write_idx(path: Path, values: np.ndarray, compress: bool = True) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.asarray(values.shape, ">i4").tobytes()
    raw = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if compress else raw)


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made text files, some of them in each split."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(40):
        lines = [f"def function_{i}_{j}(x):\n    return x * {i} + {j}  # é\n" for j in range(6)]
        (folder / f"file_{i}.py").write_text("\n".join(lines), encoding="utf-8")
    return folder
