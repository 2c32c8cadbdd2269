"""Choices read by a language model: the answer's F1, the gold answer's loss, and how near it came to giving up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from models.reader_decoding import GreedyAnswer, greedy_answers
from models.reader_scoring import answer_losses
from pipeline.session.prompts import PromptForm, giving_up_token, parse_answer, target_text
from pipeline.tasks.material import Material
from pipeline.tasks.scores import answer_f1

STOP = "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """A model with its text: what reading needs, whatever loaded it.

    `encode` gives ids without special tokens, `begin` are those that open a prompt.
    """

    model: Any
    encode: Callable[[str], list[int]]
    decode: Callable[[Iterable[int]], str]
    begin: tuple[int, ...]
    device: str = "cpu"
    form: PromptForm = "adapted"
    tokens_per_batch: int = 2048
    max_new_tokens: int = 12


def voice_of(backbone: Any, adapted: bool) -> Voice:
    """The voice of a loaded `HfBackbone`."""
    on_gpu = backbone.device.type == "cuda"
    return Voice(
        model=backbone.model,
        encode=backbone.encode,
        decode=backbone.decode,
        begin=tuple(backbone.bos),
        device=str(backbone.device),
        form="adapted" if adapted else "base",
        tokens_per_batch=65536 if on_gpu else 2048,
    )


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a reader that must answer said over a choice, and how sure it was.

    `f1` (0 to 1), `loss` of the best gold answer (NaN where not asked for), `margin` as in `MaterialReader`,
    `confidence`: mean log-probability a token of its own answer with the line end (nats, at most 0), `num_tokens`
    of that answer.
    """

    f1: float
    loss: float
    margin: float
    confidence: float
    num_tokens: int
    text: str


class MaterialReader:
    """Reads choices over one material: `(row, picks)` to (f1, loss, margin), all that are given at once.

    F1 is of the answer that the reader gives when it must answer; `margin` tells by how much it would rather give
    up (docs/reader.md). A question without an answer is read rightly by giving up: its F1 is 1 then, else 0, its
    loss that of giving up, its margin -inf, so that nothing is taken off again. Without `want_loss` losses are NaN.

    A reader whose vocabulary has no token that means giving up alone cannot be made to answer: its F1 is of what it
    says, its margin inf where that is giving up and -inf where it answers.
    """

    def __init__(self, material: Material, voice: Voice, want_loss: bool = True) -> None:
        self.material, self.voice, self._want_loss = material, voice, want_loss
        self._give_up = giving_up_token(voice.encode)
        self.num_read = self.num_tokens = 0

    def outcomes(self, requests: Sequence[tuple[int, tuple[int, ...]]]) -> list[tuple[float, float, float]]:
        """(f1, loss, margin) of each request, in order."""
        if not requests:
            return []
        prompts, said = self._answers(requests)
        losses = self._losses(requests, prompts) if self._want_loss else [math.nan] * len(requests)
        found = []
        for (row, _), answer, loss in zip(requests, said, losses, strict=True):
            golds = self.material.questions[row].answers
            text, margin = self._heard(answer)
            if golds:
                found.append((answer_f1(text, golds), loss, margin))
            else:
                found.append((float(margin > 0), loss, -math.inf))
        self.num_read += len(requests)
        self.num_tokens += sum(map(len, prompts))
        return found

    def spoken(self, requests: Sequence[tuple[int, tuple[int, ...]]]) -> list[Spoken]:
        """What is said over each request of an answerable question, with how sure the reader is, in order."""
        if not requests:
            return []
        voice = self.voice
        prompts, said = self._answers(requests)
        end = voice.encode(STOP)
        own = answer_losses(
            voice.model,
            [(prompt, [*answer.ids, *end]) for prompt, answer in zip(prompts, said, strict=True)],
            tokens_per_batch=voice.tokens_per_batch,
            device=voice.device,
        )
        losses = self._losses(requests, prompts) if self._want_loss else [math.nan] * len(requests)
        found = []
        for (row, _), answer, loss, surprise in zip(requests, said, losses, own, strict=True):
            text, margin = self._heard(answer)
            f1 = answer_f1(text, self.material.questions[row].answers)
            found.append(Spoken(f1, loss, margin, -surprise, len(answer.ids), text))
        self.num_read += len(requests)
        self.num_tokens += sum(map(len, prompts))
        return found

    def _answers(
        self, requests: Sequence[tuple[int, tuple[int, ...]]]
    ) -> tuple[list[list[int]], list[GreedyAnswer]]:
        """The prompts' ids and what the reader says when it must answer."""
        voice = self.voice
        prompts = [
            [*voice.begin, *voice.encode(self.material.prompt(row, picks, voice.form))]
            for row, picks in requests
        ]
        said = greedy_answers(
            voice.model,
            prompts,
            stop_id=voice.encode(STOP)[0],
            give_up_id=self._give_up,
            may_give_up=False,
            max_new_tokens=voice.max_new_tokens,
            tokens_per_batch=voice.tokens_per_batch,
            device=voice.device,
        )
        return prompts, said

    def _heard(self, answer: GreedyAnswer) -> tuple[str, float]:
        """The answer's text, and by how much the reader would rather give up."""
        parsed = parse_answer(self.voice.decode(answer.ids))
        if self._give_up is not None:
            return parsed.text, answer.margin
        return parsed.text, math.inf if parsed.given_up else -math.inf

    def _losses(
        self, requests: Sequence[tuple[int, tuple[int, ...]]], prompts: Sequence[list[int]]
    ) -> list[float]:
        """The loss of the first gold answer with its line end (of giving up, where there is none)."""
        targets = []
        for row, _ in requests:
            golds = self.material.questions[row].answers
            targets.append(self.voice.encode(target_text(golds[0] if golds else None) + STOP))
        return answer_losses(
            self.voice.model,
            list(zip(prompts, targets, strict=True)),
            tokens_per_batch=self.voice.tokens_per_batch,
            device=self.voice.device,
        )
