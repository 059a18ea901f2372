"""The parts of `examples/image_classification.py`: methods, training, checkpoints, report."""
