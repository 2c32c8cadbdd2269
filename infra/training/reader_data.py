"""Make the reader's training and judging data from the data folder and the newswire.

    python -m infra.training.reader_data --data $DYSRA_DATA --out build/reader

Writes OUT/training and OUT/judged (triples in Parquet, each with a manifest). The same data and seed give the same
triples. No test question and no text under a test question's gold title is in the training triples.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from infra.console import say
from pipeline.prepare.cloze import cloze_triples
from pipeline.prepare.files import write_triples
from pipeline.prepare.newswire import NewswireConfig, newswire_triples
from pipeline.prepare.pools import TextIndex, pieces
from pipeline.prepare.triples import Triple, TripleConfig, TripleMaker, make_judged, make_training
from pipeline.tasks.contexts import Candidate, CountTokens, WordWeights, candidates, rank_sentences
from pipeline.tasks.qa import (
    Question,
    SourceText,
    assign_splits,
    read_lines,
    read_passages,
    read_questions,
    read_timeqa_pages,
    test_title_keys,
    title_key,
)
from pipeline.tasks.scores import holds_answer

WIKI_SETS = ("squad2", "nq_open", "hotpotqa", "musique")
POOL = 24
JUDGED_WORLDS = (
    NewswireConfig(seed=2001, num_articles=2000, num_questions=400, split="test"),
    NewswireConfig(seed=7, num_articles=1000, num_questions=160, split="", name="demo"),
)
"""Held-out entities and wordings; and the demo's own world, all of its entities and wordings."""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the data folder (qa/, corpus/, news/)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rtqa", type=int, default=300, help="RealTimeQA questions to judge")
    parser.add_argument("--cloze", type=int, default=16_000, help="blanked sentences to practise on")
    parser.add_argument("--judged-most", type=int, default=400, help="test questions of one set, at most")
    parser.add_argument("--worlds", type=int, default=10, help="newswire worlds to train on")
    parser.add_argument("--only-newswire", action="store_true", help="leave the question sets out")
    parser.add_argument("--limit", type=int, default=0, help="questions of every set, for a try (0: all)")
    given = parser.parse_args()
    count = gemma_counter()
    config = TripleConfig(seed=given.seed)
    made_from = {"seed": given.seed, "cloze": given.cloze, "limit": given.limit, "config": asdict(config)}

    passages = read_passages(given.data / "corpus/passages_wiki.jsonl.zst")
    pages = read_timeqa_pages(given.data / "qa/timeqa_docs.jsonl.zst")
    questions = [q for name in WIKI_SETS for q in _some(given, name)]
    paragraphs = {text.text_id: text for page in pages.values() for text in page}
    timeqa = _some(given, "timeqa")
    split = assign_splits([*questions, *timeqa], {**passages, **paragraphs}, seed=given.seed)
    held_back = test_title_keys(split)
    weights = WordWeights(text.text for text in passages.values())
    say(f"{len(passages):,} passages; questions {_counts(split)}")

    wiki = TextIndex(list(passages.values()))
    wiki_maker = TripleMaker(passages, weights, _wiki_pool(wiki, passages, held_back), count, config)
    page_maker = TripleMaker(paragraphs, weights, _page_pool(pages, weights), count, config)
    on_wiki = [question for question in split if question.dataset != "timeqa"]
    on_pages = [question for question in split if question.dataset == "timeqa"]

    def training() -> Iterator[Triple]:
        yield from make_training(wiki_maker, on_wiki)
        yield from make_training(page_maker, on_pages)
        open_texts = [text for text in passages.values() if title_key(text.title) not in held_back]
        yield from _first(cloze_triples(_by_hash(open_texts, given.seed), given.seed), given.cloze)

    def judged() -> Iterator[Triple]:
        yield from make_judged(wiki_maker, _at_most(on_wiki, given.judged_most))
        yield from make_judged(page_maker, _at_most(on_pages, given.judged_most))
        if given.rtqa:
            yield from _judged_news(given.data, given.rtqa, count, config)

    def worlds() -> Iterator[Triple]:
        for at in range(given.worlds):
            world = NewswireConfig(seed=1001 + at, num_articles=400 * (1 + at % 6), split="train")
            yield from newswire_triples(world, count)

    def judged_worlds() -> Iterator[Triple]:
        for world in JUDGED_WORLDS:
            yield from newswire_triples(world, count)

    if given.worlds:
        made = made_from | {"worlds": given.worlds}
        for name, triples in (("newswire_training", worlds), ("newswire_judged", judged_worlds)):
            manifest = write_triples(triples(), given.out / name, made)
            say(f"{name}: {manifest['rows']:,} triples in {given.out / name}")
    if given.only_newswire:
        return
    for name, triples in (("training", training), ("judged", judged)):
        made = made_from | ({"rtqa": given.rtqa, "most": given.judged_most} if name == "judged" else {})
        manifest = write_triples(triples(), given.out / name, made)
        say(f"{name}: {manifest['rows']:,} triples in {given.out / name}")


