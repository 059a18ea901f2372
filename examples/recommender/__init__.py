"""The parts of `examples/recommendation.py`: splits, metrics, baselines, tasks, methods, sizes."""
