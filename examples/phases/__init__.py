"""Training that shrinks the network between its phases."""
