"""Pruning the pretrained Silero VAD network without training: how its probabilities of speech change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress

import jaxprune as jp
from examples.models import silero
from examples.speech.clips import Clips, make_clips
from jaxprune.measure.figure import Kind

PyTree = Any
QUALITY = "P(speech) on speech less on noise"
METHODS: Mapping[str, Callable[[], Any] | None] = {
    "random": None,
    "magnitude": jp.posttraining.magnitude,
    "wanda": jp.posttraining.wanda,
    "sparsegpt": jp.posttraining.sparsegpt,
    "alps": jp.posttraining.alps,
}
_NO_SEED = frozenset({"magnitude"})  # sees no data and draws nothing
_NOTES = (
    "SYNTHETIC: all speech is spoken by espeak-ng, all noise is made; no real recording was available. Calibration and "
    "test clips have other voices, sentences and noise.",
    "Nothing was trained: the published weights are pruned from calibration clips alone. A seed draws other ones.",
    "The output layer (128 weights) and the Fourier kernels stay dense.",
)


def prune(
    params: PyTree,
    method: str,
    sparsity: float,
    seed: int,
    batches: Sequence[jax.Array],
    stats: Mapping[Any, Any] | None = None,
) -> PyTree:
    """The pruned parameters.

    Args:
      params: of Silero VAD.
      method: one of `METHODS`.
      sparsity: fraction of zeros of each matrix of `silero.PRUNABLE`.
      seed: of random masks.
      batches: audio to calibrate on, `(clips, samples)` each.
      stats: by statistic, what `calibrate` found in the dense network. Without it each layer is calibrated on what the
        pruned layers before it give (`jp.prune_sequential`), which takes a pass for every call.
    """
    if method == "random":
        key = jax.random.key(seed)
        masks = jp.compute_masks(params, sparsity, score=jp.scores.random, key=key, where=silero.PRUNABLE)
        return jp.apply_masks(params, masks)
    maker = METHODS[method]
    assert maker is not None
    made = maker()
    shared = {"sparsity": sparsity, "where": silero.PRUNABLE, "strict": True}
    if stats is None:
        return jp.prune_sequential(silero.probabilities, params, batches, made, **shared).params
    return jp.prune_one_shot(silero.probabilities, params, batches, made, stats=stats[made.stat], **shared).params


def calibrate(params: PyTree, methods: Sequence[str], batches: Sequence[jax.Array]) -> dict[Any, Any]:
    """The statistics of the dense network that some methods ask for, each taken once."""
    makers = [METHODS[method] for method in methods]
    wanted = {maker().stat for maker in makers if maker is not None}
    return {stat: jp.calibrate(silero.probabilities, params, batches, stat, where=silero.PRUNABLE) for stat in wanted}


def measure(found: np.ndarray, dense: np.ndarray, clips: Clips) -> dict[str, float]:
    """What became of the probabilities, as means over chunks.

    Args:
      found: `(clips, chunks)`, of the pruned network.
      dense: those of the dense one.
      clips: the truth.
    """
    speech, noise = found[clips.speech], found[clips.noise]
    return {
        "P(speech) on speech": float(speech.mean()),
        "P(speech) on noise": float(noise.mean()),
        "area under ROC": area_under_roc(found, clips),
        "mean absolute change": float(np.abs(found - dense).mean()),
        "decisions changed": float(((found > 0.5) != (dense > 0.5)).mean()),
    }


def separation(found: np.ndarray, clips: Clips) -> float:
    """The mean probability of chunks with speech, less that of chunks without: 1 is perfect, 0 is deaf."""
    return float(found[clips.speech].mean() - found[clips.noise].mean())


def area_under_roc(found: np.ndarray, clips: Clips) -> float:
    """How often a chunk of speech has a higher probability than one of noise; a tie counts half.

    It does not depend on a threshold, so it tells what moving the threshold could still save.
    """
    speech, noise = found[clips.speech], np.sort(found[clips.noise])
    below = np.searchsorted(noise, speech, side="left") + np.searchsorted(noise, speech, side="right")
    return float(below.mean() / (2 * len(noise)))


def compare(
    sparsities: Sequence[float],
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    clips: int,
    repetitions: int,
    weights: Path | None,
    progress: Progress,
    sequential: bool = False,
) -> jp.Report:
    """Prunes by every method at every sparsity, and listens to the same test clips each time.

    Args:
      sparsities: fractions of zeros.
      methods: names of `METHODS`.
      seeds: of calibration clips and random masks.
      clips: how many to calibrate on, and how many to test on.
      repetitions: of the measurements of time.
      weights: a file of yours with the weights, or None.
      progress: gets a bar.
      sequential: whether later layers are calibrated on what pruned ones give; see `prune`.

    Returns:
      The report, its costs included.
    """
    params = silero.load_silero(weights)
    tested = make_clips("test", clips, seed=0)
    apply = jax.jit(silero.probabilities)
    audio = jnp.asarray(tested.audio)
    dense = np.asarray(apply(params, audio))
    trials = [jp.Trial("dense", 0.0, 0, separation(dense, tested), measure(dense, dense, tested))]
    pruned = params
    runs = [(k, m, s) for k in seeds for m in methods for s in sparsities if m not in _NO_SEED or k == seeds[0]]
    bar = progress.add_task("pruning Silero VAD", total=len(runs) + len(seeds))
    batches: list[jax.Array] = []
    stats: dict[Any, Any] | None = None
    calibrated: int | None = None
    for seed, method, sparsity in runs:
        if calibrated != seed:
            batches = [jnp.asarray(make_clips("train", clips, seed).audio)]
            stats = None if sequential else calibrate(params, methods, batches)
            calibrated = seed
            progress.advance(bar)
        pruned = prune(params, method, sparsity, seed, batches, stats)
        found = np.asarray(apply(pruned, audio))
        trials.append(jp.Trial(method, sparsity, seed, separation(found, tested), measure(found, dense, tested)))
        progress.advance(bar)
    name = "masked"
    one = jnp.asarray(tested.audio[:1])
    times = jp.measure.latency(
        {"dense": lambda: apply(params, one), name: lambda: apply(pruned, one)}, repetitions=repetitions
    )
    seconds = one.shape[1] / silero.RATE
    kinds: dict[str, Kind] = dict.fromkeys(trials[0].values, "measured")
    return jp.Report(
        "Silero VAD, pruned without training (synthetic speech)",
        QUALITY,
        trials,
        costs={
            f"latency, clip of {seconds:.2f} s": times,
            "real-time factor": {key: real_time_factor(figure, seconds) for key, figure in times.items()},
        },
        notes=_NOTES,
        settings={
            "clips": clips,
            "sequential": sequential,
            "seeds": list(seeds),
            "weights": str(weights or "PyPI silero-vad"),
        },
        kinds=kinds,
    )


def real_time_factor(latency: jp.measure.Figure, seconds: float) -> jp.measure.Figure:
    """Seconds of computing for each second of audio: below 1 keeps up with a speaker.

    Args:
      latency: of one call, measured, in seconds.
      seconds: of audio in the call.
    """
    assert latency.value is not None
    spread = None if latency.spread is None else latency.spread / seconds
    source = f"{latency.source}, over {seconds:.4g} s of audio"
    return jp.measure.Figure(latency.value / seconds, "", latency.kind, source, spread, latency.repetitions)
