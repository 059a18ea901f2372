"""The command `jaxprune`: what is in a checkpoint, prune it, compare two.

`main` reads the arguments; `inspect`, `prune` and `diff` do the work and return plain data; `checkpoints` opens and
writes Orbax folders and safetensors files; `show` prints. Nothing in a file is ever executed: safetensors holds a JSON
header and bytes, Orbax JSON and TensorStore arrays, and formats that hold pickled objects are refused.

Exit codes: 0 all is well; 1 `diff` found differences; 2 bad input (arguments, files, a target that cannot be met);
3 an error of jaxprune itself, with its traceback; 130 interrupted.
"""
