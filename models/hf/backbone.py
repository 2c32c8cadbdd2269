"""Any `transformers` decoder as a backbone: reads into our cache, answers from a view of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.backbone import Reluctance, Sampling
from models.cache.config import LEARNED, CacheConfig
from models.cache.learned import LearnedWeights, learned_folder
from models.cache.learned_autoencoder import LearnedAutoencoder
from models.cache.learned_projection import LearnedProjection
from models.cache.ranker import find_ranker
from models.cache.rotating import CacheView, RotatingCompressiveCache
from models.hf.captured import CapturedSteps
from models.hf.config import HfConfig
from models.hf.generation import Sampler, StopTexts, not_first
from models.hf.loading import Loaded, layer_specs, load
from models.hf.norms import fuse
from models.hf.question_bank import record

LEARNED_TYPES = {"projection": LearnedProjection, "autoencoder": LearnedAutoencoder}
_CHECK_TOKENS = 24
_CHECK_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


class HfBackbone:
    """See models.backbone.Backbone. `model` is the plain transformers model, usable on its own."""

    def __init__(self, loaded: Loaded, config: HfConfig) -> None:
        self.config, self.model = config, loaded.model
        self.identity, self.end_ids = loaded.identity, loaded.end_ids
        self._tokenizer: Tokenizer = loaded.tokenizer
        self._decoder = self.model.get_decoder()
        self.specs = layer_specs(self.model)
        self.device, self.dtype = self.specs[0].device, self.specs[0].dtype
        text_config = self.model.config.get_text_config(decoder=True)
        self.vocabulary = int(text_config.vocab_size)
        self.context_tokens = int(text_config.max_position_embeddings)
        self._bank: dict[int, Tensor] | None = None
        # handed on for its four dimensions, where transformers would make two masks that our attention never reads
        self._no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        self._check_agreement()
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            fuse(self.model)
        self.steps = CapturedSteps(self, enabled=on_gpu, fused_latents=config.fused_latents)

    @classmethod
    def load(cls, config: HfConfig | None = None) -> HfBackbone:
        """Load as configured; the first load of gemma-3-270m converts its wheel (about a minute)."""
        config = config or HfConfig()
        return cls(load(config), config)

    # -- text -------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """See Backbone.encode; text that spells a special token stays text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """See Backbone.decode."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    @property
    def bos(self) -> list[int]:
        """See Backbone.bos."""
        return [i for i in self._tokenizer.encode("", add_special_tokens=True).ids if i not in self.end_ids]

    def special_id(self, text: str) -> int | None:
        """The id of a special token such as `<start_of_turn>`, or None where the model has none of that name."""
        token = self._tokenizer.token_to_id(text)
        return None if token is None else int(token)

    @property
    def words(self) -> Tensor:
        """The vectors of all tokens (the input embedding) as the model holds them. [vocabulary, W]"""
        found: Tensor = self.model.get_input_embeddings().weight
        return found

    # -- cache ------------------------------------------------------------------------------------------------

    def new_cache(self, config: CacheConfig | None = None) -> RotatingCompressiveCache:
        """See Backbone.new_cache; raises ValueError for budgets that do not fit the model."""
        config = config or CacheConfig()
        specs = self.specs
        layers = [config.for_layer(spec.index) for spec in specs if spec.window is None]
        if any(layer.heavy and layer.heavy_scorer == "question_bank" for layer in layers):
            bank = self.question_bank()
            specs = [replace(spec, questions=bank.get(spec.index)) for spec in specs]
        if any(layer.heavy and layer.heavy_scorer == "ranker" for layer in layers):
            learned = find_ranker(config.ranker, self.identity)
            specs = [replace(spec, ranker=learned) for spec in specs]
        kinds = {layer.compressor for layer in layers if layer.has_latents} & set(LEARNED)
        if len(kinds) > 1:
            raise ValueError(
                f"cache.per_layer names the compressors {', '.join(sorted(kinds))}; one learned kind for all layers"
            )
        for kind in kinds:
            weights = LearnedWeights.load(
                kind, LEARNED_TYPES[kind].layer_type, learned_folder(config.compressor_weights)
            )
            weights.check(self.identity)
            specs = [replace(spec, learned=weights) for spec in specs]
        return RotatingCompressiveCache(config, specs, self.identity)

    def question_bank(self) -> dict[int, Tensor]:
        """Queries of recorded questions by full-attention layer, recorded at the first call."""
        if self._bank is None:
            self._bank = record(self)
        return self._bank

    @torch.no_grad()
    def read(self, ids: Sequence[int], cache: RotatingCompressiveCache) -> None:
        """See Backbone.read. If it raises midway (out of memory), go back to a snapshot or a fork."""
        self._own(cache)
        steps = cache.take(self._checked(ids))
        for at, step in enumerate(steps):
            self._decoder(**self._inputs(step, cache))
            if self.device.type == "cuda" and at + 1 < len(steps):
                cache.foresee()  # the host finds eigenvectors while the device reads on
        if steps:
            cache.log_lost()

    # -- answers ----------------------------------------------------------------------------------------------

    def generate(
        self,
        ids: Sequence[int],
        cache: RotatingCompressiveCache | None = None,
        max_new_tokens: int = 64,
        stop_texts: Sequence[str] = (),
        cancelled: Callable[[], bool] | None = None,
        suppress_first: Sequence[int] = (),
        sampling: Sampling | None = None,
        reluctant: Reluctance | None = None,
    ) -> Iterator[int]:
        """See Backbone.generate."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        stops = StopTexts(self.decode, stop_texts)
        view, prompt = self._open(ids, cache, max_new_tokens)
        sampler = Sampler(sampling or Sampling())

        def first(logits: Tensor) -> int:
            return sampler.next(logits, not_first(logits, suppress_first, reluctant, self.end_ids))

        return self._generate(view, prompt, max_new_tokens, stops, cancelled, first, sampler)

    def _generate(
        self,
        view: CacheView,
        prompt: list[int],
        max_new_tokens: int,
        stops: StopTexts,
        cancelled: Callable[[], bool] | None,
        first: Callable[[Tensor], int],
        sampler: Sampler,
    ) -> Iterator[int]:
        logits = None
        for last, block in self._blocks(prompt):
            if cancelled is not None and cancelled():
                return
            logits = self._forward(block, view, 1 if last else 0)
        # the step is lent until the answer ends or is abandoned
        with self.steps.lent(view, max_new_tokens - 1) as step:
            for produced in range(max_new_tokens):
                assert logits is not None
                token = first(logits[-1]) if produced == 0 else sampler.next(logits[-1])
                if token in self.end_ids:
                    break
                free, stopped = stops.push(token)
                yield from free
                if stopped or (cancelled is not None and cancelled()):
                    return
                if produced + 1 < max_new_tokens:
                    logits = self._forward([token], view, 1) if step is None else step.after(token)
        yield from stops.flush()

    def score(
        self,
        prompt_ids: Sequence[int],
        answer_ids: Sequence[int],
        cache: RotatingCompressiveCache | None = None,
    ) -> float:
        """See Backbone.score."""
        if not answer_ids:
            return 0.0
        answer = self._checked(answer_ids)
        view, prompt = self._open(prompt_ids, cache, len(answer))
        total, position = 0.0, 0
        tokens = [*prompt, *answer[:-1]]
        first = len(prompt) - 1  # the logits of this token judge the answer's first
        for _, block in self._blocks(tokens):
            keep = min(len(block), max(0, position + len(block) - first))
            logits = self._forward(block, view, keep)
            if logits is not None:
                start = position + len(block) - keep - first
                judged = torch.tensor(answer[start : start + keep], device=self.device)
                total += float(logits.float().log_softmax(-1).gather(1, judged[:, None]).sum())
            position += len(block)
        return total

    def logits(self, ids: Sequence[int], cache: RotatingCompressiveCache | None = None) -> Tensor:
        """Logits `[len(ids), vocabulary]` after the cache and each of `ids`."""
        view, prompt = self._open(ids, cache, 0)
        out = [self._forward(block, view, len(block)) for _, block in self._blocks(prompt)]
        return torch.cat([part for part in out if part is not None])[-len(ids) :]

    # -- inside -----------------------------------------------------------------------------------------------

    def _open(
        self, ids: Sequence[int], cache: RotatingCompressiveCache | None, room: int
    ) -> tuple[CacheView, list[int]]:
        """A view with room for the prompt and more, and the prompt: the cache's pending ids, then `ids`."""
        prompt = self._checked(ids)
        if cache is not None:
            self._own(cache)
            prompt = [*cache.pending, *prompt]
        if not prompt:
            raise ValueError(
                "the prompt is empty; give at least one id (a fresh text begins with backbone.bos)"
            )
        room += len(prompt)
        with torch.no_grad():
            if cache is None:
                return CacheView.empty(self.specs, room), prompt
            return self.steps.view_of(cache, room), prompt

    def run(self, ids: Sequence[int], view: CacheView) -> None:
        """Compute `ids` into the view for its own sake; the view must have room for them."""
        for _, block in self._blocks(self._checked(ids)):
            self._forward(block, view, 0)

    def _blocks(self, ids: list[int]) -> Iterator[tuple[bool, list[int]]]:
        size = self.config.prompt_block
        for start in range(0, len(ids), size):
            yield start + size >= len(ids), ids[start : start + size]

    @torch.no_grad()
    def _forward(self, ids: list[int], view: CacheView, keep: int) -> Tensor | None:
        """Compute `ids` into the view; the logits `[keep, vocabulary]` of its last tokens, None for keep 0."""
        inputs = self._inputs(torch.tensor(ids, device=self.device), view)
        if keep == 0:
            self._decoder(**inputs)
            return None
        logits: Tensor = self.model(**inputs, logits_to_keep=keep).logits[0]
        return logits

    def _inputs(self, ids: Tensor, memory: CacheView | RotatingCompressiveCache) -> dict[str, Any]:
        # position 0 everywhere: the cache turns keys and queries itself, see models/hf/attention.py
        return {
            "input_ids": ids[None],
            "attention_mask": self._no_mask,
            "position_ids": torch.zeros(1, len(ids), dtype=torch.long, device=self.device),
            "past_key_values": memory,
            "use_cache": True,
            "memory": memory,
        }

    def _checked(self, ids: Sequence[int]) -> list[int]:
        out = [int(i) for i in ids]
        if out and not (min(out) >= 0 and max(out) < self.vocabulary):
            wrong = next(i for i in out if not 0 <= i < self.vocabulary)
            raise ValueError(
                f"token id {wrong} is outside the vocabulary of {self.vocabulary} ({self.identity})"
            )
        return out

    def _own(self, cache: RotatingCompressiveCache) -> None:
        if cache.model != self.identity:
            raise ValueError(f"the cache belongs to model {cache.model}, this backbone is {self.identity}")

    @torch.no_grad()
    def _check_agreement(self) -> None:
        """Refuse a decoder whose attention or rotary embedding we would get wrong, before anything is read."""
        ids = torch.arange(_CHECK_TOKENS, device=self.device) * 7919 % self.vocabulary
        plain = self.model(ids[None], use_cache=False).logits[0].float()
        ours = self.logits(ids.tolist()).float()
        error = float((ours - plain).norm() / plain.norm().clamp_min(1e-12))
        allowed = _CHECK_TOLERANCE[self.dtype]
        if not error <= allowed:
            raise ValueError(
                f"{self.identity} gives other logits through the cache than alone (relative error {error:.2g}, "
                f"allowed {allowed}): its rotary embedding or attention is of a kind that the cache does not know"
            )
