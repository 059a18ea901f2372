"""The parts of `examples/federated.py`: messages, clients, the server's rounds, the plot."""
