"""Coverage-guided fuzzing of one parser until it breaks or the time is over (needs atheris, of PyPI).

python -m tests.fuzz article -max_total_time=600
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pipeline", "models.embed"]):
    from tests.fuzz import targets


def main() -> None:
    """The first argument names the target, the rest is libFuzzer's."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in targets.TARGETS:
        sys.exit(
            f"name a target: {', '.join(targets.TARGETS)}; then libFuzzer's options (-max_total_time=600)"
        )
    corpus = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    for number, seed in enumerate(targets.seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
