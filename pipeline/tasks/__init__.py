"""Benchmark tasks: their questions, the contexts that a reader is given, and how answers are scored."""
