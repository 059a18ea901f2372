"""`optimise`: trains under masks or a pruner, with any Optax optimiser, and goes on after a kill."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import masks as masks_
from jaxprune import storage, trees
from jaxprune.calibration.accumulate import counter
from jaxprune.pipeline.batches import Apply, Batches, Loss, batch_at
from jaxprune.pruners import Pruner
from jaxprune.states import get_masks, sparse_params
from jaxprune.transforms import keep_masks, sparsify
from jaxprune.trees import PyTree


class State(NamedTuple):
    """What training carries from step to step.

    Attributes:
      params: the stored parameters.
      opt_state: the optimiser's state; masks live in it.
    """

    params: PyTree
    opt_state: PyTree


class Trained(NamedTuple):
    """What `optimise` returns.

    Attributes:
      params: the parameters that the forward pass uses; pruned weights are exactly zero.
      masks: their masks; the scalar True everywhere without masks or pruner.
      losses: float64[steps] of the training batches.
      state: the last state, with the stored parameters and the optimiser's state.
    """

    params: PyTree
    masks: PyTree
    losses: np.ndarray
    state: State


class Checkpoints(NamedTuple):
    """Where a training keeps its state, so that it goes on after a kill.

    Attributes:
      folder: holds `step-N`, the last state, complete at any moment.
      every: steps between two of them, at least 1.
    """

    folder: Path
    every: int


Step = Callable[[State, Any, Any], tuple[State, jax.Array]]


def make_step(
    apply_fn: Apply,
    loss_fn: Loss,
    tx: optax.GradientTransformation,
    *,
    sparse: bool = True,
    teacher: tuple[Apply, PyTree] | None = None,
    distillation: float = 1.0,
) -> Step:
    r"""Makes one jitted training step.

    The loss is $L(f_\theta(x), y)$, and with a teacher $L + \lambda\,\overline{(f_\theta(x) - f_T(x))^2}$: outputs
    (logits, predictions) are matched by mean squares, over all floating leaves of the outputs.

    Args:
      apply_fn: `(params, inputs) -> outputs`.
      loss_fn: `(outputs, targets) -> scalar`.
      tx: the whole transformation, pruning included.
      sparse: whether `tx` prunes; the forward pass then uses `jp.sparse_params`.
      teacher: a function and its parameters, such as the dense model.
      distillation: the weight $\lambda$ of the teacher.

    Returns:
      `(state, inputs, targets) -> (state, loss)`; the state is donated.

    Example:
      >>> step = make_step(lambda p, x: x * p["w"], lambda y, t: jnp.mean((y - t) ** 2), optax.sgd(0.5), sparse=False)
      >>> params = {"w": jnp.zeros(())}
      >>> state, loss = step(State(params, optax.sgd(0.5).init(params)), jnp.ones(3), jnp.ones(3))
      >>> float(state.params["w"]), float(loss)
      (1.0, 1.0)

    References:
      Ba & Caruana, Do Deep Nets Really Need to be Deep? (arXiv:1312.6184), for matching outputs by mean squares.
    """

    def loss_of(params: PyTree, inputs: Any, targets: Any) -> jax.Array:
        outputs = apply_fn(params, inputs)
        loss = loss_fn(outputs, targets)
        if teacher is None:
            return loss
        wanted = jax.lax.stop_gradient(teacher[0](teacher[1], inputs))
        return loss + distillation * _mean_square(outputs, wanted).astype(loss.dtype)

    def step(state: State, inputs: Any, targets: Any) -> tuple[State, jax.Array]:
        params = sparse_params(state.params, state.opt_state) if sparse else state.params
        loss, grads = jax.value_and_grad(loss_of)(params, inputs, targets)
        # Optax's Adam and its schedules mix dtypes; what comes out has that of the parameters.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            return State(optax.apply_updates(state.params, updates), opt_state), loss

    return jax.jit(step, donate_argnums=0)


def optimise(
    apply_fn: Apply,
    params: PyTree,
    loss_fn: Loss,
    train_batches: Batches,
    *,
    tx: optax.GradientTransformation,
    steps: int,
    masks: PyTree | None = None,
    pruner: Pruner | None = None,
    key: jax.Array | None = None,
    teacher: tuple[Apply, PyTree] | None = None,
    distillation: float = 1.0,
    start: int = 0,
    checkpoints: Checkpoints | None = None,
    progress: bool = False,
) -> Trained:
    """Trains a model whose zeros stay exactly zero.

    Args:
      apply_fn: `(params, inputs) -> outputs`.
      params: the parameters to begin with; they are not donated.
      loss_fn: `(outputs, targets) -> scalar`.
      train_batches: a sequence of `(inputs, targets)`, or a callable `step -> (inputs, targets)`.
      tx: any Optax optimiser, without pruning.
      steps: how many steps.
      masks: held fixed, in the user's form; or
      pruner: moves masks while training, from `jp.pruners`. Neither trains the dense model.
      key: a typed PRNG key, for pruners with random choices.
      teacher: a function and its parameters whose outputs are to be matched as well, such as the dense model.
      distillation: the weight of the teacher, see `make_step`.
      start: the step of the data to begin with.
      checkpoints: where to keep the state on the way; if one is there, training goes on from it, to the same bits.
      progress: show a progress bar.

    Returns:
      See `Trained`.

    Raises:
      ValueError: both masks and a pruner, or a number of steps below 0.
      TypeError: `train_batches` is no sequence and no callable.

    Example:
      >>> import jaxprune as jp
      >>> batches = [(jnp.eye(2), jnp.array([[1.0], [2.0]]))]
      >>> apply_fn, loss_fn = lambda p, x: x @ p["w"], lambda y, t: jnp.mean((y - t) ** 2)
      >>> masks = {"w": jnp.array([[True], [False]])}
      >>> params, tx = {"w": jnp.ones((2, 1))}, optax.sgd(0.5)
      >>> trained = optimise(apply_fn, params, loss_fn, batches, tx=tx, steps=9, masks=masks)
      >>> trained.params["w"].tolist()
      [[1.0], [0.0]]
    """
    if masks is not None and pruner is not None:
        raise ValueError("optimise: both masks and a pruner are given; masks are held fixed, a pruner moves its own.")
    if steps < 0:
        raise ValueError(f"steps={steps}: 0 or more is needed.")
    whole = tx
    if pruner is not None:
        whole = sparsify(tx, pruner, key=key)
    elif masks is not None:
        whole = optax.chain(tx, keep_masks(masks))
        params = masks_.apply_masks(params, masks)
    sparse = whole is not tx
    step = make_step(apply_fn, loss_fn, whole, sparse=sparse, teacher=teacher, distillation=distillation)
    state, losses = train(
        step,
        start_state(whole, params),
        train_batches,
        steps=steps,
        start=start,
        checkpoints=checkpoints,
        progress=progress,
    )
    return Trained(*read(state, sparse), losses, state)


def start_state(tx: optax.GradientTransformation, params: PyTree) -> State:
    """The state before the first step, all of it copies: steps donate it, and some optimisers keep the parameters."""
    check_floating(params)
    with jax.numpy_dtype_promotion("standard"):
        return jax.tree.map(jnp.array, State(params, tx.init(params)))


def check_floating(params: PyTree) -> None:
    """Raises a TypeError that names the parameters which no gradient can be taken of."""
    dtypes = {path: jnp.result_type(leaf) for path, leaf in trees.leaves_with_paths(params)}
    wrong = [f"{path} is {dtype}" for path, dtype in dtypes.items() if not jnp.issubdtype(dtype, jnp.inexact)]
    if wrong:
        raise TypeError(
            f"{trees.list_paths(wrong)}: gradients are taken of every parameter, so all must be floating. Keep "
            "counters and the like outside the parameters, in the function."
        )


def check_every(every: int | None) -> None:
    """Raises a ValueError for a number of steps between checkpoints that is none."""
    if every is not None and every < 1:
        raise ValueError(f"checkpoint_every={every}: give at least 1 step, or None for no checkpoints on the way.")


def read(state: State, sparse: bool) -> tuple[PyTree, PyTree]:
    """The parameters that the forward pass uses, and their masks."""
    if not sparse:
        return state.params, jax.tree.map(lambda _: np.ones((), bool), state.params)
    return sparse_params(state.params, state.opt_state), get_masks(state.opt_state, state.params)


def train(
    step: Step,
    state: State,
    train_batches: Batches,
    *,
    steps: int,
    start: int = 0,
    checkpoints: Checkpoints | None = None,
    progress: bool | Callable[[], None] = False,
) -> tuple[State, np.ndarray]:
    """Runs a step over the data, from the last checkpoint if there is one.

    Args:
      step: from `make_step`.
      state: before the first step; donated.
      train_batches: see `batch_at`.
      steps: how many steps in total, those before the checkpoint included.
      start: the step of the data to begin with.
      checkpoints: where to keep the state.
      progress: show a bar; or a callable, called after every step.

    Returns:
      The last state, and the loss of every step: NaN for those before the checkpoint, but for the last of them.
    """
    check_every(None if checkpoints is None else checkpoints.every)
    batch = batch_at(train_batches)
    done, state, last = _restore(checkpoints, state)
    losses: list[Any] = [*[np.nan] * (done - 1), last][:steps] if done else []
    with _advance(progress, steps) as advance:
        for _ in range(min(done, steps)):
            advance()
        for number in range(done, steps):
            state, loss = step(state, *batch(start + number))
            losses.append(loss)
            advance()
            if checkpoints is not None and ((number + 1) % checkpoints.every == 0 or number + 1 == steps):
                _save(checkpoints, number + 1, state, loss)
    return state, np.asarray(jax.device_get(losses), np.float64)


def _advance(progress: bool | Callable[[], None], steps: int) -> Any:
    """A context that gives what to call after each step."""
    import contextlib

    return contextlib.nullcontext(progress) if callable(progress) else counter(progress, steps, "training")


def _saved(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdecimal():  # what Orbax has not finished has a longer name
            yield int(number), path


def _save(checkpoints: Checkpoints, number: int, state: State, loss: jax.Array) -> None:
    """Saves a state and the last loss, then removes the earlier ones: one complete state is there at any moment."""
    import shutil

    before = list(_saved(checkpoints.folder))
    content = {"state": state, "loss": loss.astype(jnp.float32)}
    storage.save(checkpoints.folder / f"step-{number}", content, overwrite=True)
    for done, path in before:
        if done != number:
            shutil.rmtree(path, ignore_errors=True)


def _restore(checkpoints: Checkpoints | None, state: State) -> tuple[int, State, float]:
    found = [] if checkpoints is None else sorted(_saved(checkpoints.folder))
    if not found:
        return 0, state, np.nan
    number, path = found[-1]
    content = storage.restore(path, {"state": state, "loss": jnp.zeros((), jnp.float32)})
    return number, content["state"], float(content["loss"])


def _mean_square(outputs: Any, wanted: Any) -> jax.Array:
    """The mean squared difference over all floating leaves together, in float32."""
    pairs = [
        jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32))
        for a, b in zip(jax.tree.leaves(outputs), jax.tree.leaves(wanted), strict=True)
        if jnp.issubdtype(a.dtype, jnp.floating)
    ]
    return jnp.stack([jnp.sum(pair) for pair in pairs]).sum() / sum(pair.size for pair in pairs)
