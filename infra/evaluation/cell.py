"""What `dysra evaluate` was asked for: one cell of the tables, as given, before its task looks at it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from infra.evaluation.readers import hf_name, kind_of
from pipeline.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One method on one task; each task takes what it needs and says what it cannot use."""

    task: str = field(metadata={"help": "see infra/evaluation/tasks.py: TASKS"})
    method: str = field(metadata={"help": "what is judged"})
    data: Path = field(metadata={"help": "questions or texts"})
    corpus: Path | None = field(default=None, metadata={"help": "texts that questions point into"})
    model: str = field(default="gemma-3-270m", metadata={"help": "the reader"})
    adapter: str = field(default="auto", metadata={"help": "auto, shipped, none, or a folder"})
    embedder: str = field(default="minilm", metadata={"help": "for dense and hybrid"})
    unit: str = field(default="sentence", metadata={"help": "what is chosen: sentence or passage"})
    budget: int = field(default=128, metadata={"help": "tokens of text a question"})
    split: str = field(default="test", metadata={"help": "test or all"})
    limit: int = field(default=0, metadata={"help": "questions, at most (0: all)"})
    seed: int = field(default=0, metadata={"help": "which questions a limit keeps; random choices"})
    device: str = field(default="auto", metadata={"help": "as backbone.device"})
    policy: Path | None = field(default=None, metadata={"help": "a trained retrieval policy"})
    reading: str = field(default="together", metadata={"help": "qa: together or apart"})
    trust: Path | None = field(default=None, metadata={"help": "qa: weights of readings apart"})
    cache: int = field(default=0, metadata={"help": "qa: newest articles of a session's cache, offered too"})
    keep: float = field(default=0.1, metadata={"help": "share of the full layers' bytes that a cache keeps"})
    passages: int = field(
        default=10, metadata={"help": "passages of a context that a cache method compresses"}
    )

    def reader_adapter(self, default: str) -> str | None:
        """The adapter's folder or None; `auto` is `default`. Raises UsageError where there is no such folder."""
        given = default if self.adapter == "auto" else self.adapter
        if kind_of(self.model) == "subq":
            if self.adapter not in ("auto", "none"):
                raise UsageError(
                    f"--adapter {self.adapter} with the subq model {self.model}: adapters belong to transformers "
                    "models; leave --adapter out"
                )
            return None
        if given == "none":
            return None
        if given != "shipped":
            if not Path(given).is_dir():
                raise UsageError(
                    f"--adapter {given}: no such folder; allowed: shipped, none, or a folder of a LoRA adapter"
                )
            return given
        from models.hf.adapter import adapter_folder
        from models.hf.config import HfConfig

        folder = adapter_folder(HfConfig(model=hf_name(self.model), adapter=given))
        return None if folder is None else str(folder)
