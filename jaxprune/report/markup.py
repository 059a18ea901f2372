"""HTML from Python: every text is escaped but what was made here."""

import html


class Safe(str):
    """HTML that may stand in a page as it is."""

    __slots__ = ()


_VOID = {"meta", "br"}


def tag(name: str, /, *children: str | None, **attributes: str | None) -> Safe:
    """An element. Children that are not `Safe` are escaped; children and attributes that are None are left out.

    Args:
      name: of the element.
      children: texts and elements.
      attributes: by name; `class_` is `class`, and other underscores become dashes.

    Returns:
      The element.

    Example:
      >>> tag("p", "a < b", tag("b", "!"), class_="note")
      '<p class="note">a &lt; b<b>!</b></p>'
    """
    parts = [
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value, quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    ]
    opening = f"<{name}{''.join(parts)}>"
    if name in _VOID:
        return Safe(opening)
    return Safe(f"{opening}{joined(*children)}</{name}>")


def joined(*children: str | None) -> Safe:
    """Texts and elements, one after the other.

    Example:
      >>> joined("<", tag("br"), None)
      '&lt;<br>'
    """
    safe = [child if isinstance(child, Safe) else html.escape(child) for child in children if child is not None]
    return Safe("".join(safe))
