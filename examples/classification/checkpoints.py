"""Checkpoints of a comparison: an Orbax folder a run, and the saved result of each finished run.

    DIR/settings.json                    what all runs share; a different one is refused
    DIR/rigl-0.98-seed0/state/<step>/    Orbax: parameters and optimiser state, masks included
    DIR/rigl-0.98-seed0/result.json      appears when the run has finished

Every file appears under its name only when it is complete, so a process may be killed at any time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from jaxprune import storage
from jaxprune.pipeline.records import Records, write_json

PyTree = Any


class RunStore:
    """Keeps the checkpoints and the result of one run."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder, or makes it.

        Args:
          folder: of this run.
        """
        self._result = folder / "result.json"
        logging.set_verbosity(logging.ERROR)  # Orbax logs every save at the level of warnings
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            enable_async_checkpointing=False,  # a save that has returned is on the disk
            cleanup_tmp_directories=True,  # what a killed process left behind
        )
        self._manager = ocp.CheckpointManager((folder / "state").resolve(), options=options)

    def save(self, step: int, state: PyTree) -> None:
        """Saves the state after `step` steps, unless it is there."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(storage.keys_to_data(state)))

    def restore(self, like: PyTree) -> tuple[int, PyTree]:
        """Returns the latest step and its state, or `(0, like)` where there is none.

        Args:
          like: a state of the same structure, shapes and dtypes.
        """
        step = self._manager.latest_step()
        if step is None:
            return 0, like
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, storage.keys_to_data(like))
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        return step, storage.keys_from_data(restored, like)

    def result(self) -> dict[str, Any] | None:
        """The result of the run, or `None` where it has not finished."""
        if not self._result.exists():
            return None
        return json.loads(self._result.read_text())

    def finish(self, result: Mapping[str, Any]) -> None:
        """Saves the result; from now on the run counts as finished."""
        write_json(self._result, result)

    def close(self) -> None:
        """Closes Orbax's manager."""
        self._manager.close()


def open_folder(folder: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """Prepares the folder of a comparison.

    Args:
      folder: the checkpoint folder.
      settings: what all its runs share.
      resume: whether it may hold runs.

    Raises:
      ValueError: if it holds runs and `resume` is false, or runs with other settings.
    """
    if (folder / "settings.json").exists() and not resume:
        raise ValueError(
            f"{folder} holds the checkpoints of an earlier job; add --resume to go on with it, "
            "or name another --checkpoint-dir"
        )
    Records(folder, settings)
