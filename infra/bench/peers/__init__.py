"""Outside peers of the benchmarks, each in an environment of its own, made on demand."""
