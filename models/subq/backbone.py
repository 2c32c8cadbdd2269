"""A trained sub-quadratic model that speaks text: the interface of models/backbone.py over any stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.backbone import Reluctance, Sampling
from models.subq.checkpoint import load_checkpoint, load_tokenizer
from models.subq.config import SubqConfig
from models.subq.memory import MemoryConfig
from models.subq.model import SubqModel
from models.subq.snapshot import stream_from_bytes, stream_to_bytes
from models.subq.streaming import SubqStream
from models.subq.tokenizer import SubqTokenizer

if TYPE_CHECKING:
    from models.hf.generation import Sampler, StopTexts


class SubqCache:
    """What a session has read. Unlike a rotating cache its memory of chunks grows with the stream: see `nbytes`."""

    def __init__(self, stream: SubqStream, model: str) -> None:
        self.stream, self.model = stream, model

    @property
    def tokens_seen(self) -> int:
        """Tokens read so far."""
        return self.stream.seen

    @property
    def nbytes(self) -> int:
        """Bytes of the state and of all places of the memory together."""
        return self.stream.state_bytes + sum(self.stream.memory.nbytes.values())

    def fork(self) -> SubqCache:
        """A cache that goes on by itself."""
        return SubqCache(self.stream.fork(), self.model)

    def to_bytes(self) -> bytes:
        """Everything, as safetensors; see `from_bytes`."""
        return stream_to_bytes(self.stream, self.model)

    @classmethod
    def from_bytes(cls, data: bytes, backbone: SubqBackbone) -> SubqCache:
        """What `to_bytes` gave; raises ValueError for another model's."""
        stream = stream_from_bytes(data, backbone.model, backbone.identity, backbone.memory)
        return cls(stream, backbone.identity)


class SubqBackbone:
    """See models.backbone.Backbone; caches are SubqCache."""

    def __init__(
        self,
        model: SubqModel,
        tokenizer: SubqTokenizer,
        memory: MemoryConfig | None = None,
        weights: str = "unsaved",
    ) -> None:
        if tokenizer.vocabulary > model.config.vocabulary:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocabulary} ids, the model {model.config.vocabulary}; they do not "
                "belong together"
            )
        self.model, self.memory = model.eval(), memory or MemoryConfig()
        self._tokenizer = tokenizer
        shape = json.dumps(_shape(model.config), sort_keys=True)
        self.identity = (
            f"subq-{hashlib.sha256(f'{shape}{weights}'.encode()).hexdigest()[:12]}-{tokenizer.identity}"
        )
        self.context_tokens = model.config.context_tokens

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        memory: MemoryConfig | None = None,
    ) -> SubqBackbone:
        """From a checkpoint folder; raises ValueError where it is damaged or has no tokenizer."""
        model, described = load_checkpoint(Path(folder), device, dtype)
        return cls(
            model, load_tokenizer(Path(folder)), memory, json.dumps(described["files"], sort_keys=True)
        )

    def encode(self, text: str) -> list[int]:
        """See Backbone.encode."""
        return self._tokenizer.encode(text)

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of `text`, and the characters (from, to) that each covers."""
        return self._tokenizer.encode_spans(text)

    def decode(self, ids: Iterable[int]) -> str:
        """See Backbone.decode."""
        return self._tokenizer.decode(ids)

    @property
    def bos(self) -> list[int]:
        """The end of the text before: every training text follows one."""
        return [self._tokenizer.end_id]

    def new_cache(self, config: object = None) -> SubqCache:
        """An empty cache. Its memory is as the backbone was made with, unless a MemoryConfig is given."""
        memory = config if isinstance(config, MemoryConfig) else self.memory
        return SubqCache(SubqStream(self.model, memory), self.identity)

    def read(self, ids: Sequence[int], cache: SubqCache) -> None:
        """See Backbone.read."""
        self._own(cache)
        cache.stream.read(self._checked(ids))

    def generate(
        self,
        ids: Sequence[int],
        cache: SubqCache | None = None,
        max_new_tokens: int = 64,
        stop_texts: Sequence[str] = (),
        cancelled: Callable[[], bool] | None = None,
        suppress_first: Sequence[int] = (),
        sampling: Sampling | None = None,
        reluctant: Reluctance | None = None,
    ) -> Iterator[int]:
        """See Backbone.generate."""
        from models.hf.generation import Sampler, StopTexts, not_first

        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        stops, sampler = StopTexts(self.decode, stop_texts), Sampler(sampling or Sampling())
        prompt, stream = self._open(ids, cache)

        def first(logits: torch.Tensor) -> int:
            barred = not_first(logits, suppress_first, reluctant, [self._tokenizer.end_id])
            return sampler.next(logits, barred)

        return self._generate(stream, prompt, max_new_tokens, stops, sampler, cancelled, first)

    def _generate(
        self,
        stream: SubqStream,
        prompt: torch.Tensor,
        most: int,
        stops: StopTexts,
        sampler: Sampler,
        cancelled: Callable[[], bool] | None,
        first: Callable[[torch.Tensor], int],
    ) -> Iterator[int]:
        logits = stream.ask(prompt)
        for produced in range(most):
            token = first(logits) if produced == 0 else sampler.next(logits)
            if token == self._tokenizer.end_id:
                break
            free, stopped = stops.push(token)
            yield from free
            if stopped or (cancelled is not None and cancelled()):
                return
            if produced + 1 < most:
                logits = stream.logits(torch.tensor([token]))[-1]
        yield from stops.flush()

    def score(
        self, prompt_ids: Sequence[int], answer_ids: Sequence[int], cache: SubqCache | None = None
    ) -> float:
        """See Backbone.score."""
        if not answer_ids:
            return 0.0
        answer = self._checked(answer_ids)
        prompt, stream = self._open(prompt_ids, cache)
        first = stream.ask(prompt)
        rest = stream.logits(answer[:-1])
        logits = torch.cat((first[None], rest.to(first.dtype))).float()
        return float(logits.log_softmax(-1).gather(1, answer[:, None].to(logits.device)).sum())

    def _open(self, ids: Sequence[int], cache: SubqCache | None) -> tuple[torch.Tensor, SubqStream]:
        prompt = self._checked(ids)
        if not len(prompt):
            raise ValueError(
                "the prompt is empty; give at least one id (a fresh text begins with backbone.bos)"
            )
        if cache is None:
            return prompt, SubqStream(self.model, self.memory)
        self._own(cache)
        return prompt, cache.stream.fork()

    def _checked(self, ids: Sequence[int]) -> torch.Tensor:
        out = torch.tensor([int(i) for i in ids], dtype=torch.long)
        if len(out) and not (int(out.min()) >= 0 and int(out.max()) < self.model.config.vocabulary):
            wrong = next(int(i) for i in out if not 0 <= int(i) < self.model.config.vocabulary)
            raise ValueError(
                f"token id {wrong} is outside the vocabulary of {self.model.config.vocabulary} ({self.identity})"
            )
        return out

    def _own(self, cache: SubqCache) -> None:
        if cache.model != self.identity:
            raise ValueError(f"the cache belongs to model {cache.model}, this backbone is {self.identity}")


def _shape(config: SubqConfig) -> dict[str, Any]:
    """The configuration without what came later and is not used: so an old model keeps its old caches."""
    later = {"encoder": "layer", "lookahead": 0, "lookbehind": 0, "shared_reader": False, "copies": False}
    return {key: value for key, value in config.to_dict().items() if later.get(key, ...) != value}
