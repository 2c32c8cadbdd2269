"""bm25s, imported so that it leaves the GPU alone: `from pipeline.prepare.bm25_on_cpu import bm25s`.

Importing bm25s calls JAX's top_k, where JAX is installed, to see whether it works. JAX's first call takes three
quarters of a GPU's memory if it knows CUDA, and starts threads that a fork does not survive. We use bm25s with
NumPy alone, so JAX is told to stay on the CPU before it is loaded. Whoever set JAX_PLATFORMS knows better.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import bm25s

__all__ = ["bm25s"]
