"""What a choice costs where every chosen candidate is read in a prompt of its own (`models/retriever/trust.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from models.retriever.table import Bools, Ints, TableBatch


def apart_tables(tables: TableBatch, choosable: Bools, prompt_tokens: Ints) -> TableBatch:
    """The tables as reading apart costs: each choice pays its text's head and the prompt around it.

    `choosable` [N, K] are the candidates that were or may be read; `prompt_tokens` [N] those of the prompt without
    texts. The first prompt is paid by every method alike: take it off again (`paid_apart`).
    """
    whole = tables.tokens + tables.heads + prompt_tokens[:, None]
    return replace(
        tables,
        present=tables.present & choosable,
        tokens=np.where(tables.present, whole, tables.tokens),
        heads=np.zeros_like(tables.heads),
    )


def paid_apart(tables: TableBatch, row: int, picks: Iterable[int], prompt_tokens: int) -> int:
    """What a choice costs by tables of `apart_tables`, the first prompt not counted."""
    costs = [int(tables.tokens[row, pick]) for pick in picks]
    return sum(costs) - prompt_tokens if costs else 0
