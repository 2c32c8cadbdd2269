"""AttentionRAG: keep the sentences that the answer's first token attends to (arXiv 2503.10720).

Each passage is read alone; a reader that gives up over it drops it; else the attention of the token it answers
with, summed over layers and averaged over heads, names the passage's most attended tokens, and their sentences are
kept. What this reads itself is counted (`prefill_tokens`): the paper's compression ratio leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.session.prompts import GIVEN_UP, PromptForm, Sentence, article_head, reader_prompt
from pipeline.tasks.contexts import Candidate, CountTokens, as_sentences, candidates, within_budget
from pipeline.tasks.qa import Question, SourceText

TOP_TOKENS = 12
_BATCH = 8


class AttentionRag:
    """`context(question, texts)`: the kept sentences of the passages, within the budget, most attended first."""

    def __init__(self, backbone: Any, form: PromptForm, budget: int, count: CountTokens) -> None:
        self._backbone, self._form, self._budget, self._count = backbone, form, budget, count
        self._give_up = backbone.encode(GIVEN_UP)[0]
        self.prefill_tokens = 0

    def context(self, question: Question, texts: Sequence[SourceText]) -> tuple[Sentence, ...]:
        """What is kept of the passages."""
        model = self._backbone.model
        own = model.config._attn_implementation
        model.set_attn_implementation("eager")  # the only one that returns its weights
        try:
            scored = [
                found
                for start in range(0, len(texts), _BATCH)
                for found in self._attended(question.text, list(enumerate(texts))[start : start + _BATCH])
            ]
        finally:
            model.set_attn_implementation(own)
        ranked = [choice for _, choice in sorted(scored, key=lambda pair: -pair[0])]
        chosen = within_budget(ranked, self._budget, self._count) if ranked else []
        return as_sentences(sorted(chosen, key=lambda choice: (choice.source.date, choice.place)))

    @torch.inference_mode()
    def _attended(self, asked: str, texts: list[tuple[int, SourceText]]) -> list[tuple[float, Candidate]]:
        """(attention, sentence) of the sentences kept of some passages."""
        rows = [self._row(asked, at, text) for at, text in texts]
        longest = max(len(ids) for ids, _, _ in rows)
        device = self._backbone.device
        ids = torch.zeros(len(rows), longest + 1, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for at, (row, _, _) in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row)
            mask[at, : len(row)] = 1
        self.prefill_tokens += sum(len(row) for row, _, _ in rows)
        last = mask.sum(1) - 1
        logits = self._plain(ids.to(device), mask.to(device)).logits
        first = logits[torch.arange(len(rows)), last.to(device)].argmax(-1).cpu()
        ids[torch.arange(len(rows)), last + 1] = first
        mask[torch.arange(len(rows)), last + 1] = 1
        weights = self._plain(ids.to(device), mask.to(device), output_attentions=True).attentions
        kept = []
        for at, (_, owner, sentences) in enumerate(rows):
            if int(first[at]) == self._give_up:
                continue
            focal = int(last[at]) + 1
            total = torch.stack([layer[at, :, focal, :focal].float().mean(0) for layer in weights]).sum(0)
            attention = total.cpu().numpy()[: len(owner)]
            for place in attended_sentences(attention, owner, TOP_TOKENS):
                kept.append((float(attention[owner == place].sum()), sentences[place]))
        return kept

    def _row(
        self, asked: str, at: int, text: SourceText
    ) -> tuple[list[int], np.ndarray[Any, Any], list[Candidate]]:
        """A prompt over one passage, and which sentence each of its tokens belongs to (-1: none)."""
        backbone = self._backbone
        own = [Candidate(text, each.text, (at, each.place[1])) for each in candidates([text])]
        ids = [*backbone.bos, *backbone.encode(f"{article_head(text.title, text.date)}:")]
        owner = [-1] * len(ids)
        for place, sentence in enumerate(own):
            piece = backbone.encode(f" {sentence.text}")
            ids += piece
            owner += [place] * len(piece)
        ids += backbone.encode("\n" + reader_prompt((), asked, "adapted"))
        return ids, np.array(owner), own

    def _plain(self, ids: torch.Tensor, mask: torch.Tensor, **more: Any) -> Any:
        return self._backbone.model(input_ids=ids, attention_mask=mask, use_cache=False, **more)


def attended_sentences(
    attention: np.ndarray[Any, Any], owner: np.ndarray[Any, Any], top_tokens: int
) -> list[int]:
    """The sentences that own the `top_tokens` most attended tokens. Both [T]; owner -1: no sentence."""
    inside = np.flatnonzero(owner >= 0)
    best = inside[np.argsort(-attention[inside], kind="stable")[:top_tokens]]
    return sorted({int(owner[at]) for at in best})
