"""What a lease need not make again of the cache table: kept rows, without those that are to be read anew.

    python -m infra.bench.cache_methods_known --rows NEWEST_rows.jsonl.gz … OLDEST_rows.jsonl.gz \\
        --again razor:0.5 --out build/cache-rows/known.jsonl.gz

Of a cell the first row counts, so the newest file stands first. Left out, so that KNOWN=1 of
infra/gpu_host/jobs/cache_methods.sh makes them: the base reader's own rows of cases whose full cache is farther
than SAME_NATS from an outside peer's, which were read over another cut of the vocabulary, and with --again
METHOD:KEEP the rows that only say that a method could not work at a budget.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from infra.bench.cache_methods_collect import differing
from infra.bench.cache_methods_table import PEERS, Row, read_rows, unique
from infra.console import say


def known(rows: Iterable[Row], again: Iterable[tuple[str, float]] = ()) -> list[Row]:
    """The rows that count, each cell once, without those that are to be read anew."""
    kept, refused = unique(rows), set(again)
    other = differing(kept)

    def anew(row: Row) -> bool:
        if "error" in row and (row["method"], row["keep"]) in refused:
            return True
        ours = row["reader"] == "base" and not row["method"].startswith(PEERS)
        return ours and (row["data"], row["case"]) in other

    return [row for row in kept if not anew(row)]


def _cell(text: str) -> tuple[str, float]:
    name, _, keep = text.partition(":")
    try:
        return name, float(keep)
    except ValueError:
        raise argparse.ArgumentTypeError(f"given {text!r}; allowed: METHOD:KEEP, as razor:0.5") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, nargs="+", required=True, help="kept rows, the newest first")
    parser.add_argument("--again", type=_cell, nargs="*", default=[], help="METHOD:KEEP, as razor:0.5")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    for path in given.rows:
        if not path.exists():
            parser.error(f"--rows: {path} is not there")
    rows = unique(row for path in given.rows for row in read_rows(path))
    kept = known(rows, given.again)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in kept).encode()
    given.out.write_bytes(gzip.compress(lines, compresslevel=6, mtime=0))
    say(f"{given.out}: {len(kept)} rows; {len(rows) - len(kept)} of {len(rows)} are to be read anew")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
