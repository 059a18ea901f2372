"""Pruning after training, from statistics of the inputs of each layer.

A *method* prunes one weight matrix W (out, K) given a statistic of its inputs: `method(weights, stat, sparsity,
structure) -> (weights, mask, info)`. `magnitude`, `wanda`, `ria` and `sparsegpt_score` only choose; `dsnot` refines
what another has chosen; `sparsegpt`, `admm` and `alps` also change the weights that are kept, from the Gram matrix of
the inputs, and so does `repaired`, which puts a *repair* (`refit` or `sweep`) behind any of them. By layer error:
`magnitude` is the worst, then `ria` and `wanda`, `sparsegpt`, `repaired`, `admm` and `alps`; by time, nearly the other
way round. Every one takes single weights, N:M and (but `dsnot`) blocks.

`jp.prune_one_shot` and `jp.prune_sequential` drive them over a model; `owl` and `sensitivity_allocation` give each
layer a sparsity of its own; `reconstruct` trains block after block towards the dense model. Whole heads, features and
experts: `flap_scores`, `expert_scores` for `jp.select`; `repair_consumers`, `compensate_bias` before `jp.shrink`.
"""

from jaxprune.posttraining._admm import admm
from jaxprune.posttraining._alps import alps
from jaxprune.posttraining._bias import bias_compensation
from jaxprune.posttraining._dsnot import dsnot
from jaxprune.posttraining._magnitude import magnitude
from jaxprune.posttraining._method import Method, Repair
from jaxprune.posttraining._refit import refit
from jaxprune.posttraining._repaired import repaired
from jaxprune.posttraining._ria import channel_permutation, ria
from jaxprune.posttraining._sparsegpt import sparsegpt, sparsegpt_score
from jaxprune.posttraining._sweep import sweep
from jaxprune.posttraining._wanda import wanda
from jaxprune.posttraining.experts import expert_scores, reap_scores
from jaxprune.posttraining.owl import owl
from jaxprune.posttraining.reconstruct import reconstruct
from jaxprune.posttraining.sensitivity import Sensitivity, layer_sensitivity, sensitivity_allocation
from jaxprune.posttraining.structured import compensate_bias, flap_scores, repair_consumers

__all__ = [
    "Method",
    "Repair",
    "Sensitivity",
    "admm",
    "alps",
    "bias_compensation",
    "channel_permutation",
    "compensate_bias",
    "dsnot",
    "expert_scores",
    "flap_scores",
    "layer_sensitivity",
    "magnitude",
    "owl",
    "reap_scores",
    "reconstruct",
    "refit",
    "repair_consumers",
    "repaired",
    "ria",
    "sensitivity_allocation",
    "sparsegpt",
    "sparsegpt_score",
    "sweep",
    "wanda",
]
