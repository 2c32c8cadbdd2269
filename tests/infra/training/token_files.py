"""Token files of made-up words, as `infra.training.subq_pack` writes them."""

from __future__ import annotations

import json
from pathlib import Path

from infra.training.subq_pack import write_tokens
from tests.infra.training.subq_case import small_data


def packed(folder: Path) -> Path:
    """A new folder that the subq learner reads: both parts hold the same text, under other names."""
    folder.mkdir(parents=True)
    data = small_data()
    for part in ("train", "test"):
        write_tokens(data.tokens, folder, part)
    data.tokenizer.save(folder / "tokenizer.json")
    half = len(data.names) // 2
    (folder / "names.json").write_text(json.dumps({"train": data.names[:half], "test": data.names[half:]}))
    return folder


def token_files(folder: Path) -> Path:
    """The same, inside a folder that is there."""
    return packed(folder / "data")
