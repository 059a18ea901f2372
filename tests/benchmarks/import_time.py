"""What `import jaxprune` costs beyond `import jax, optax`, in fresh interpreters with bytecode, as pip leaves it."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import time
start = time.process_time()
import jax, optax
between = time.process_time()
import jaxprune
print(between - start, time.process_time() - between)
"""


def import_seconds(cache: Path) -> tuple[float, float]:
    """CPU seconds of `import jax, optax` and of `import jaxprune` after them, with bytecode kept in `cache`."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(cache)
    command = [sys.executable, "-c", PROBE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    baseline, own = map(float, done.stdout.split())
    return baseline, own


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        _, compiling = import_seconds(cache)
        pairs = [import_seconds(cache) for _ in range(arguments.repetitions)]
    own = statistics.median(own for _, own in pairs)
    ratio = statistics.median(own / baseline for baseline, own in pairs)
    print(f"import jaxprune: {own:.2f} CPU s, {ratio:.2f} x import jax, optax (median of {arguments.repetitions})")
    print(f"the first time, without bytecode: {compiling:.2f} CPU s")


if __name__ == "__main__":
    main()
