"""What `examples/lenet_compact.py` is made of: cutting, storing, counting, reporting."""
