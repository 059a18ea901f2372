"""MovieLens-100k: 100,000 ratings from 1 to 5 that 943 users gave to 1,682 films (Harper & Konstan 2015).

`load(data_dir)` takes the file that the user names, else the official archive of GroupLens, else the copy in the PyPI
package recbole (2.1 MB, of which only this file is read). The licence of the data does not allow to pass it on, so it
is never part of the repository.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.data import sources

_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
_SHA256 = "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
_OFFICIAL = "ml-100k/u.data"
_RECBOLE = "recbole==1.2.1"
_RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_INTER = "recbole/dataset_example/ml-100k/ml-100k.inter"
_NAMES = ("u.data", "ml-100k.inter", "ml-100k.zip")


@dataclass(frozen=True)
class Ratings:
    """Ratings in columns.

    Attributes:
      user: int32[n], counted from 0.
      item: int32[n], counted from 0.
      value: float32[n], the rating.
      time: int64[n], seconds since 1970.
    """

    user: np.ndarray
    item: np.ndarray
    value: np.ndarray
    time: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def at(self, index: np.ndarray) -> Ratings:
        """The ratings at some positions, or where a bool array is true."""
        return Ratings(self.user[index], self.item[index], self.value[index], self.time[index])


@dataclass(frozen=True)
class RatingData:
    """A set of ratings in memory.

    Attributes:
      name: of the set.
      source: where it came from, for the report.
      ratings: all of them, in the order of the file.
      users: how many users there are.
      items: how many items there are.
    """

    name: str
    source: str
    ratings: Ratings
    users: int
    items: int


def load(data_dir: Path | None = None) -> RatingData:
    """Loads MovieLens-100k.

    Args:
      data_dir: a file (`u.data`, `ml-100k.inter`, `ml-100k.zip`) or a folder with one; nothing else is then tried.

    Raises:
      FileNotFoundError: if `data_dir` does not hold the file.
      ValueError: if a file is not what its name says.
      SourceError: if no source works.
    """
    if data_dir is not None:
        return parse(_text(_named(data_dir)), str(data_dir))
    text, source = sources.first_that_works("MovieLens-100k", [("official", _official), ("PyPI recbole", _recbole)])
    return parse(text, source)


def parse(text: str, source: str = "text") -> RatingData:
    """Reads lines of user, item, rating and time, separated by tabs; a header as RecBole writes it is skipped.

    Users and items are counted from 0 in the order of their numbers in the file.

    Args:
      text: the content of the file.
      source: of the text, for messages and the report.

    Returns:
      The ratings.

    Raises:
      ValueError: if it is no such table, or a user rates an item twice.
    """
    lines = text.splitlines()
    if lines and lines[0].startswith("user_id:"):
        lines = lines[1:]
    try:
        table = np.loadtxt(io.StringIO("\n".join(lines)), dtype=np.int64, delimiter="\t", ndmin=2)
    except ValueError as error:
        raise ValueError(f"{source}: no table of whole numbers separated by tabs: {error}") from error
    if table.shape[0] < 1 or table.shape[1] != 4:
        raise ValueError(f"{source} holds a table of shape {table.shape}; expected user, item, rating and time")
    users, user = np.unique(table[:, 0], return_inverse=True)
    items, item = np.unique(table[:, 1], return_inverse=True)
    if len(np.unique(user.astype(np.int64) * len(items) + item)) != len(table):
        raise ValueError(f"{source}: a user rates an item twice; the splits need one rating a pair")
    columns = (user.astype(np.int32), item.astype(np.int32), table[:, 2].astype(np.float32), table[:, 3])
    return RatingData("MovieLens-100k", source, Ratings(*columns), len(users), len(items))


def _official() -> tuple[str, str]:
    return _text(sources.download(_URL, _SHA256, "movielens/ml-100k.zip")), _URL


def _recbole() -> tuple[str, str]:
    path = sources.installed_file("recbole", _INTER.split("/", 1)[1])
    path = path or sources.wheel_file(_RECBOLE, _RECBOLE_SHA256, _INTER)
    return _text(path), f"PyPI package recbole ({path})"


def _text(path: Path) -> str:
    if path.suffix != ".zip":
        return path.read_text(encoding="utf-8")
    with zipfile.ZipFile(path) as archive:
        if _OFFICIAL not in archive.namelist():
            raise ValueError(f"{path} holds no file {_OFFICIAL}; is this ml-100k.zip?")
        return archive.read(_OFFICIAL).decode("utf-8")


def _named(path: Path) -> Path:
    candidates = [path / name for name in _NAMES] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no file {' or '.join(map(str, candidates))}; --data-dir must name one of {_NAMES}")
