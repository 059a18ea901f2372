"""Recurrent networks for speech, pruned: which weights and hidden units are not needed, and what that saves.

    python examples/speech_recognition.py                                # vowels; four minutes on two CPU cores
    python examples/speech_recognition.py --task vad
    python examples/speech_recognition.py --task digits --sparsity 0.9
    python examples/speech_recognition.py --task vowels --methods random gmp rigl set --seed 0 1 2 3 4
    python examples/speech_recognition.py --task commands --data-dir /data/speech_commands_v0.02
    python examples/speech_recognition.py --resume                       # stopped or killed: goes on

Tasks:

- `vowels`: who of nine men speaks? JapaneseVowels, 640 real utterances; LSTM and GRU. Single weights by several methods
  while training; then hidden units cut out of trained cells, by random and by score, with the time before and after.
- `vad`: the pretrained voice activity network Silero VAD, pruned without training; on SYNTHETIC speech by espeak-ng.
- `digits`: sequences of digits by CTC, on SYNTHETIC speech by espeak-ng.
- `commands`: Speech Commands, real words; 2.4 GB to download unless --data-dir names the files.

Settings were chosen on validation utterances (`--split validation`); the report is on the test utterances. Every task
prints tables and writes `report.html`, `report.json` and plots under `--output-dir`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# So that `python examples/speech_recognition.py` finds its helpers from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.progress import Progress

import jaxprune as jp
from examples.data import speech
from examples.data.sources import SourceError
from examples.data.speech import SpeechData
from examples.models.recurrent import PRUNABLE
from examples.speech import hidden_units, tasks, vad
from examples.speech.tasks import Recipe, Task

RECIPES = {
    "vowels": Recipe(steps=600, batch_size=32, learning_rate=1e-2, widths=(32,), noise=0.3),
    "digits": Recipe(steps=400, batch_size=16, learning_rate=5e-3, widths=(96,), noise=0.3),
    "commands": Recipe(steps=4_000, batch_size=64, learning_rate=3e-3, widths=(128,), noise=0.1),
}
# Wider than above, so that there are hidden units to cut.
HIDDEN = {
    "vowels": dataclasses.replace(RECIPES["vowels"], steps=300, widths=(128,)),
    "digits": dataclasses.replace(RECIPES["digits"], widths=(128,)),
    "commands": dataclasses.replace(RECIPES["commands"], widths=(256,)),
}
SPARSITIES = {"vowels": (0.95, 0.99), "digits": (0.8, 0.9, 0.95), "commands": (0.9, 0.95, 0.98), "vad": (0.5, 0.7, 0.8)}
SYNTHETIC = "SYNTHETIC speech by espeak-ng: what is found here does not carry over to real speech."


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = made.add_argument
    add("--task", nargs="+", default=["vowels"], choices=["vowels", "digits", "commands", "vad"])
    add("--cell", nargs="+", default=["lstm", "gru"], choices=["lstm", "gru"])
    add(
        "--methods",
        nargs="+",
        default=["random", "gmp", "snip"],
        help="names of jp.pipeline.METHODS, for trained tasks",
    )
    add("--vad-methods", nargs="+", default=["random", "magnitude", "wanda", "sparsegpt"], choices=list(vad.METHODS))
    add("--sparsity", type=float, nargs="+", help="fractions of zeros; the default depends on the task")
    add("--seed", type=int, nargs="+", default=[0, 1, 2])
    add("--steps", type=int, help="of training; the default depends on the task")
    add("--hidden", type=float, nargs="*", default=[0.75, 0.9], help="shares of the multiply-adds to cut; none to skip")
    add("--criteria", nargs="+", default=list(hidden_units.CRITERIA), choices=hidden_units.CRITERIA)
    add("--fine-steps", type=int, default=100, help="of training after hidden units were cut")
    add("--clips", type=int, default=20, help="of vad: to calibrate on, and to test on")
    add("--sequential", action="store_true", help="of vad: calibrate each layer on what pruned ones before it give")
    add("--split", default="test", choices=["validation", "test"], help="what qualities are measured on")
    add("--repetitions", type=int, default=51, help="of the measurements of time")
    add("--data-dir", type=Path, help="files of yours, for one task")
    add("--output-dir", type=Path, default=Path("outputs/speech_recognition"))
    add("--resume", action="store_true", help="go on with what a stopped run has finished")
    return made


def load(task: str, data_dir: Path | None) -> SpeechData:
    """The data of a task that trains."""
    if task == "vowels":
        return speech.japanese_vowels(data_dir)
    return speech.digit_sequences() if task == "digits" else speech.speech_commands(data_dir)


def compare_weights(
    args: argparse.Namespace, name: str, cell: str, make: Callable[[Recipe], Task], folder: Path
) -> jp.Report:
    """Single weights of the recurrent matrices: dense, random and other methods, trained side by side."""
    recipe = RECIPES[name] if args.steps is None else dataclasses.replace(RECIPES[name], steps=args.steps)
    task = make(recipe)
    found = jp.compare(
        task.apply_fn,
        task.init,
        task.loss_fn,
        task.train_batches,
        task.eval_fn,
        tx=recipe.optimizer(),
        steps=recipe.steps,
        methods={method: tasks.METHODS.get(method, method) for method in args.methods},
        sparsities=args.sparsity or SPARSITIES[name],
        seeds=args.seed,
        where=PRUNABLE,
        folder=folder,
        quality=task.quality,
        title=f"{task.data.name}, {cell.upper()}: single weights",
    )
    notes = [
        f"{task.data.source}. Quality on the {args.split} utterances; the output layer stays dense.",
        "gmp and snip rank the weights of all matrices together; gmp has reached its sparsity after half of the steps.",
    ]
    notes += [SYNTHETIC] if name == "digits" else []
    return found.report(notes=notes)


def run_trained(args: argparse.Namespace, name: str, console: Console) -> dict[str, jp.Report]:
    """A task that trains, for each cell: single weights, then hidden units."""
    data = load(name, args.data_dir)
    kind = tasks.transcription if name == "digits" else tasks.classification
    reports: dict[str, jp.Report] = {}
    for cell in args.cell:
        make = functools.partial(kind, data, cell, split=args.split)
        folder = args.output_dir / "trials" / f"{name}-{cell}"
        reports[f"{name}-{cell}-weights"] = compare_weights(args, name, cell, make, folder / "weights")
        if args.hidden:
            recipe = HIDDEN[name] if args.steps is None else dataclasses.replace(HIDDEN[name], steps=args.steps)
            settings = hidden_units.Settings(
                args.hidden, args.criteria, args.seed, args.fine_steps, repetitions=args.repetitions
            )
            with Progress(console=console) as progress:
                made = hidden_units.compare(make, recipe, settings, folder / "hidden", progress)
            made.title = f"{data.name}, {cell.upper()}: hidden units"
            made.notes = (*made.notes, *([SYNTHETIC] if name == "digits" else []))
            reports[f"{name}-{cell}-hidden"] = made
    return reports


def run_vad(args: argparse.Namespace, console: Console) -> dict[str, jp.Report]:
    """One-shot pruning of the pretrained network."""
    with Progress(console=console) as progress:
        made = vad.compare(
            args.sparsity or SPARSITIES["vad"],
            args.vad_methods,
            args.seed,
            clips=args.clips,
            repetitions=args.repetitions,
            weights=args.data_dir,
            progress=progress,
            sequential=args.sequential,
        )
    return {"vad": made}


def main(argv: Sequence[str] | None = None) -> dict[str, jp.Report]:
    """Runs the tasks; returns their reports by name."""
    parse = parser()
    args = parse.parse_args(argv)
    if args.data_dir is not None and len(args.task) > 1:
        parse.error("--data-dir names the files of one task; give one with --task")
    if not args.resume:
        shutil.rmtree(args.output_dir / "trials", ignore_errors=True)
    console = Console()
    reports: dict[str, jp.Report] = {}
    for name in dict.fromkeys(args.task):
        try:
            found = run_vad(args, console) if name == "vad" else run_trained(args, name, console)
        except SourceError as error:
            console.print(f"{name} was left out: {error}", soft_wrap=True, style="red")
            continue
        for key, report in found.items():
            report.print(console)
            console.print(f"written to {report.save(args.output_dir / key)}", soft_wrap=True)
        reports |= found
    return reports


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
