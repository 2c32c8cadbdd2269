"""What the ranker learns from: contexts read exactly, and how much later questions attend to each token.

Contexts are made of the training split only (pipeline/tasks/qa.py): SQuAD and NQ passages with their questions,
needles of trained wordings in Wikipedia passages, and books continued. All texts are of open licence.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.cache.layers import ViewLayer
from models.cache.rotating import CacheView
from models.compared.trace import Trace, read_exactly
from models.hf import HfBackbone
from pipeline.session.prompts import article_head, one_line
from pipeline.tasks.needle_grammar import NeedleGrammar
from pipeline.tasks.qa import (
    Question,
    SourceText,
    assign_splits,
    read_lines,
    read_passages,
    read_questions,
    test_title_keys,
    title_key,
)

CONTINUED = 128
_DIGITS = (5, 7, 10, 16, None)


@dataclass(frozen=True, slots=True)
class Context:
    """A text and what comes after it: questions with their answers, or the text's own continuation."""

    name: str
    text: str
    later: tuple[str, ...]


class MassLayer(ViewLayer):  # type: ignore[no-untyped-call]
    """A view that adds up the attention which its context gets from everything read after it."""

    def __init__(self, view: ViewLayer, num_context: int) -> None:
        super().__init__(view.spec, view._keys.shape[2], view._next_place)
        self.fill(view._keys[0, :, : view._length], view._values[0, :, : view._length])
        self.mass = torch.zeros(view.spec.num_kv_heads, num_context, device=view.spec.device)
        self.num_queries = 0

    def observe(self, queries: Tensor) -> None:
        """See MemoryLayer.observe; the step's own keys are in the view already."""
        spec, steps = self.spec, queries.shape[1]
        places = torch.arange(self.query_place, self.query_place + steps, device=queries.device)
        turned = spec.rotary.turn(queries.float(), places).reshape(spec.num_kv_heads, -1, *queries.shape[1:])
        scores = turned @ self._keys[0, :, None, : self._length].float().transpose(-1, -2) * spec.scaling
        # keys are in order: the last `steps` are the step's own
        late = (
            torch.arange(self._length, device=queries.device)
            > (torch.arange(self._length - steps, self._length, device=queries.device)[:, None])
        )
        weights = scores.masked_fill(late, float("-inf")).softmax(-1)
        self.mass += weights[..., : self.mass.shape[1]].sum(2).mean(1)
        self.num_queries += steps


@torch.no_grad()
def record(backbone: HfBackbone, context: Context, sinks: int = 4) -> dict[str, Tensor]:
    """Keys, values (float16) and target mass of each full layer, by name; mass sums to 1 after the sinks.

    Each later text weighs the same; the mass of a token is the mean over heads of its group and later tokens.
    """
    trace = read_exactly(backbone, [*backbone.bos, *backbone.encode(context.text)])
    asked = [backbone.encode(text) for text in context.later]
    views = _mass_view(trace, backbone, max(map(len, asked)))
    total = {layer.spec.index: torch.zeros(layer.keys.shape[:2]) for layer in trace.layers}
    for ids in asked:
        backbone.run(ids, views)
        for view in views.views:
            if isinstance(view, MassLayer):
                mass = view.mass / view.num_queries
                mass[:, :sinks] = 0.0
                total[view.spec.index] += (mass / mass.sum(1, keepdim=True).clamp_min(1e-9)).cpu()
                view.mass.zero_()
                view.num_queries = 0
        views.rewind(len(ids))
    out: dict[str, Tensor] = {}
    for layer in trace.layers:
        at = layer.spec.index
        out[f"layer{at}.keys"] = layer.keys.half().cpu()
        out[f"layer{at}.values"] = layer.values.half().cpu()
        out[f"layer{at}.mass"] = total[at] / len(asked)
    return out


