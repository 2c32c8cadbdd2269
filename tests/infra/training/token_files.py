"""Token files of made-up words, as `infra.training.subq_pack` writes them."""

from __future__ import annotations

import json
from pathlib import Path

from infra.training.subq_pack import write_tokens
from tests.infra.training.subq_case import small_data


def token_files(folder: Path) -> Path:
    """The folder that the subq learner reads."""
    data = small_data()
    out = folder / "data"
    out.mkdir()
    data.tokenizer.save(out / "tokenizer.json")
    (out / "names.json").write_text(json.dumps({"train": data.names, "test": data.names}))
    write_tokens(data.tokens, out, "train")
    return out
