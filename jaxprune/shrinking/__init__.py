"""Making a model smaller: what to keep (`Plan`), the cut (`shrink`, `shrunk_function`), the proof (`verify`)."""

from jaxprune.shrinking.apply import shrink, shrunk_function
from jaxprune.shrinking.plan import Plan
from jaxprune.shrinking.verify import Verification, verify

__all__ = ["Plan", "Verification", "shrink", "shrunk_function", "verify"]
