"""Masks in a notebook."""

import dataclasses
import html
import importlib.util

import numpy as np

from jaxprune import trees
from jaxprune.masks import check_masks_fit, full_masks, kept_count
from jaxprune.trees import PyTree

INSTALL = "treescope draws masks and is not installed: pip install treescope"


@dataclasses.dataclass(frozen=True)
class MaskView:
    """Masks to look at: a notebook draws them with treescope where that is installed; elsewhere they are a table.

    Attributes:
      masks: the mask tree.

    Example:
      >>> import numpy as np
      >>> print(MaskView({"w": np.eye(4, dtype=bool)}))
      path  shape  kept of  sparsity
      w     4 x 4  4    16  75 %
    """

    masks: PyTree

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        if not _installed():
            return f"<p>{html.escape(INSTALL)}</p><pre>{html.escape(str(self))}</pre>"
        import treescope

        with treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()):
            return treescope.render_to_html(self.masks)

    def __repr__(self) -> str:
        return str(self) if _installed() else f"{INSTALL}\n{self}"

    def __str__(self) -> str:
        lines = [("path", "shape", "kept", "of", "sparsity")]
        for path, mask in trees.leaves_with_paths(self.masks):
            size, kept = np.size(mask), kept_count(mask, np.shape(mask))
            shape = " x ".join(map(str, np.shape(mask))) or "scalar"
            lines.append((path, shape, f"{kept:,}", f"{size:,}", f"{100 * (size - kept) / max(size, 1):.4g} %"))
        widths = [max(len(line[column]) for line in lines) for column in range(5)]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def show_masks(masks: PyTree, params: PyTree | None = None) -> MaskView:
    """Shows masks, as the last expression of a cell of a notebook.

    Args:
      masks: a concrete mask tree.
      params: the parameters; with them, masks that are broadcast are drawn in full.

    Returns:
      What a notebook draws with treescope, and what prints as a table. Without treescope it says how to install it.

    Raises:
      ValueError: the masks do not fit the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> view = show_masks({"w": jnp.array([[True, False]])}, {"w": jnp.ones((3, 2))})
      >>> view.masks["w"].shape
      (3, 2)
    """
    if params is None:
        return MaskView(masks)
    check_masks_fit(masks, params)
    return MaskView(full_masks(masks, params))


def _installed() -> bool:
    return importlib.util.find_spec("treescope") is not None
