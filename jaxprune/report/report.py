"""`Report`: everything that a comparison or a run of the pipeline found, in one object."""

import collections
import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from jaxprune.measure.figure import Figure, Kind
from jaxprune.report import findings
from jaxprune.report.machine import environment
from jaxprune.report.rows import Better, Row, join_seeds
from jaxprune.report.trial import Layer, Trial

if TYPE_CHECKING:
    from rich.console import Console, Group

_FORMAT = 1


@dataclasses.dataclass
class Report:
    """What was compared, what it cost, and what did not improve.

    It prints as tables, and writes itself as JSON, as plots and as one self-contained page.

    Attributes:
      title: of the page.
      quality: the name of the quality: "accuracy", "negative RMSE", "NDCG@10".
      trials: one for each model that was trained; the dense one with sparsity 0.
      layers: what is left of each parameter of the final model, in the order of the model.
      costs: figures by the name of the cost and the name of the model, "dense" first; less is better in all of them.
      notes: sentences to print under the tables.
      settings: what was chosen, by name; plain values.
      environment: versions and machine; `jp.report.environment()` where none is given.
      history: the rounds of the pipeline, one mapping a round, with the same keys.
      axis: what `Trial.sparsity` is a fraction of, such as "sparsity" or "MACs removed".
      better: whether a higher or a lower quality is better. Rows are the same in both; plots and comparisons are not.
      asked: what was asked for, in a sentence; empty: made from the trials.
      reached: what was reached, in a sentence; empty: made from the trials and the layers.
      kinds: how the `Trial.values` are known, by name, where it is not plain from the name.

    Raises:
      ValueError: two trials of the same method, sparsity and seed, an unknown `better`, an unknown kind.

    Example:
      >>> trials = [Trial("dense", 0.0, 0, 0.98), Trial("gmp", 0.9, 0, 0.97), Trial("random", 0.9, 0, 0.91)]
      >>> report = Report("Digits", "accuracy", trials)
      >>> report.metrics()["gmp/0.9/accuracy"]
      0.97
      >>> Report.from_dict(report.to_dict()).trials == report.trials
      True
    """

    title: str
    quality: str
    trials: Sequence[Trial] = ()
    layers: Sequence[Layer] = ()
    costs: Mapping[str, Mapping[str, Figure]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=environment)
    history: Sequence[Mapping[str, Any]] = ()
    axis: str = "sparsity"
    better: Better = "higher"
    asked: str = ""
    reached: str = ""
    kinds: Mapping[str, Kind] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.better not in get_args(Better):
            raise ValueError(f'better={self.better!r} of the report {self.title!r}: give "higher" or "lower".')
        for name, kind in self.kinds.items():
            if kind not in get_args(Kind):
                raise ValueError(f"kinds[{name!r}]={kind!r} is none of {', '.join(get_args(Kind))}.")
        counts = collections.Counter((trial.method, trial.sparsity, trial.seed) for trial in self.trials)
        twice = [key for key, count in counts.items() if count > 1]
        if twice:
            method, sparsity, seed = twice[0]
            raise ValueError(
                f"trials holds {method!r} at sparsity {sparsity} with seed {seed} more than once: it would count more "
                "than the other seeds. Give each its own seed, or one of them."
            )
        self.trials = tuple(self.trials)
        self.layers = tuple(self.layers)
        self.notes = tuple(self.notes)
        self.history = tuple(self.history)

    def rows(self) -> list[Row]:
        """One row for each method and sparsity: seeds, mean, sample standard deviation, means of the values."""
        return join_seeds(self.trials)

    def not_improved(self) -> list[str]:
        """Sentences on what did not improve, and why.

        These are every cost that is not below 0.98 of the dense model's, or not by more than the spread of its
        measurements; every cost that was not measured; and every method that is no better than random pruning.
        """
        return findings.not_improved(self)

    def metrics(self) -> dict[str, float]:
        """Flat names and plain numbers, to log to TensorBoard, W&B or MLflow.

        Names are `method/sparsity/quality`, with `_std` for the spread over seeds; `layer/path/sparsity`; and
        `cost/name/model/kind`, in the unit of its figure. What was not measured is left out.
        """
        result: dict[str, float] = {}
        for row in self.rows():
            prefix = f"{_slug(row['method'])}/{row['sparsity']:g}"
            result[f"{prefix}/{_slug(self.quality)}"] = row["mean"]
            if row["spread"] is not None:
                result[f"{prefix}/{_slug(self.quality)}_std"] = row["spread"]
            result |= {f"{prefix}/{_slug(name)}": value for name, value in row["values"].items()}
        result |= {f"layer/{layer.path}/sparsity": layer.sparsity for layer in self.layers}
        for name, figures in self.costs.items():
            for model, figure in figures.items():
                if figure.value is not None:
                    result[f"cost/{_slug(name)}/{_slug(model)}/{figure.kind}"] = figure.value
        return result

    def table(self) -> "Group":
        """The tables that `print` prints, for a console of rich."""
        from jaxprune.report.terminal import tables

        return tables(self)

    def print(self, console: "Console | None" = None) -> None:
        """Prints the tables, and what did not improve."""
        from rich.console import Console

        (console or Console()).print(self.table())

    def __str__(self) -> str:
        """What `print` prints, without colours, as wide as the terminal."""
        from rich.console import Console

        console = Console(file=io.StringIO(), color_system=None)
        with console.capture() as captured:
            self.print(console)
        return captured.get().rstrip()

    def html(self) -> str:
        """One page that needs no network, no script and no other file.

        Raises:
          ImportError: matplotlib is not installed.
        """
        from jaxprune.report.page import page

        return page(self)

    def save(self, folder: str | Path) -> Path:
        """Writes `report.json`, `report.html`, and `quality.png`, `layers.png` and `costs.png` of what there is.

        Args:
          folder: is made where it is missing; files of these names are replaced.

        Returns:
          The path of the page.

        Raises:
          ImportError: matplotlib is not installed; `report.json` is there already.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        from jaxprune.report import plots

        for name, figure in plots.drawings(self).items():
            figure.savefig(folder / f"{name}.png", dpi=160)
        path = folder / "report.html"
        path.write_text(self.html(), encoding="utf-8")
        return path

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; `from_dict` is its inverse, but for settings that are not plain values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["trials"] = [trial.to_dict() for trial in self.trials]
        fields["layers"] = [layer.to_dict() for layer in self.layers]
        fields["costs"] = {
            name: {model: figure.to_dict() for model, figure in figures.items()} for name, figures in self.costs.items()
        }
        for name in ("notes", "settings", "environment", "history", "kinds"):
            fields[name] = plain(fields[name])
        return {"format": _FORMAT, **fields}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The report that `to_dict` gave, also after a round trip through JSON.

        Args:
          data: what `to_dict` gave.

        Returns:
          The report.

        Raises:
          ValueError: another format, or fields that a report does not have.
        """
        if data.get("format") != _FORMAT:
            raise ValueError(
                f"format={data.get('format')!r} of a report; this jaxprune reads {_FORMAT}. Write it again, or read it "
                "with the version that wrote it."
            )
        fields = {name: value for name, value in data.items() if name != "format"}
        unknown = set(fields) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"a report has no {', '.join(sorted(unknown))}; is this the JSON of another object?")
        fields["trials"] = [Trial.from_dict(trial) for trial in fields.get("trials", ())]
        fields["layers"] = [Layer.from_dict(layer) for layer in fields.get("layers", ())]
        fields["costs"] = {
            name: {model: Figure.from_dict(figure) for model, figure in figures.items()}
            for name, figures in fields.get("costs", {}).items()
        }
        return cls(**fields)


def plain(value: Any) -> Any:
    """A value as JSON can hold it; what is not plain becomes its text.

    Example:
      >>> import numpy as np
      >>> plain({"steps": np.int64(3), "folder": Path("a"), "rate": float("nan"), "seeds": (0, 1)})
      {'steps': 3, 'folder': 'a', 'rate': 'nan', 'seeds': [0, 1]}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # a scalar of NumPy or JAX
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    return str(value)


def _slug(name: str) -> str:
    return re.sub(r"\s+", "_", name.strip())