def gemma_counter() -> CountTokens:
    """Counts the tokens of a text as Gemma's tokenizer makes them."""
    from tokenizers import Tokenizer

    from models.hf.gemma_gguf import prepared

    tokenizer = Tokenizer.from_file(str(prepared() / "tokenizer.json"))
    known: dict[str, int] = {}

    def count(text: str) -> int:
        if text not in known:
            known[text] = len(tokenizer.encode(text, add_special_tokens=False))
        return known[text]

    return count


def _some(given: argparse.Namespace, name: str) -> list[Question]:
    questions = read_questions(given.data / f"qa/{name}.jsonl.zst")
    return questions[: given.limit] if given.limit else questions


def _wiki_pool(
    index: TextIndex, passages: Mapping[str, SourceText], held_back: frozenset[str]
) -> Callable[[Question], list[SourceText]]:
    """BM25's best passages; in training the question's own context first, and nothing under a held-back title."""

    def pool(question: Question) -> list[SourceText]:
        if question.split == "test":
            return index.top(question.text, POOL)
        own = [passages[at] for at in question.pool_ids if at in passages and _open(passages[at])]
        found = index.top(question.text, POOL, _open)
        return [*own, *(text for text in found if text not in own)]

    def _open(text: SourceText) -> bool:
        return title_key(text.title) not in held_back

    return pool


def _page_pool(
    pages: Mapping[str, list[SourceText]], weights: WordWeights
) -> Callable[[Question], list[SourceText]]:
    """The paragraphs of the question's own page, best first."""

    def pool(question: Question) -> list[SourceText]:
        page = pages[question.titles[0]]
        ranked = rank_sentences(question.text, candidates(page), weights)
        return list(dict.fromkeys(choice.source for choice in ranked))[:POOL]

    return pool


def _judged_news(data: Path, most: int, count: CountTokens, config: TripleConfig) -> Iterator[Triple]:
    """RealTimeQA over news published up to the day of the question.

    Gold is the best piece of a listed article that holds the answer string: a weak label.
    """
    articles = [
        SourceText(text_id=row["id"], title=row["title"], text=row["text"], date=row["published"][:10])
        for row in read_lines(data / "news/rtqa_news_2011_2026.jsonl.zst")
    ]
    by_article = {article.text_id: pieces(article) for article in articles}
    texts = {piece.text_id: piece for found in by_article.values() for piece in found}
    weights = WordWeights(text.text for text in texts.values())
    say(f"{len(articles):,} news articles, {len(texts):,} pieces")
    index = TextIndex(list(texts.values()))
    questions: list[Question] = []
    for question in _by_hash_questions(read_questions(data / "qa/realtimeqa.jsonl.zst")):
        day = question.asked[:10]
        listed = [
            piece
            for at in question.pool_ids
            for piece in by_article.get(at, ())
            if piece.date <= day and holds_answer(piece.text, question.answers)
        ]
        if listed and len(questions) < most:
            best = rank_sentences(question.text, _whole_candidates(listed), weights)[0].source
            questions.append(replace(question, gold_ids=(best.text_id,), titles=(best.title,), split="test"))

    def pool(question: Question) -> list[SourceText]:
        return index.top(question.text, POOL, lambda text: text.date <= question.asked[:10], reach=4000)

    yield from make_judged(TripleMaker(texts, weights, pool, count, config), questions)


def _whole_candidates(texts: Sequence[SourceText]) -> list[Candidate]:
    return [Candidate(text, text.text, (at, 0)) for at, text in enumerate(texts)]


def _by_hash(texts: Sequence[SourceText], seed: int) -> list[SourceText]:
    return sorted(texts, key=lambda text: hashlib.blake2b(f"{seed}:{text.text_id}".encode()).digest())


def _by_hash_questions(questions: Sequence[Question]) -> list[Question]:
    return sorted(questions, key=lambda question: hashlib.blake2b(question.question_id.encode()).digest())


def _at_most(questions: Sequence[Question], most: int) -> list[Question]:
    """The test questions, at most `most` answerable and `most` unanswerable ones of a set, by hash."""
    left: Counter[tuple[str, bool]] = Counter()
    chosen = []
    for question in _by_hash_questions(questions):
        key = (question.dataset, question.answerable)
        if question.split == "test" and question.gold_ids and left[key] < most:
            left[key] += 1
            chosen.append(question)
    return chosen


def _first(triples: Iterator[Triple], most: int) -> Iterator[Triple]:
    for _, triple in zip(range(most), triples, strict=False):
        yield triple


def _counts(questions: Sequence[Question]) -> dict[str, int]:
    return dict(sorted(Counter(f"{question.dataset}/{question.split}" for question in questions).items()))


if __name__ == "__main__":
    main()
