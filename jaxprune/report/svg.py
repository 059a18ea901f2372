"""A drawing of matplotlib as SVG that stands inside a page, and follows its light and dark colours."""

import io
import re
from typing import TYPE_CHECKING

from jaxprune.report.markup import Safe, tag
from jaxprune.report.plots import CONTROL, INK, LINE, MUTED, PAPER, SERIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    CONTROL: "var(--control)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)},
}


def inline(figure: "Figure", name: str, title: str, description: str) -> Safe:
    """An `<svg>` element for a page of HTML.

    Text becomes outlines, so it needs no font and cannot overlap where fonts differ. Names inside are made unique to
    the drawing and the same in every run: in a page they share one space. Colours become variables of the page.

    Args:
      figure: of matplotlib.
      name: unique on the page; letters only.
      title: what a screen reader says.
      description: the drawing in words.

    Returns:
      The element.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    # The rule that matplotlib writes for its own file would hold for the whole page; the page has its own.
    body = re.sub(r"<style.*?</style>|<metadata.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    body = body[re.search(r"<svg[^>]*>", body).end() : body.rindex("</svg>")]  # pyright: ignore[reportOptionalMemberAccess]
    numbers: dict[str, str] = {}
    for found in re.findall(r'\bid="([^"]+)"', body):
        numbers.setdefault(found, f"{name}-{len(numbers)}")
    body = re.sub(r'\bid="([^"]+)"', lambda match: f'id="{numbers[match[1]]}"', body)
    body = re.sub(r'(xlink:)?href="#([^"]+)"', lambda match: f'href="#{numbers[match[2]]}"', body)
    body = re.sub(r"url\(#([^)]+)\)", lambda match: f"url(#{numbers[match[1]]})", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda match: _VARIABLES.get(match[0], match[0]), body)
    box = re.search(r'viewBox="([^"]+)"', text)
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-desc"),
        Safe(body),
        viewBox=box[1] if box else "0 0 1 1",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )
