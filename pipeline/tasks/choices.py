"""A question's candidates made from its texts: cut into units, labelled, described, embedded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from models.retriever.table import GOLD, HOLDS, MAX_CANDIDATES, CandidateTable
from pipeline.candidate_features import Encode, PairColumns, Unit, candidate_table, preselect
from pipeline.session.prompts import article_head
from pipeline.tasks.contexts import Candidate, CountTokens, candidates
from pipeline.tasks.material import ChoiceQuestion
from pipeline.tasks.qa import Question, SourceText
from pipeline.tasks.scores import holds_answer

UNITS = ("sentence", "span", "passage")


def spans(texts: Sequence[SourceText], num_tokens: int, count_tokens: CountTokens) -> list[Candidate]:
    """Runs of whole words of at most `num_tokens` tokens, one after another; a longer word is a span of its own."""
    if num_tokens < 1:
        raise ValueError(f"span: given {num_tokens}; allowed: 1 token or more")
    found = []
    for at, source in enumerate(texts):
        held: list[str] = []
        left, place = num_tokens, 0
        for word in source.text.split():
            cost = count_tokens(f" {word}")
            if held and cost > left:
                found.append(Candidate(source, " ".join(held), (at, place)))
                held, left, place = [], num_tokens, place + 1
            held.append(word)
            left -= cost
        if held:
            found.append(Candidate(source, " ".join(held), (at, place)))
    return found


def cut(
    texts: Sequence[SourceText], unit: str, count_tokens: CountTokens, span_tokens: int = 32
) -> list[Candidate]:
    """The candidates of the texts, in units of a sentence, a span of tokens, or a whole passage."""
    if unit == "sentence":
        return candidates(texts)
    if unit == "span":
        return spans(texts, span_tokens, count_tokens)
    if unit == "passage":
        return [Candidate(text, text.text, (at, 0)) for at, text in enumerate(texts)]
    raise ValueError(f"unit: given {unit!r}; allowed: {', '.join(UNITS)}")


def material_of(
    question: Question,
    choices: Sequence[Candidate],
    encode: Encode,
    count_tokens: CountTokens,
    *,
    most: int = MAX_CANDIDATES,
    label: Callable[[Candidate], int] | None = None,
    with_words: bool = False,
    pair: PairColumns | None = None,
) -> tuple[ChoiceQuestion, CandidateTable, list[Candidate]]:
    """A question's choice: its texts, its table, and the candidates in the table's order.

    `label` tells GOLD, HOLDS or 0; default: by the question's golds, support and answers. `pair` adds a pair
    reader's features.
    """
    units = units_of(question, choices, count_tokens, label)
    kept = preselect(question.text, units, most)
    units, choices = [units[at] for at in kept], [choices[at] for at in kept]
    table = candidate_table(
        question.text, units, encode, needs_all=needs_all(question), with_words=with_words, pair=pair
    )
    made = ChoiceQuestion(
        question_id=question.question_id,
        dataset=question.dataset,
        split=question.split,
        text=question.text,
        answers=question.answers if question.answerable else (),
        kind=question.kind,
        sentences=tuple((choice.source.title, choice.source.date, choice.text) for choice in choices),
        places=tuple(choice.place for choice in choices),
    )
    return made, table, list(choices)


def units_of(
    question: Question,
    choices: Sequence[Candidate],
    count_tokens: CountTokens,
    label: Callable[[Candidate], int] | None = None,
) -> list[Unit]:
    """The candidates with their costs and labels, in the order given."""
    told = label or (lambda choice: label_of(question, choice))
    return [_unit(choice, count_tokens, told(choice)) for choice in choices]


def needs_all(question: Question) -> bool:
    """Whether one sentence does not tell: the file names several that are needed together."""
    return len(question.support) > 1


def label_of(question: Question, choice: Candidate) -> int:
    """GOLD for what tells, by the file's support or in a gold text; HOLDS for an answer string elsewhere."""
    if not question.answerable:
        return 0
    if question.support:
        wanted = {sentence.strip() for title, sentence in question.support if title == choice.source.title}
        return GOLD if any(w and (w in choice.text or choice.text in w) for w in wanted) else 0
    if not holds_answer(choice.text, question.answers):
        return 0
    return GOLD if choice.source.text_id in question.gold_ids else HOLDS


def _unit(choice: Candidate, count_tokens: CountTokens, label: int) -> Unit:
    return Unit(
        text=choice.text,
        title=choice.source.title,
        rank=choice.place[0],
        place=choice.place[1],
        num_tokens=max(1, count_tokens(f" {choice.text}")),
        head_tokens=count_tokens(article_head(choice.source.title, choice.source.date)) + 2,
        label=label,
    )
