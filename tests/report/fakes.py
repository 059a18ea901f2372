"""A report as a comparison gives it, of figures that were made up."""

import functools
import random

from jaxprune.measure.figure import Figure
from jaxprune.report import Layer, Report, Trial

LAYERS = {
    "conv_init/kernel": 432,
    "layers_0/conv_0/kernel": 2304,
    "layers_0/conv_1/kernel": 2304,
    "layers_1/conv_0/kernel": 4608,
    "layers_1/conv_1/kernel": 9216,
    "layers_1/projection/kernel": 512,
    "layers_2/conv_0/kernel": 18432,
    "layers_2/conv_1/kernel": 36864,
    "layers_2/projection/kernel": 2048,
    "head/dense/kernel": 640,
}
ROLLED_BACK = "rolled back: lost more than 0.005"
WEIGHTS = sum(LAYERS.values())
MEANS = {
    "random": {0.5: 0.962, 0.8: 0.914, 0.9: 0.843, 0.95: 0.702},
    "gmp": {0.5: 0.9785, 0.8: 0.9712, 0.9: 0.9601, 0.95: 0.9322},
    "rigl": {0.5: 0.9770, 0.8: 0.9698, 0.9: 0.9588, 0.95: 0.9401},
    "granet": {0.5: 0.9776, 0.8: 0.9720, 0.9: 0.9655, 0.95: 0.9433},
}
# Not even the formula is one: matplotlib would refuse to draw it.
HOSTILE = r'<script>alert("1")</script> & $\x{$ [bold] [/b]'


def trials() -> list[Trial]:
    rng = random.Random(0)
    dense = {"sparsity_prunable": 0.0, "kept_weights": WEIGHTS, "macs": 3.1e6}
    result = [Trial("dense", 0.0, seed, rng.gauss(0.9794, 0.0012), dense) for seed in range(3)]
    for method, by_sparsity in MEANS.items():
        for sparsity, mean in by_sparsity.items():
            kept = round((1 - sparsity) * WEIGHTS)
            values = {
                "sparsity_prunable": 1 - kept / WEIGHTS,
                "kept_weights": kept,
                "macs": 3.1e6 * (1 - sparsity),
                "accuracy_under_noise": mean - 0.1,
            }
            noise = 0.001 + 0.02 * sparsity * (1 - mean)
            result += [Trial(method, sparsity, seed, rng.gauss(mean, noise), values) for seed in range(3)]
    return result


def costs() -> dict[str, dict[str, Figure]]:
    clock, arrays, stored = "wall clock, interleaved medians", "sum of array sizes", "size of the file"
    peak, formula = "XLA memory_analysis", "one multiplication a weight and position"
    models = ("dense", "masked", "shrunk")
    seconds = ((3.19e-3, 2e-5), (3.21e-3, 3e-5), (1.42e-3, 2e-5))
    latency = [Figure(value, "s", "measured", clock, spread=spread, repetitions=51) for value, spread in seconds]
    held = [Figure(value, "bytes", "measured", arrays) for value in (309_440, 309_440, 121_300)]
    packed = [Figure(value, "bytes", "measured", stored) for value in (309_802, 41_020, 121_700)]
    peaks = [Figure(value, "bytes", "modelled", peak) for value in (2_100_000, 2_177_000, 1_010_000)]
    counts = [Figure(value, "MACs", "theoretical", formula) for value in (3.1e6, 0.31e6, 1.2e6)]
    energy = [Figure.absent("J", "no RAPL, no NVML")] * 3
    return {
        "latency of one batch": dict(zip(models, latency, strict=True)),
        "parameters in memory": dict(zip(models, held, strict=True)),
        "file, packed": dict(zip(models, packed, strict=True)),
        "peak memory": dict(zip(models, peaks, strict=True)),
        "multiplications": dict(zip(models, counts, strict=True)),
        "energy of one batch": dict(zip(models, energy, strict=True)),
    }


def report() -> Report:
    shares = [0.55 - 0.055 * place for place in range(len(LAYERS))]
    return Report(
        title="Digits with a residual network",
        quality="accuracy",
        trials=trials(),
        layers=[
            Layer(path, count, round(count * share))
            for (path, count), share in zip(LAYERS.items(), shares, strict=True)
        ],
        costs=costs(),
        notes=["Hyperparameters were chosen on a validation split of 200 images."],
        settings={
            "steps": 600,
            "batch": 64,
            "optimiser": "adamw(1e-3)",
            "schedule": {"begin": 60, "end": 450, "every": 10},
            "seeds": [0, 1, 2],
            "resume": False,
        },
        history=[
            {"sparsity": 0.5, "accuracy": 0.9791, "drop": 0.0003, "accepted": True, "what": "gmp"},
            {
                "sparsity": 0.8,
                "accuracy": 0.9722,
                "drop": 0.0072,
                "accepted": False,
                "what": ROLLED_BACK,
            },
            {"sparsity": 0.65, "accuracy": 0.9768, "drop": 0.0026, "accepted": True, "what": "gmp"},
        ],
        kinds={"accuracy_under_noise": "measured"},
    )


def hostile() -> Report:
    """Names that are markup, and numbers at the edge: everything that a page must survive."""
    nan = float("nan")
    methods = [HOSTILE, *(f"a method with a rather long name {number}" for number in range(9))]
    levels = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
    infinite = Figure(float("inf"), "", "theoretical", "f")
    slow = Figure(0.9, "s", "measured", HOSTILE, spread=0.01, note=HOSTILE)
    return Report(
        title=HOSTILE * 3,
        quality=HOSTILE,
        trials=[
            Trial("random", 0.995, 0, nan, {HOSTILE: nan}),
            *(Trial(name, level, 0, k - 5 * level) for k, name in enumerate(methods) for level in levels),
        ],
        layers=[Layer(f"{HOSTILE}/encoder/layers_{k}/attention/query/kernel", 10**9 - k, 10**8) for k in range(40)],
        costs={
            HOSTILE: {"dense": Figure(3.192e-3, "s", "measured", "clock", spread=2e-5), HOSTILE: slow},
            "no dense figure": {"dense": Figure.absent("J", HOSTILE), "masked": Figure(1.0, "J", "measured", "clock")},
            "one model": {"dense": Figure(1.0, "s", "measured", "clock")},
            "infinite": {
                "dense": Figure(1.0, "", "theoretical", "f"),
                "masked": infinite,
            },
        },
        notes=[HOSTILE],
        settings={HOSTILE: {HOSTILE: HOSTILE}},
        environment={HOSTILE: HOSTILE, "date": HOSTILE},
        history=[{HOSTILE: HOSTILE}, {"other": None}],
        better="lower",
        kinds={HOSTILE: "modelled"},
    )


@functools.cache
def page(name: str) -> str:
    """The page of `report` or `hostile`, made once."""
    return {"report": report, "hostile": hostile}[name]().html()
