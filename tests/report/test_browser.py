"""The page in a real browser, where one is installed: Chromium, without a window.

`apt-get install chromium` gives one; without it these tests are skipped, and say so.
"""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from jaxprune.report.page import _POLICY
from tests.report import fakes

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium")

# What a browser does on its own is kept from the network, so that nothing but a page's own requests is left to see.
QUIET = (
    "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --enable-logging=stderr --v=0"
).split()


@dataclass
class Visit:
    """What a browser saw: the lines of its console, what the page asked the network for, and the page itself."""

    console: list[str]
    requests: list[str]
    dom: str
    image: np.ndarray | None


def visit(page: Path, width: int, height: int = 900, dark: bool = False, dump: bool = False) -> Visit:
    folder = page.parent / f"{page.stem}-{width}-{dark}"
    folder.mkdir()
    shot = folder / "page.png"
    command = [
        str(BROWSER),
        *QUIET,
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={folder / 'network.json'}",
        f"--window-size={width},{height}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--dump-dom" if dump else f"--screenshot={shot}",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    log = json.loads((folder / "network.json").read_text())
    start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    events = [event.get("params", {}) for event in log["events"] if event["type"] == start]
    own = [e for e in events if "file:" in str(e.get("network_isolation_key")) or e.get("initiator") == "null"]
    requests = [event["url"] for event in own]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Visit(console, requests, done.stdout, None if dump else matplotlib.image.imread(shot))


def test_the_check_sees_errors_and_requests(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("an error")</script>')
    seen = visit(page, 800, dump=True)
    assert "an error" in seen.console[0]
    assert seen.requests == ["http://127.0.0.1:9/x.png"]


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, True)])
def test_the_page_opens_without_error_or_network(tmp_path: Path, width: int, dark: bool) -> None:
    page = tmp_path / "report.html"
    page.write_text(fakes.page("report"), encoding="utf-8")
    seen = visit(page, width, dark=dark)
    assert seen.console == []
    assert seen.requests == []
    assert seen.image is not None
    assert seen.image.shape[1] == width
    assert bool(seen.image[:5, :5, :3].mean() < 0.2) == dark


def test_hostile_names_do_not_run_or_widen_the_page(tmp_path: Path) -> None:
    # The page runs no script; to measure it here, its policy is lifted and one is added.
    text = fakes.page("hostile").replace(_POLICY.replace("'", "&#x27;"), "")
    probe = """<script>
      const wide = [...document.querySelectorAll("main > *, figure, svg, h1, dd, li")].filter(
        (e) => e.getBoundingClientRect().right > innerWidth + 0.5 && !e.closest(".scroll"));
      const tables = [...document.querySelectorAll(".scroll")].filter((e) => e.scrollWidth > e.clientWidth);
      document.body.dataset.measured = `${document.documentElement.scrollWidth} ${wide.length} ${tables.length > 0}`;
    </script>"""
    page = tmp_path / "hostile.html"
    page.write_text(text.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    seen = visit(page, 500, dump=True)
    assert seen.console == []
    assert seen.requests == []
    measured = re.search(r'data-measured="([^"]+)"', seen.dom)
    assert measured is not None and measured[1] == "500 0 true"
