"""One script per application; each can be imported and has a `main(argv)`."""
