"""`compare`: which method keeps the most quality on a user's own task, at one budget of steps, over several seeds."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from jaxprune import allocation as allocation_
from jaxprune import storage
from jaxprune.calibration.accumulate import counter
from jaxprune.measure.figure import Kind
from jaxprune.pipeline.account import method_flops
from jaxprune.pipeline.batches import Apply, Batches, Evaluate, Loss, batch_at
from jaxprune.pipeline.methods import METHODS, NEEDS_GRADIENTS, Make, Methods, Settings, resolve_methods, sparsities_of
from jaxprune.pipeline.optimise import Checkpoints, Step, check_every, make_step, read, start_state, train
from jaxprune.pipeline.records import Records, stable_name
from jaxprune.posttraining.sequential import prune_sequential
from jaxprune.pruners import Pruner
from jaxprune.report import Report, Trial
from jaxprune.report.rows import best_at, join_seeds
from jaxprune.structures import NM, Structure, Unstructured
from jaxprune.summary import summary
from jaxprune.tracing import Model, trace
from jaxprune.transforms import sparsify
from jaxprune.trees import PyTree, Where

Measure = Callable[[Apply, PyTree], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The trials of a comparison; prints as a table.

    Attributes:
      trials: every model that was trained: dense ones have the method `"dense"` and sparsity 0.
      quality: what the quality is called.
      title: of the report.
      settings: what the trials share.
      kinds: how the values of the trials are known, by name.

    Example:
      >>> trials = [Trial("dense", 0.0, 0, 0.95, {}), Trial("gmp", 0.9, 0, 0.94, {}), Trial("random", 0.9, 0, 0.9, {})]
      >>> Comparison(trials).best(0.9)
      'gmp'
    """

    trials: Sequence[Trial]
    quality: str = "quality"
    title: str = "Comparison"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kinds: Mapping[str, Kind] = dataclasses.field(default_factory=dict)

    def best(self, sparsity: float) -> str:
        """The method of the highest mean quality at a sparsity; one that diverged with any seed is none.

        Raises:
          ValueError: no trial has this sparsity, or every method diverged.
        """
        rows = [row for row in join_seeds(self.trials) if row["method"] != "dense"]
        if there := best_at(rows, sparsity, "higher"):
            return there[0]["method"]
        diverged = [row["method"] for row in rows if row["sparsity"] == sparsity]
        if diverged:
            raise ValueError(f"at sparsity {sparsity} no method is the best: {', '.join(diverged)} diverged.")
        raise ValueError(f"no trial has sparsity {sparsity}; there are {sorted({row['sparsity'] for row in rows})}.")

    def report(self, **extra: Any) -> Report:
        """The report of these trials; `extra` are further fields of `Report`, such as `costs` and `notes`."""
        fields = {"title": self.title, "quality": self.quality, "trials": self.trials, "settings": self.settings}
        fields["kinds"] = {"last_loss": "measured", **self.kinds}
        return Report(**(fields | extra))

    def __str__(self) -> str:
        return str(self.report())


