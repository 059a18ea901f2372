"""The five steps of pruning as one call, and each of them by itself.

The user brings `apply_fn(params, inputs) -> outputs`, `loss_fn(outputs, targets) -> scalar`, batches of `(inputs,
targets)`, and `eval_fn(apply_fn, params) -> quality`, higher is better. With these

1. `preprocess` reads the model: trace, cost, and `sensitivity`, the loss when each parameter alone is pruned;
2. `predict` finds the criterion that hurts the least on held-out batches, random as the control;
3. `prune` takes away in rounds, and rolls back what loses too much;
4. `optimise` trains under masks, maybe towards the outputs of the dense model;
5. `integrate` cuts out what can be cut and verifies it; `test` measures quality, robustness and costs.

`run` is all of it, towards a `Target`. `compare` is another question: which of many methods keeps the most quality,
over several seeds. `fit_predictor` learns to predict the loss of pruning a site from what is known before it is pruned.
"""

from jaxprune.pipeline.ablation import ablation
from jaxprune.pipeline.batches import batch_at
from jaxprune.pipeline.compare import Comparison, compare
from jaxprune.pipeline.criteria import CUTS, WEIGHTS, Scoring
from jaxprune.pipeline.examine import Tested, test
from jaxprune.pipeline.features import Features, group_features, weight_features
from jaxprune.pipeline.integrate import Integrated, integrate
from jaxprune.pipeline.methods import METHODS, Settings
from jaxprune.pipeline.moments import GradientMoments, gradient_moments
from jaxprune.pipeline.optimise import Checkpoints, State, Trained, make_step, optimise
from jaxprune.pipeline.predict import Prediction, predict
from jaxprune.pipeline.predictor import Predictor, fit_predictor
from jaxprune.pipeline.preprocess import Preprocessed, preprocess
from jaxprune.pipeline.prune import Round, Rounds, prune
from jaxprune.pipeline.robustness import corrupted, missing, noise, robustness
from jaxprune.pipeline.run import Result, run
from jaxprune.pipeline.sensitivity import LossSensitivity, sensitivity
from jaxprune.pipeline.target import Target
from jaxprune.pipeline.validation import Validation, rank_correlation, validate

__all__ = [
    "CUTS",
    "METHODS",
    "WEIGHTS",
    "Checkpoints",
    "Comparison",
    "Features",
    "GradientMoments",
    "Integrated",
    "LossSensitivity",
    "Prediction",
    "Predictor",
    "Preprocessed",
    "Result",
    "Round",
    "Rounds",
    "Scoring",
    "Settings",
    "State",
    "Target",
    "Tested",
    "Trained",
    "Validation",
    "ablation",
    "batch_at",
    "compare",
    "corrupted",
    "fit_predictor",
    "gradient_moments",
    "group_features",
    "integrate",
    "make_step",
    "missing",
    "noise",
    "optimise",
    "predict",
    "preprocess",
    "prune",
    "rank_correlation",
    "robustness",
    "run",
    "sensitivity",
    "test",
    "validate",
    "weight_features",
]
