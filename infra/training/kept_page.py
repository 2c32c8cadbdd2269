"""A kept result of a lent host: its figures as JSON and the page beside them, by the same options everywhere."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEVICE = "NVIDIA H200"


def page_parser(
    doc: str | None, found: str, *, device: bool = False, commit: bool = False
) -> argparse.ArgumentParser:
    """The options of a page maker: --found (`found` says what it is), --bench, --note; and what no run tells."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--found", type=Path, required=True, help=found)
    parser.add_argument("--bench", type=Path, required=True, help="where results go, without ending")
    if device:
        parser.add_argument("--device", default=DEVICE)
    if commit:
        parser.add_argument("--commit", default="", help="that was run")
    parser.add_argument("--note", default="", help="added at the page's end")
    return parser


def keep(given: argparse.Namespace, result: Mapping[str, Any], page: str) -> None:
    """Write `result` to BENCH.json and the page to BENCH.md, the note of --note at its end."""
    note = f"\n{given.note}\n" if given.note else ""
    keep_as(given.bench, result, page + note)


def keep_as(stem: Path, result: Any, page: str) -> None:
    """Write `result` to STEM.json and the page to STEM.md."""
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(page, encoding="utf-8")


def keep_lines(out: Path, result: Mapping[str, Any], page: str) -> None:
    """Write `result` to OUT.json, a line a figure, and the page to OUT.md."""
    told = ",\n".join(f' "{name}": {json.dumps(value)}' for name, value in result.items())
    out.with_suffix(".json").write_text(f"{{\n{told}\n}}\n", encoding="utf-8")
    out.with_suffix(".md").write_text(page, encoding="utf-8")
