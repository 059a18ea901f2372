"""ImageNet and any set of that layout: too big for memory, so images are read by index.

With a folder of JPEGs (`train/<class>/*.JPEG` and `val/<class>/*.JPEG`, the layout of the official
archives once unpacked) Pillow reads them. Without one, TensorFlow Datasets reads `imagenet2012`
through its random-access data sources; the official archives need a licence that only you can
accept, so TFDS expects them in its manual download folder.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.data.sources import SourceError

_ENDINGS = frozenset({".jpeg", ".jpg", ".png"})
_RESIZE = 256 / 224  # the usual evaluation crop: the shorter side at 256 for a crop of 224


@dataclass(frozen=True)
class StreamedImages:
    """One split of an image set that is read by index.

    Attributes:
      read: takes an index and returns the image and its label.
      size: how many images there are.
    """

    read: Callable[[int], tuple[Image.Image, int]]
    size: int

    def batch(self, indices: np.ndarray, side: int, crop_seed: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
        """Reads, crops and stacks images.

        Args:
          indices: which images, integers `(n,)`.
          side: the side of the square crop, in pixels.
          crop_seed: numbers that make the random crops and flips reproducible (the usual training
            augmentation), or `None` for the centre crop of an evaluation.

        Returns:
          Bytes `(n, side, side, 3)` and labels `(n,)`.
        """

        def one(position: int) -> tuple[np.ndarray, int]:
            image, label = self.read(int(indices[position]))
            if crop_seed is None:
                return centre_crop(image, side), label
            rng = np.random.default_rng([*crop_seed, position])
            return random_crop(image, side, rng), label

        # Pillow decodes outside the interpreter lock, so threads are enough.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            pairs = list(pool.map(one, range(len(indices))))
        images = np.stack([image for image, _ in pairs])
        return images, np.asarray([label for _, label in pairs], dtype=np.int32)


@dataclass(frozen=True)
class StreamedData:
    """A train and a test split that are read by index; see `StreamedImages`."""

    name: str
    source: str
    train: StreamedImages
    test: StreamedImages
    classes: int


def load(data_dir: Path | None = None) -> StreamedData:
    """Loads ImageNet: a folder of images if `data_dir` has that layout, else TFDS.

    Args:
      data_dir: a folder with `train/<class>/*.JPEG`, or the `data_dir` of TFDS.
    """
    if data_dir is not None and (data_dir / "train").is_dir():
        return from_folder(data_dir)
    return from_tfds(data_dir)


def from_folder(root: Path) -> StreamedData:
    """Reads a tree of images, one folder a class; classes are numbered in the order of names.

    Raises:
      FileNotFoundError: if there is no `val` or `validation` folder.
      ValueError: if a split has no images or a class that the training split lacks.
    """
    classes = sorted(folder.name for folder in (root / "train").iterdir() if folder.is_dir())
    numbers = {name: number for number, name in enumerate(classes)}
    tests = [root / name for name in ("val", "validation", "test") if (root / name).is_dir()]
    if not tests:
        raise FileNotFoundError(f"{root} has a folder 'train' but none named 'val'")

    def split(folder: Path) -> StreamedImages:
        files = sorted(p for p in folder.glob("*/*") if p.suffix.lower() in _ENDINGS)
        unknown = sorted({p.parent.name for p in files} - numbers.keys())
        if not files or unknown:
            raise ValueError(
                f"{folder}: {len(files)} images, classes not in 'train': {unknown[:5]}; expected "
                "<class>/<image>.JPEG with the classes of 'train'"
            )

        def read(index: int) -> tuple[Image.Image, int]:
            with Image.open(files[index]) as image:
                return image.convert("RGB"), numbers[files[index].parent.name]

        return StreamedImages(read, len(files))

    train = split(root / "train")
    return StreamedData("imagenet", str(root), train, split(tests[0]), len(classes))


def from_tfds(data_dir: Path | None = None) -> StreamedData:
    """Reads `imagenet2012` through TensorFlow Datasets' random-access data sources.

    Raises:
      SourceError: if TFDS is not installed or cannot prepare the set.
    """
    try:
        tfds: Any = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise SourceError(
            "ImageNet needs either --data-dir with train/<class>/*.JPEG and val/<class>/*.JPEG, or "
            "TensorFlow Datasets: pip install tensorflow-datasets array-record"
        ) from error
    try:
        builder = tfds.builder(
            "imagenet2012",
            data_dir=None if data_dir is None else str(data_dir),
            file_format="array_record",  # the format with random access
        )
        builder.download_and_prepare()
        train, test = builder.as_data_source(split=["train", "validation"])
    except Exception as error:  # TFDS raises many kinds; each means that there are no images
        raise SourceError(f"TensorFlow Datasets could not prepare imagenet2012: {error}") from error

    def split(source: Any) -> StreamedImages:
        def read(index: int) -> tuple[Image.Image, int]:
            record = source[index]
            return Image.fromarray(np.asarray(record["image"])), int(record["label"])

        return StreamedImages(read, len(source))

    return StreamedData("imagenet", "TFDS imagenet2012", split(train), split(test), 1000)


def centre_crop(image: Image.Image, side: int) -> np.ndarray:
    """Scales the shorter side to `side * 256 / 224` and cuts the centre out."""
    scale = side * _RESIZE / min(image.size)
    width, height = (max(side, round(extent * scale)) for extent in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(scaled.crop((left, top, left + side, top + side)), dtype=np.uint8)


def random_crop(image: Image.Image, side: int, rng: np.random.Generator) -> np.ndarray:
    """The Inception crop: 8 to 100 % of the area, aspect 3:4 to 4:3, flipped half of the time."""
    width, height = image.size
    area = width * height * rng.uniform(0.08, 1.0)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    crop_width = min(width, max(1, round(float(np.sqrt(area * aspect)))))
    crop_height = min(height, max(1, round(float(np.sqrt(area / aspect)))))
    left = int(rng.integers(0, width - crop_width + 1))
    top = int(rng.integers(0, height - crop_height + 1))
    box = (left, top, left + crop_width, top + crop_height)
    cut = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(cut, dtype=np.uint8)