def compare(
    apply_fn: Apply,
    init: PyTree | Callable[[jax.Array], PyTree],
    loss_fn: Loss,
    train_batches: Batches,
    eval_fn: Evaluate,
    *,
    tx: optax.GradientTransformation,
    steps: int,
    methods: Methods = ("random", "gmp", "rigl"),
    sparsities: Sequence[float] | None = (0.9,),
    seeds: Sequence[int] = (0, 1, 2),
    structure: Structure = Unstructured(),
    allocation: Any = allocation_.uniform,
    where: Where = None,
    calibration: int = 8,
    measure: Measure | None = None,
    kinds: Mapping[str, Kind] | None = None,
    folder: str | Path | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
    quality: str = "quality",
    title: str = "Comparison of pruning methods",
) -> Comparison:
    """Trains every method at every sparsity with every seed, the dense model beside them.

    All trials of a seed start from the same parameters and see the same batches for the same number of steps. One-shot
    methods prune the trained dense model of their seed, and train no further. Choose on a validation split: the quality
    of whatever looks best here is biased upwards on the data that chose it. Beside it stands what the training would
    cost on hardware that skips zeros, where the method has a formula (`training_flops`, theoretical).

    Args:
      apply_fn: `(params, inputs) -> outputs`.
      init: a function of a PRNG key that makes parameters; or parameters, which all seeds then share.
      loss_fn: `(outputs, targets) -> scalar`.
      train_batches: a sequence of `(inputs, targets)`, or a callable `step -> (inputs, targets)`. Seed k begins at step
        `k * steps`, so that seeds see other batches, or others first.
      eval_fn: `(apply_fn, params) -> quality`, higher is better; the function it is given is jitted.
      tx: any Optax optimiser, without pruning.
      steps: of each training.
      methods: names of `jp.pipeline.METHODS`, or a mapping from a name to one of them or to a function of
        `jp.pipeline.Settings` that makes a pruner.
      sparsities: fractions of zeros; ignored under N:M, which has its own.
      seeds: of initial parameters, random masks and the order of the data.
      structure: what is pruned together.
      allocation: how the sparsity is shared between layers, for methods that train.
      where: which parameters may be pruned.
      calibration: how many training batches one-shot methods see.
      measure: further values of each trial, `(apply_fn, params) -> {name: value}`.
      kinds: how these are known, by name: `"measured"`, `"modelled"` or `"theoretical"`.
      folder: where finished trials are kept; a comparison that was stopped or killed goes on from there.
      checkpoint_every: steps between checkpoints within a trial; by default a killed trial starts anew.
      progress: show a progress bar.
      quality: what the quality is called.
      title: of the report.

    Returns:
      The trials.

    Raises:
      ValueError: an unknown method, a sparsity out of range, no seeds, or a folder of another comparison.
      TypeError: `train_batches` is no sequence and no callable.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jax.random.normal(jax.random.key(0), (64, 8))
      >>> apply_fn, loss_fn = lambda p, x: x @ p["w"], lambda y, t: jnp.mean((y - t) ** 2)
      >>> init = lambda key: {"w": jax.random.normal(key, (8, 4))}
      >>> evaluate = lambda apply_fn, params: -float(loss_fn(apply_fn(params, x), x[:, :4]))
      >>> made = compare(apply_fn, init, loss_fn, [(x, x[:, :4])], evaluate, tx=optax.adam(0.1), steps=60,
      ...                methods=("random", "gmp"), sparsities=(0.8,), seeds=(0, 1), progress=False)
      >>> len(made.trials), made.best(0.8)
      (6, 'gmp')
    """
    check_every(checkpoint_every)
    makers = resolve_methods(methods)
    shares = sparsities_of(sparsities, structure)
    if not seeds:
        raise ValueError("seeds is empty; give at least one, three for a spread that means something.")
    batch_at(train_batches)
    runs = [_Run("dense", 0.0, seed) for seed in dict.fromkeys(seeds)]
    runs += [_Run(name, share, seed) for name in makers for share in shares for seed in dict.fromkeys(seeds)]
    settings = {"steps": steps, "structure": str(structure), "calibration": calibration}
    settings |= {"allocation": stable_name(allocation), "where": stable_name(where)}
    records = Records(folder, settings)
    job = _Job(
        apply_fn, jax.jit(apply_fn), init, loss_fn, train_batches, eval_fn, tx, steps, makers, structure, allocation,
        where, calibration, measure, records, checkpoint_every,
    )  # fmt: skip
    trials = []
    with counter(progress, len(runs) * steps, quality) as advance:
        for run in runs:
            result, meaning = records.get(run.name), _meaning(makers.get(run.method))
            if result is None:
                result = records[run.name] = job.execute(run, advance)
            elif result.get("method") != meaning:
                raise ValueError(
                    f"{folder} holds {run.name}, where {run.method!r} was {result.get('method')}; now it is {meaning}. "
                    "Give the method another name, or use another folder."
                )
            else:
                for _ in range(steps):
                    advance()
            trials.append(Trial(run.method, run.sparsity, run.seed, result["quality"], result["values"]))
    shown = settings | {"methods": list(makers), "sparsities": shares, "seeds": list(dict.fromkeys(seeds))}
    return Comparison(tuple(trials), quality, title, shown, kinds or {})


