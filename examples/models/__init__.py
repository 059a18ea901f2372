"""The networks that the examples prune: plain Flax, nothing in them knows of pruning."""
