"""The stage `needles` of `infra.training.subq_gpu`: a checkpoint judged at length, and by other ways to search it.

Rows are kept as they are made, and a call that is made again goes on behind them.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.evaluation.haystack import Haystack
from infra.evaluation.passkey import CELLS, Cell, PasskeyTest, row_fits
from infra.training.subq_data import SubqData
from models.subq.checkpoint import load_checkpoint
from models.subq.config import INDEXES, SubqConfig

UNITS = {"k": 1 << 10, "M": 1 << 20}
STREAM_CELLS = (Cell(name="known-5"), Cell(name="known-16", digits=16))
MOST_LOG = 32  # chunks at most where their number grows with the text


@torch.no_grad()
def run_needles(given: argparse.Namespace, folder: Path, device_name: str) -> None:
    """The table of exact match and recall by length; language-model loss with and without retrieval."""
    began = time.monotonic()
    on_gpu = given.device.startswith("cuda")
    model, described = load_checkpoint(folder, given.device, torch.bfloat16 if on_gpu else torch.float32)
    trained = model.config
    searches = {"": trained} | {text: searched(trained, text) for text in given.also.split(",") if text}
    data = SubqData.load(given.data, "test")
    lengths = [length_of(text) for text in given.lengths.split(",")]
    size = trained.chunk
    # beyond its own length the text repeats, shifted inside the chunks each time
    text = np.resize(data.tokens[: len(data.tokens) // size * size - 13], max(lengths) // size * size)
    target = given.out / f"needles-{folder.name}.json"
    record = _begun(target, described["about"], device_name, len(data.tokens))
    if "language" not in record:
        record["language"] = language_loss(model, data.tokens, given.device)
        _write(target, record)
    if model.encoder is None:
        return
    hay = Haystack(model, text)
    record["encode_seconds"] = round(time.monotonic() - began, 2)
    test = PasskeyTest(model, hay, data.tokenizer.encode_spans, data.names, real=data.real)
    for key, cell in _plan(test, given, lengths, searches, bool(data.real)):
        if key in {_key(row) for row in record["rows"]}:
            continue
        if time.monotonic() - began > given.call_seconds:
            _say("not finished: call again", began)
            return
        model.config = searches[key[3]]
        length, trials = key[2], given.trials if key[2] <= 1 << 20 else min(given.trials, given.trials_above)
        if cell is None:
            row = test.stream_row(STREAM_CELLS, length, given.keys, given.seed)
        else:
            row = test.row(cell, length, trials, given.seed)
        record["rows"].append(row | ({"search": key[3]} if key[3] else {}))
        _write(target, record)
        _say(json.dumps(record["rows"][-1]), began)
    _write(target, record | {"done": True})


Key = tuple[str, str, int, str]
"""What a row is of: trials or stream, cell, length, search."""


def _plan(
    test: PasskeyTest,
    given: argparse.Namespace,
    lengths: Sequence[int],
    searches: Iterable[str],
    has_real: bool,
) -> Iterator[tuple[Key, Cell | None]]:
    """Every row that is wanted, None for a stream's. Other searches ask the same trials, among distractors only;
    other indexes the same streams."""
    wanted = (
        given.cells.split(",") if given.cells else [cell.name for cell in CELLS if has_real or not cell.real]
    )
    size = test.model.config.chunk
    for length in lengths:
        for search in searches:
            for cell in (cell for cell in CELLS if cell.name in wanted):
                compared = cell.distractors and not cell.real and length >= given.also_from
                # trials need windows: see PasskeyTest.row
                fits = test.model.config.reach(upper=False) is not None and row_fits(test, cell, length)
                if fits and ((compared and not _by_index(search)) or not search):
                    yield ("trials", cell.name, length, search), cell
        if given.keys and length // size > 2 * given.keys + test.tail + 16:
            for search in searches:
                if not search or _by_index(search):
                    yield ("stream", ",".join(cell.name for cell in STREAM_CELLS), length, search), None


def _by_index(search: str) -> bool:
    return search.startswith(INDEXES)


def searched(config: SubqConfig, text: str) -> SubqConfig:
    """The configuration that reads more chunks: "k16" reads 16, "log1.5" round(1.5 · log2(past chunks));
    or searches otherwise: "tree8" opens 8 nodes a level of a tree, "ivf16" 16 lists, "groups128" 128 groups."""
    number = re.fullmatch(r"(k|log|tree|ivf|groups)([0-9]+(?:\.[0-9]+)?)", text)
    if number is None or (number[1] != "log" and "." in number[2]) or float(number[2]) <= 0:
        raise SystemExit(
            f"--also: given {text!r}; allowed: k16 (chunks read), log1.5 (times log2 of the past chunks), tree8, "
            "ivf16, groups128 (index and what it opens; streams only)"
        )
    if number[1] in INDEXES:
        return replace(config, index=number[1], probes=int(number[2]))
    if number[1] == "k":
        return replace(config, top_k=int(number[2]), top_k_log=0.0)
    return replace(config, top_k=MOST_LOG, top_k_log=float(number[2]))


def language_loss(model: Any, tokens: np.ndarray[Any, Any], device: str, rows: int = 4) -> dict[str, float]:
    """Nats a token on unseen text of the trained length, with retrieval and without, after a quarter of context."""
    length = min(model.config.context_tokens, len(tokens) // (2 * rows))
    found: dict[str, float] = {}
    for name, read in (("with_retrieval", True), ("without", False)):
        losses = []
        for row in range(rows):
            start = row * (len(tokens) // rows)
            ids = torch.from_numpy(tokens[start : start + length + 1].astype(np.int64)).to(device)
            out = model(ids[None, :-1], read=read)
            own = torch.nn.functional.cross_entropy(
                model.logits(out.hidden[0]).float(), ids[1:], reduction="none"
            )
            told = model.token_losses(out, ids[None, :-1], own[None], ids[None, 1:])
            losses.append(float(told[0, length // 4 :].mean()))
        found[name] = round(float(np.mean(losses)), 4)
    return found


def length_of(text: str) -> int:
    """Tokens of "16k", "1M" or a plain number."""
    try:
        return int(text[:-1]) * UNITS[text[-1]] if text[-1] in UNITS else int(text)
    except (ValueError, IndexError) as error:
        raise SystemExit(f"length {text!r} is not a number; allowed: 16384, 16k, 1M") from error


def _begun(target: Path, about: dict[str, Any], device_name: str, text_tokens: int) -> dict[str, Any]:
    """What an earlier call left of this model's record, or a new one."""
    if target.exists():
        record: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        if record["model"] == about and record["text_tokens"] == text_tokens:
            return record
    return {"stage": "needles", "model": about, "device": device_name, "text_tokens": text_tokens, "rows": []}


def _key(row: dict[str, Any]) -> Key:
    return row["what"], row["cell"], row["length"], row.get("search", "")


def _write(path: Path, record: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
    partial.replace(path)


def _say(what: str, began: float) -> None:
    print(f"[{time.monotonic() - began:6.1f} s] {what}", flush=True)  # noqa: T201
