"""Helpers of `examples/one_shot_transformer.py`: training, evaluation."""
