"""Queries of recorded questions: what later questions will look for, before they are asked.

While a block is evicted its questions are unknown. Queries that the model forms for other questions, about other
texts, point at the same kinds of tokens: names, numbers, places. Their mean attention is the score
`question_bank` (models/cache/scorers.py). The bank belongs to the model, not to a session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.cache.rotating import CacheView

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone

# all sentences are our own; the texts are short, the questions ask about what such texts say
_TEXTS = (
    "Harbour board picks a new chair\nPORT ELSWICK - The harbour board named Maria Oduya as its chair on Monday. "
    "She follows Tom Reiss, who led it for nine years. The board also raised the berth fee by 4.5 percent to 310 "
    "crowns from 1 March.\n",
    "Kestrel Foods buys two mills\nKestrel Foods will pay 84 million for two mills in Varna, the company said. "
    "Its shares fell 2 percent to 17.40. The access code of the data room is 5820417. A vote is due on 9 June.\n",
    "Storm closes the northern pass\nHeavy snow shut the Tarn pass on Thursday night, police in Oberau said. "
    "Eleven lorries were stuck. The Rovers beat Lindholm 3-1 earlier that day, with two goals by Ana Petrov.\n",
)
_QUESTIONS = (
    "Question: Who leads it now?\nAnswer:",
    "Question: Who was in charge before?\nAnswer:",
    "Question: How much will it cost?\nAnswer:",
    "Question: When does this happen?\nAnswer:",
    "Question: Where did this happen?\nAnswer:",
    "Question: What did the company say?\nAnswer:",
    "Question: By how many percent did it change?\nAnswer:",
    "Question: What was the result of the match?\nAnswer:",
    "Question: How many people or vehicles were affected?\nAnswer:",
    "Question: What is the number that was mentioned? The number is",
    "Question: What is the code? The code is",
    "Question: Which two words name it? They are",
    "Question: What changed, and from what to what?\nAnswer:",
    "Question: Which town or country is meant?\nAnswer:",
    "In short, the news is that",
    "Summary:",
)


def recorded_texts() -> tuple[str, ...]:
    """All texts that a recording encodes."""
    return (*_TEXTS, *_QUESTIONS)


@torch.no_grad()
def record(backbone: HfBackbone) -> dict[int, Tensor]:
    """Queries `[num_heads, n, d]` before rotary embedding of every full-attention layer, by its index."""
    recorded: dict[int, list[Tensor]] = {spec.index: [] for spec in backbone.specs if spec.window is None}
    asked = [backbone.encode(question) for question in _QUESTIONS]
    for text in _TEXTS:
        context = [*backbone.bos, *backbone.encode(text)]
        view = CacheView.empty(backbone.specs, len(context) + max(map(len, asked)))
        backbone.run(context, view)
        for layer in view.views:
            if layer.spec.index in recorded:
                layer.watch = recorded[layer.spec.index].append
        for question in asked:
            backbone.run(question, view)
            view.rewind(len(question))
    return {index: torch.cat(parts, dim=1).float() for index, parts in recorded.items()}
