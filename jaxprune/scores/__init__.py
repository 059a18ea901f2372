"""Scores: how important each weight is. Higher is kept.

A score is a function `(params, *, grads=None, key=None, stats=None) -> tree of scores` with one score a weight.
Scores that need the model itself (`grasp`, `synflow`) are made by a function that takes it.
"""

from jaxprune.scores._gradient import fisher, movement, saliency, taylor
from jaxprune.scores._grasp import grasp
from jaxprune.scores._lamp import lamp
from jaxprune.scores._score import Score
from jaxprune.scores._synflow import synflow
from jaxprune.scores._weight import magnitude, random

__all__ = [
    "Score",
    "fisher",
    "grasp",
    "lamp",
    "magnitude",
    "movement",
    "random",
    "saliency",
    "synflow",
    "taylor",
]
