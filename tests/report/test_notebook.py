"""Masks in a notebook."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.report import notebook, show_masks

MASKS = {"dense": {"kernel": jnp.eye(4, dtype=bool), "bias": True}, "head": jnp.array([[True], [False]])}
PARAMS = {"dense": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}, "head": jnp.ones((2, 3))}


def test_broadcast_masks_are_shown_in_full() -> None:
    lines = str(show_masks(MASKS, PARAMS)).splitlines()
    cells = [line.split("  ") for line in lines]
    table = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in cells}
    assert table["dense/kernel"] == ["4 x 4", "4", "16", "75 %"]
    assert table["dense/bias"] == ["4", "4", "4", "0 %"]
    assert table["head"] == ["2 x 3", "3", "6", "50 %"]
    assert len(lines) == 4


def test_an_empty_mask_is_shown() -> None:
    assert str(show_masks({"none": np.zeros(0, bool)})).splitlines()[1].split() == ["none", "0", "0", "0", "0", "%"]


def test_without_treescope_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "_installed", lambda: False)
    view = show_masks({"<b>": np.eye(2, dtype=bool)})
    assert "pip install treescope" in view._repr_html_()
    assert "pip install treescope" in repr(view)
    assert "&lt;b&gt;" in view._repr_html_()
    assert "<b>" not in view._repr_html_()


def test_treescope_draws_them() -> None:
    view = show_masks(MASKS, PARAMS)
    assert "treescope" in view._repr_html_()
    assert "pip install" not in view._repr_html_()
    assert repr(view) == str(view)


def test_masks_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="head"):
        show_masks({**MASKS, "head": jnp.ones((5, 5), bool)}, PARAMS)
