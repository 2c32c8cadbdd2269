"""Fuzzing of what reads strangers' bytes: `python -m tests.fuzz TARGET` with atheris, seeded runs in the suite."""
