"""Hybrid ranking against a policy, as sessions choose: newswire questions, one reader, the same budget.

    python -m infra.evaluation.chooser_contest --questions 48 --out build/contest.json

The search is BM25 over the newest forms of the articles (20 pieces, of the question's stream alone where it names
one), the choosers are the sessions' own, and a reader gives up only beyond the sessions' margin. Written after each
question's choice, so a run that is cut short has told what it found. `--against FOLDER` (models/weights/retriever:
what serves) lets a second policy choose too; each brings its own pair reader, in its folder or beside it.
On a GPU: `--device cuda --policy models/weights/retriever-decoder --against models/weights/retriever`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from infra.demo import report
from infra.demo.material import NEWSWIRE_SEED, DemoQuestion, Material, newswire_material
from infra.evaluation.policy_judge import paired
from infra.evaluation.reading import Reader, load_reader
from models.retriever.decoder_base import folder_of
from models.retriever.storage import SHIPPED
from pipeline.article import Article
from pipeline.prepare.pools import TextIndex, pieces
from pipeline.session.chooser import Chooser, HybridChooser
from pipeline.session.config import SessionConfig
from pipeline.session.policy_chooser import PolicyChooser
from pipeline.session.prompts import GIVEN_UP, parse_answer, reader_prompt
from pipeline.session.sentences import Candidate, candidates
from pipeline.store.records import Passage
from pipeline.tasks.qa import SourceText
from pipeline.tasks.scores import holds_answer

Search = Callable[[DemoQuestion], list[Passage]]
Row = dict[str, Any]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", type=int, default=NEWSWIRE_SEED, help="seed of the newswire")
    parser.add_argument("--articles", type=int, default=1_000)
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--policy", type=Path, default=SHIPPED, help="folder of a policy")
    parser.add_argument("--against", type=Path, help="folder of another policy that chooses too")
    parser.add_argument("--budget", type=int, default=SessionConfig().token_budget)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--adapter", default="shipped")
    parser.add_argument("--device", default="cpu", help="of the reader, and of a decoder in a pair reader")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    from models.embed import load_embedder

    material = newswire_material(given.articles, given.questions, given.world)
    embed = remembered(load_embedder("minilm").encode)
    hybrid = HybridChooser(embed)
    reader = load_reader(given.model, given.adapter, given.device)

    def chooser(folder: Path) -> PolicyChooser:
        base = partial(folder_of, given.model)
        return PolicyChooser(folder, embed, hybrid, pair_base=base, pair_device=given.device)

    choosers: dict[str, Chooser] = {"hybrid": hybrid, "policy": chooser(given.policy)}
    if given.against is not None:
        choosers["against"] = chooser(given.against)
    rows = contest(material, search_of(material), choosers, reader, given.budget, given.out)
    made = {**told(rows), "world": given.world, "articles": given.articles, "budget": given.budget}
    print(json.dumps(made))  # noqa: T201


def contest(
    material: Material, search: Search, choosers: dict[str, Chooser], reader: Reader, budget: int, out: Path
) -> list[Row]:
    """One row a question and chooser: what was read, what it cost, what the reader said."""
    backbone = reader.backbone

    def count(text: str) -> int:
        return len(backbone.encode(text))

    rows: list[Row] = []
    prompts: list[list[int]] = []
    for at, question in enumerate(material.questions):
        found = candidates(search(question), count)
        for name, chooser in choosers.items():
            began = time.monotonic()
            chosen = chooser.choose(question.question, found, budget)
            ids = prompt_of(chosen, question.question, backbone)
            rows.append(
                {
                    "question": at, "kind": question.kind, "chooser": name, "sentences": len(chosen),
                    "tokens": len(ids) - len(prompt_of([], question.question, backbone)),
                    "holds": any(holds_answer(c.text, question.answers) for c in chosen),
                    "choose_s": round(time.monotonic() - began, 3), "candidates": len(found),
                }
            )  # fmt: skip
            prompts.append(ids)
        _write(out, rows)
    said, forced = reader.answers(prompts, None)
    for at, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        answers = at in forced and hasty(prompt, forced[at], backbone)
        parsed = parse_answer(backbone.decode(list(forced[at] if answers else said[at])))
        question = material.questions[row["question"]]
        answer = {"text": parsed.text, "given_up": parsed.given_up, "sources": []}
        row |= {
            "text": parsed.text, "given_up": parsed.given_up, "right": report.is_right(question, answer),
            "f1": report.f1(question, answer),
        }  # fmt: skip
    _write(out, rows)
    return rows


def told(rows: Sequence[Row]) -> dict[str, Any]:
    """Means of each chooser, and the second's F1 against each other's, question by question."""
    names = list(dict.fromkeys(row["chooser"] for row in rows))
    by = {name: [row for row in rows if row["chooser"] == name] for name in names}
    out: dict[str, Any] = {
        name: {
            "n": len(own), "right": sum(bool(row["right"]) for row in own),
            "f1": round(100 * float(np.mean([row["f1"] for row in own])), 2),
            "holds": sum(row["holds"] for row in own),
            "tokens": round(float(np.mean([row["tokens"] for row in own])), 1),
            "sentences": round(float(np.mean([row["sentences"] for row in own])), 2),
            "choose_s": round(float(np.median([row["choose_s"] for row in own])), 3),
        }
        for name, own in by.items()
    }  # fmt: skip
    scores = {name: np.array([row["f1"] for row in by[name]], float) for name in names}
    second = scores[names[1]]
    beside = {f"gain_f1_over_{name}": paired(second, scores[name]) for name in names[2:]}
    return {**out, "gain_f1": paired(second, scores[names[0]]), **beside}


def prompt_of(chosen: Sequence[Candidate], question: str, backbone: Any) -> list[int]:
    """What the reader is given, as a session makes it."""
    sentences = [(c.title, c.date, c.text) for c in chosen]
    return [*backbone.bos, *backbone.encode(reader_prompt(sentences, question, "adapted", quoted=True))]


def hasty(prompt: list[int], other: Sequence[int], backbone: Any) -> bool:
    """Whether giving up is not likelier than another answer's first token by the sessions' margin."""
    unknown = backbone.encode(GIVEN_UP)[0]
    margin = backbone.score(prompt, [unknown], None) - backbone.score(prompt, [other[0]], None)
    return bool(other) and margin < SessionConfig().give_up_margin


def search_of(material: Material, k: int = 20) -> Search:
    """BM25 over pieces of the newest form of every article that stands."""
    newest: dict[str, Article] = {}
    for record in material.records:
        if isinstance(record, Article):
            newest[record.id] = record
        else:
            newest.pop(record.id, None)
    cut = [
        piece
        for article in newest.values()
        for piece in pieces(SourceText(text_id=article.id, title=article.title, text=article.text, date=""))
    ]
    index = TextIndex(cut)

    def search(question: DemoQuestion) -> list[Passage]:
        def allowed(piece: SourceText) -> bool:
            article = newest[piece.text_id.rpartition("#")[0]]
            return question.cross_stream or article.stream == question.stream

        return [_passage(piece, newest) for piece in index.top(question.question, k, allowed, reach=4_000)]

    return search


def _passage(piece: SourceText, newest: dict[str, Article]) -> Passage:
    article_id, _, number = piece.text_id.rpartition("#")
    article = newest[article_id]
    return Passage(
        chunk_id=0, article_id=article_id, ordinal=int(number), text=piece.text, title=article.title,
        source=article.source, stream=article.stream, published_ms=article.published_ms, version_ms=0,
    )  # fmt: skip


def remembered(encode: Callable[[list[str]], Any]) -> Callable[[Sequence[str]], Any]:
    """The embedder with every text's vector kept: both choosers ask for the same ones."""
    known: dict[str, Any] = {}

    def embed(texts: Sequence[str]) -> Any:
        fresh = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(fresh, encode(fresh), strict=True) if fresh else ())
        return np.stack([known[text] for text in texts])

    return embed


def _write(out: Path, rows: Sequence[Row]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