def _mass_view(trace: Trace, backbone: HfBackbone, room: int) -> CacheView:
    from models.compared import method

    exact = method("full").memory(trace, trace.full_bytes).view(room).views
    spec_of = {spec.index: spec for spec in backbone.specs}
    layers = [
        MassLayer(view, trace.num_tokens) if spec_of[at].window is None else view
        for at, view in enumerate(exact)
    ]
    return CacheView(layers)


# -- material ---------------------------------------------------------------------------------------------------


def contexts(data: Path, seed: int, scale: float = 1.0) -> Iterator[Context]:
    """The training contexts, of mixed kinds in a shuffled order; `scale` makes fewer or more of each kind."""
    passages = read_passages(data / "corpus" / "passages_wiki.jsonl.zst")
    found: list[Context] = []
    counts = {"squad2": (12, 12, 8), "nq_open": (8, 14, 8)}
    known = [
        q
        for name in counts
        for q in assign_splits(read_questions(data / "qa" / f"{name}.jsonl.zst"), passages, seed=0)
    ]
    held_back = test_title_keys(known)
    open_texts = [text for text in passages.values() if title_key(text.title) not in held_back]
    for name, (num_contexts, num_passages, num_questions) in counts.items():
        rng = random.Random(f"{seed}:{name}")
        dataset = {"squad2": "squad", "nq_open": "nq"}[name]
        questions = [
            q for q in known if q.dataset == dataset and q.split == "train" and q.answers and q.answerable
        ]
        rng.shuffle(questions)
        made = _question_contexts(questions, passages, open_texts, rng, num_passages, num_questions)
        found += [
            Context(f"{name}-{at}", text, later)
            for at, (text, later) in zip(range(max(1, round(num_contexts * scale))), made, strict=False)
        ]
    rng = random.Random(f"{seed}:needles")
    for at in range(max(1, round(9 * scale))):
        found.append(_needle_context(f"needles-{at}", rng.sample(open_texts, 16), rng))
    books = read_lines(data / "pretrain" / "gutenberg.jsonl.zst")
    for at, row in zip(range(max(1, round(5 * scale))), books, strict=False):
        start = len(row["text"]) // 3
        piece = row["text"][start : start + 9000]
        found.append(Context(f"book-{at}", piece[:8400], (piece[8400:],)))
    random.Random(seed).shuffle(found)
    yield from found


def _question_contexts(
    questions: Sequence[Question],
    passages: dict[str, SourceText],
    fillers: Sequence[SourceText],
    rng: random.Random,
    num_passages: int,
    num_questions: int,
) -> Iterator[tuple[str, tuple[str, ...]]]:
    chosen: dict[str, SourceText] = {}
    asked: list[str] = []
    for question in questions:
        golds = [passages[gold] for gold in question.gold_ids[:1] if gold in passages]
        if not golds:
            continue
        chosen[golds[0].text_id] = golds[0]
        asked.append(f"Question: {one_line(question.text)}\nAnswer: {question.answers[0]}")
        if len(asked) == num_questions:
            texts = [*chosen.values(), *rng.sample(fillers, max(0, num_passages - len(chosen)))]
            rng.shuffle(texts)
            yield as_lines(texts), tuple(asked)
            chosen, asked = {}, []


def as_lines(texts: Sequence[SourceText]) -> str:
    """Passages as the reader sees them, a line each."""
    return "".join(f"{article_head(text.title, text.date)}: {one_line(text.text)}\n" for text in texts)


def _needle_context(name: str, texts: Sequence[SourceText], rng: random.Random) -> Context:
    grammar = NeedleGrammar()
    needles = [grammar.sample(rng, "train", rng.choice(_DIGITS)) for _ in range(8)]
    parts = [one_line(text.text) for text in texts]
    for needle in needles:
        parts.insert(rng.randrange(len(parts) + 1), needle.sentence)
    later = tuple(f"Question: {n.question}\nAnswer: {n.answer}" for n in needles)
    return Context(name, "\n".join(parts) + "\n", later)
