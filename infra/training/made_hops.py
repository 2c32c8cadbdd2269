"""Questions that need two sentences: links of passages, what their maker learns from, questions joined of two.

A link is a sentence A of one passage that names another passage's title, and a sentence B under that title. Asked
of a link, the maker writes one question of both (`two`); or a question of A whose answer is the title and one of B
that names it are made, and the first, as a description, takes the title's place in the second (`joined`).
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from infra.training.made_sources import Carried, Source, TrainingPair, span_in
from pipeline.session.prompts import one_line
from pipeline.session.sentences import split_sentences
from pipeline.tasks.contexts import words
from pipeline.tasks.qa import Question, SourceText, title_key
from pipeline.tasks.scores import holds_answer

TWO, JOINED = "two", "joined"
MOST_NAMED = 20
"""A title that more sentences name than this ("New York") says too little of what is asked about."""
A_LINK, A_TITLE = 8, 40
"""Sentences B of one link, and links to one title with their sentences, at most."""
_WORD = re.compile(r"\w+")
_BE = "is|was|are|were"
_VERB = (
    r"(?:is|was|are|were|has|had|won|wrote|sang|made|led|ran|held|sold|built|began|became|\w+ed|\w+es|\w+s)"
)
_AUXILIARY = "is|was|are|were|has|had|did|does|do|can|will"


def bare(title: str) -> str:
    """A title without a trailing "(…)"."""
    return re.sub(r"\s*\([^)]*\)\s*$", "", one_line(title))


def draw_links(
    texts: Sequence[SourceText], count: int, seed: int, least: int = 8, most: int = 60
) -> list[Source]:
    """`count` links of these texts, drawn by the seed: sentence B as the source, A as what stands `via`.

    Titles are two words or more without a "(…)", as these name one thing, and rarely named ones.
    """
    chance = random.Random(seed)
    cut = [[one_line(sentence) for sentence in split_sentences(text.text)] for text in texts]
    under: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, text in enumerate(texts):
        name = tuple(_WORD.findall(text.title))
        if len(name) > 1 and "(" not in text.title and not text.title.startswith(("List of", "The ")):
            under[name].append(at)
    named = [link for link in _named(texts, cut, under, most) if link[2]]
    often = Counter(name for _, _, name in named)
    found: dict[tuple[str, ...], list[Source]] = defaultdict(list)
    for at, a, name in named:
        if often[name] > MOST_NAMED:
            continue
        first = Source(TWO, texts[at].text_id, one_line(texts[at].title), a)
        own = bare(texts[at].title).casefold()
        told = [
            Source(TWO, texts[to].text_id, one_line(texts[to].title), b, (first,))
            for to in under[name]
            for b in cut[to]
            if least <= len(b.split()) <= most and own not in b.casefold()
        ]
        found[name] += chance.sample(told, min(A_LINK, len(told)))
    whole = [link for links in found.values() for link in chance.sample(links, min(A_TITLE, len(links)))]
    return chance.sample(whole, min(count, len(whole)))


def two_hop_pairs(carried: Carried) -> list[TrainingPair]:
    """What the maker of `two` learns: training questions over two titles, with the sentence of each that tells."""
    return [pair for question in carried.training if (pair := _two_hop_pair(question)) is not None]


def names(question: str, title: str, other: str) -> bool:
    """Whether a question names a title, or most words of it that the other title lacks."""
    told = set(words(bare(title))) - set(words(other))
    if holds_answer(question, [bare(title)]):
        return True
    return bool(told) and 2 * len(told & set(words(question))) > len(told)


def joined(first: str, second: str, title: str) -> str:
    """The second question, its title replaced by what the first one asks about; '' where that cannot be said."""
    name, phrase = bare(title), described(first)
    at = re.search(rf"\b(?:the )?{re.escape(name)}(?!\w|['’]s)", second, re.IGNORECASE)
    if not phrase or at is None:
        return ""
    return one_line(f"{second[: at.start()]}{phrase}{second[at.end() :]}")


def described(question: str) -> str:
    """What a question asks about as a description ("who wrote X" as "the person who wrote X"); '' where unknown."""
    asked = one_line(question).rstrip("?. ")
    asked = re.sub(
        r"^(?:in|of|at|for|from|by|with|on) (?=(?:what|which|whom)\b)", "", asked, flags=re.IGNORECASE
    )
    rules = (
        (rf"(?:what|which|who) (?:{_BE}) (?:the )?names? of (the .+)", "{0}"),
        (rf"(?:what|which|who) (?:{_BE}) (the .+)", "{0}"),
        (r"(?:who|whom) (?:did|does|do) (.+)", "the person that {0}"),
        (r"who (.+)", "the person who {0}"),
        (r"where (?:(?:did|does) )(.+)", "the place where {0}"),
        (rf"where ({_BE}) (.+) (\w+ed|born|built|held|set)", "the place where {1} {0} {2}"),
        (rf"(?:what|which) ((?:(?!(?:{_AUXILIARY})\b)[\w'-]+ ){{1,3}}?)(?:did|does|do) (.+)", "the {0}that {1}"),
        (rf"(?:what|which) ((?:(?!(?:{_AUXILIARY})\b)[\w'-]+ ){{1,3}}?)((?:{_VERB}) .+)", "the {0}that {1}"),
    )  # fmt: skip
    for pattern, form in rules:
        if (found := re.fullmatch(pattern, asked, re.IGNORECASE)) is not None:
            phrase = form.format(*found.groups())
            # "who is X" describes nothing but its name
            return "" if re.fullmatch(rf"the person who (?:{_BE}) [A-Z].*", phrase) else phrase
    return ""


def _named(
    texts: Sequence[SourceText], cut: Sequence[Sequence[str]], under: dict[tuple[str, ...], list[int]], most: int
) -> Iterator[tuple[int, str, tuple[str, ...]]]:  # fmt: skip
    """Each sentence with each title it names that is not its own: (text, sentence, title's words)."""
    sizes: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in under:
        sizes[name[0], name[1]].add(len(name))
    for at, text in enumerate(texts):
        if text.title.startswith("List of"):
            continue
        own = title_key(text.title)
        for sentence in cut[at]:
            if not 6 <= len(sentence.split()) <= most:
                continue
            told = _WORD.findall(sentence)
            for i in range(len(told) - 1):
                for size in sizes.get((told[i], told[i + 1]), ()):
                    name = tuple(told[i : i + size])
                    if name in under and title_key(" ".join(name)) not in own:
                        yield at, sentence, name


def _two_hop_pair(question: Question) -> TrainingPair | None:
    titles = list(dict.fromkeys(title for title, _ in question.support))
    if len(titles) != 2 or question.kind == "comparison":
        return None
    for title, b in question.support:
        answer = span_in(b, question.answers)
        if not answer or names(question.text, title, next(t for t in titles if t != title)):
            continue
        others = [(t, s) for t, s in question.support if t != title]
        # the sentence that names the title is the one that leads to it
        others.sort(key=lambda told: not holds_answer(told[1], [bare(title)]))
        first = Source(TWO, "", one_line(others[0][0]), one_line(others[0][1]))
        source = Source(TWO, "", one_line(title), one_line(b), (first,))
        return TrainingPair(source, answer, one_line(question.text))
    return None


def first_hop(link: Source) -> tuple[Source, str]:
    """What is asked of A, and the answer that is given: the title of B as A spells it."""
    first = replace(link.via[0], style="hops")
    return first, span_in(first.sentence, [bare(link.title)]) or bare(link.title)
