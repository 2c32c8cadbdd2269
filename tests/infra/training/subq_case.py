"""Small data and models for the backbone's training: text of random words, few wordings."""

from __future__ import annotations

import random
from functools import cache

import numpy as np

from infra.training.subq_data import SubqData
from models.subq import SubqConfig
from models.subq.tokenizer import SubqTokenizer
from pipeline.prepare.needle_stream import NeedleStreamConfig
from pipeline.tasks.needle_grammar import Form, NeedleGrammar, Split

SYLLABLES = ("ba", "do", "ki", "lu", "men", "no", "pra", "sel", "ti", "vor")
MODEL = SubqConfig(
    vocabulary=600, width=32, lower_blocks=1, upper_blocks=1, head_dim=16, kv_heads=1, feed_forward=48, window=24,
    chunk=32, encoder_heads=4, landmark_dim=32, top_k=2, near=2, context_tokens=512,
)  # fmt: skip
STREAM = NeedleStreamConfig(
    tokens=1_024, targets=256, phases=((512, 6),), longer=0.0, longest=512, chunk=32, far=3, per_4096=40,
    digits=(5,), word_keys=0.0,
)  # fmt: skip


class FewWordings(NeedleGrammar):
    """One form of sentence and of question, two kinds: what a tiny model can learn."""

    def kinds(self, split: Split = "train", *, words: bool = False) -> tuple[str, ...]:
        """See NeedleGrammar."""
        return super().kinds(split, words=words)[:2]

    def sentence_forms(self, split: Split = "train") -> tuple[Form, ...]:
        """See NeedleGrammar."""
        return super().sentence_forms(split)[:1]

    def question_forms(self, split: Split = "train") -> tuple[Form, ...]:
        """See NeedleGrammar."""
        return super().question_forms(split)[:1]


@cache
def small_data(seed: int = 0, words: int = 12_000, vocabulary: int = 600) -> SubqData:
    """A text of made-up words with its tokenizer and names."""
    rng = random.Random(seed)
    known = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(400)]
    text = " ".join(rng.choices(known, k=words))
    grammar = FewWordings()
    told = " ".join(grammar.sample(rng).sentence + " " + grammar.sample(rng).question for _ in range(200))
    tokenizer = SubqTokenizer.train([text, told], vocabulary)
    names = tuple(sorted({word.capitalize() for word in known}))
    return SubqData(np.array(tokenizer.encode(text), np.uint16), tokenizer, names, grammar)