@dataclasses.dataclass(frozen=True)
class _Run:
    """One training of a comparison."""

    method: str
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its record."""
        share = "" if self.method == "dense" else f"-{self.sparsity:g}"
        return f"{self.method}{share}-seed{self.seed}".replace("/", "_")


@dataclasses.dataclass
class _Job:
    """What the trials share, and the compiled steps they have made."""

    apply_fn: Apply
    jitted: Apply
    init: Any
    loss_fn: Loss
    train_batches: Batches
    eval_fn: Evaluate
    tx: optax.GradientTransformation
    steps: int
    makers: Mapping[str, Make]
    structure: Structure
    allocation: Any
    where: Where
    calibration: int
    measure: Measure | None
    records: Records
    checkpoint_every: int | None
    compiled: dict[tuple[str, float], Step] = dataclasses.field(default_factory=dict)
    dense: dict[int, PyTree] = dataclasses.field(default_factory=dict)
    model: Model | None = None

    def execute(self, run: _Run, advance: Callable[[], None]) -> dict[str, Any]:
        """Trains or prunes one model, and measures it."""
        params = self.start(run.seed)
        made = None if run.method == "dense" else self.makers[run.method](self.settings(run, params))
        if made is None or isinstance(made, Pruner):
            params, masks, loss = self.fit(run, params, made, advance)
        else:
            params, masks = self.prune(run, made)
            loss = None
            for _ in range(self.steps):
                advance()
        if run.method == "dense":
            self.keep_dense(run.seed, params)
        counts = summary(params, masks, where=self.where)
        values = {
            "sparsity_prunable": counts.pruned.sparsity,
            "sparsity_model": counts.total.sparsity,
            "kept_weights": counts.total.kept,
        }
        values |= {} if loss is None else {"last_loss": loss}
        values |= self.account(run, made, params, masks)
        values |= dict(self.measure(self.jitted, params)) if self.measure is not None else {}
        quality = float(self.eval_fn(self.jitted, params))
        return {
            "method": _meaning(self.makers.get(run.method)),
            "quality": quality,
            "values": {name: float(value) for name, value in values.items()},
        }

    def account(self, run: _Run, made: Any, params: PyTree, masks: PyTree) -> dict[str, float]:
        """What the training of a model took, where the function multiplies and there is a formula."""
        if self.model is None:
            self.model = trace(self.apply_fn, params, batch_at(self.train_batches)(run.seed * self.steps)[0])
        dense, sparse = (2.0 * self.model.cost(masks=each).macs for each in (None, masks))
        settings = Settings(run.sparsity, self.steps)
        flops = method_flops(self.makers.get(run.method), made, settings, dense=dense, sparse=sparse)
        return {"training_flops": flops} if flops else {}

    def start(self, seed: int) -> PyTree:
        """The initial parameters of a seed."""
        return self.init(jax.random.fold_in(jax.random.key(seed), 0)) if callable(self.init) else self.init

    def settings(self, run: _Run, params: PyTree) -> Settings:
        """What the method of a run is made from."""
        grads, make = None, self.makers[run.method]
        if make not in METHODS.values() or _meaning(make) in NEEDS_GRADIENTS:
            inputs, targets = batch_at(self.train_batches)(run.seed * self.steps)
            gradient = jax.jit(jax.grad(lambda p, x, y: self.loss_fn(self.apply_fn(p, x), y)))
            grads = gradient(params, inputs, targets)
        sparsity = None if isinstance(self.structure, NM) else run.sparsity
        return Settings(sparsity, self.steps, self.structure, self.allocation, self.where, grads)

    def fit(
        self, run: _Run, params: PyTree, pruner: Pruner | None, advance: Callable[[], None]
    ) -> tuple[PyTree, PyTree, float]:
        """Trains; the seeds of a method share one compiled step, for only `init` uses the key and the gradients."""
        key = jax.random.fold_in(jax.random.key(run.seed), 1)
        tx = self.tx if pruner is None else sparsify(self.tx, pruner, key=key)
        step = self.compiled.get((run.method, run.sparsity))
        if step is None:
            step = make_step(self.apply_fn, self.loss_fn, tx, sparse=pruner is not None)
            self.compiled = {(run.method, run.sparsity): step}  # seeds follow each other; earlier ones are done
        folder = self.records.within(f"{run.name}-state")
        every = self.checkpoint_every
        state, losses = train(
            step,
            start_state(tx, params),
            self.train_batches,
            steps=self.steps,
            start=run.seed * self.steps,
            checkpoints=Checkpoints(folder, every) if folder is not None and every is not None else None,
            progress=advance,
        )
        return *read(state, pruner is not None), float(losses[-1]) if losses.size else float("nan")

    def keep_dense(self, seed: int, params: PyTree) -> None:
        """Keeps a trained dense model for the one-shot methods."""
        folder = self.records.within(f"dense-seed{seed}-params")
        if folder is None:
            self.dense[seed] = params
        else:
            storage.save(folder, params, overwrite=True)

    def prune(self, run: _Run, method: Any) -> tuple[PyTree, PyTree]:
        """Prunes the trained dense model of a seed from calibration batches."""
        folder = self.records.within(f"dense-seed{run.seed}-params")
        dense = self.dense[run.seed] if folder is None else storage.restore(folder, self.start(run.seed))
        batch = batch_at(self.train_batches)
        inputs = [(batch(run.seed * self.steps + k)[0],) for k in range(self.calibration)]
        sparsity = None if isinstance(self.structure, NM) else run.sparsity
        pruned = prune_sequential(
            self.apply_fn, dense, inputs, method, sparsity=sparsity, structure=self.structure, where=self.where
        )
        return pruned.params, pruned.masks


def _meaning(make: Make | None) -> str:
    """What the name of a method stands for, in a word that does not change from run to run; None is the dense model."""
    known = {id(function): name for name, function in METHODS.items()}
    return "dense" if make is None else known.get(id(make), stable_name(make))
