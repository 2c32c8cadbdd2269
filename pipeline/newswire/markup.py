"""Turns a draft into a record: dateline, paragraphs, headings, notes of update and correction."""

from __future__ import annotations

from typing import Any

from pipeline.newswire.compose import Draft, Sentence
from pipeline.newswire.facts import Event
from pipeline.newswire.houses import House
from pipeline.newswire.rng import Rng
from pipeline.newswire.values import iso

_UPDATE_TITLES = {"kst": "UPDATE 1-", "hvp": "Updated: ", "tsd": "", "b24": "[Update] ", "qll": "Updated - "}
_CORRECTED_TITLES = {
    "kst": "CORRECTED-",
    "hvp": "Correction: ",
    "tsd": "Corrected: ",
    "b24": "[Fixed] ",
    "qll": "",
}
_UPDATE_NOTES = (
    "This story has been updated with further detail.",
    "Adds reaction and background.",
    "Updates throughout with comment and context.",
    "The article was extended after more information came in.",
)
_CORRECTION_NOTES = (
    "Correction: an earlier version of this article gave the wrong {word}. It is {right}, not {wrong}.",
    "(Corrects the {word} to {right} from {wrong}.)",
    "We got the {word} wrong when this story first appeared: we wrote {wrong}; it should have been {right}.",
    "An earlier form of this report was mistaken about the {word}. The right one is {right}; {wrong} was an error.",
)


def body(house: House, event: Event, draft: Draft, moment: int, byline: str, note: str = "") -> str:
    """The text of an article."""
    parts: list[str] = []
    for index, paragraph in enumerate(draft.paragraphs):
        if house.bullets and index < 2:
            text = "\n".join("• " + sentence.text for sentence in paragraph)
        else:
            text = " ".join(sentence.text for sentence in paragraph)
        heading = index // 2 if index % 2 == 0 else len(house.headings)
        if heading < len(house.headings):
            text = f"{house.headings[heading]}\n{text}"
        parts.append(text)
    if house.code == "tsd":
        parts.insert(0, f"By {byline}")
    parts[0] = house.dateline(event.town.name.shown[0], moment) + parts[0]
    if note and house.code in ("kst", "b24"):
        parts.insert(0, note)
    elif note:
        parts.append(note)
    if house.code == "kst":
        parts.append(f"(Reporting by {byline})")
    return "\n\n".join(parts)


def record(
    article_id: str,
    house: House,
    event: Event,
    title: str,
    text: str,
    published: int,
    updated: int | None = None,
) -> dict[str, Any]:
    """The JSON object of an article, as `pipeline.article.Article.to_dict` writes it."""
    value: dict[str, Any] = {
        "id": article_id,
        "published": iso(published),
        "source": house.name,
        "title": title,
        "text": text,
        "topics": list(event.type.topics),
        "stream": event.type.desk,
        "url": f"https://{house.code}.example/{event.type.desk}/{article_id}",
    }
    if updated is not None:
        value["updated"] = iso(updated)
    return value


def update_title(house: House, title: str) -> str:
    """The title of a fuller form."""
    return _UPDATE_TITLES[house.code] + title


def corrected_title(house: House, title: str) -> str:
    """The title of a corrected form."""
    return _CORRECTED_TITLES[house.code] + title


def update_note(rng: Rng) -> str:
    """A line that says that the article was extended."""
    return rng.pick(_UPDATE_NOTES)


def correction_note(event: Event, register: int, rng: Rng) -> str:
    """A line that says what was wrong."""
    slot, wrong = next(iter(event.wrong.items()))
    return rng.pick(_CORRECTION_NOTES).format(
        word=event.type.correctable_word(event.false_fact),
        right=event.slots[slot].shown[register],
        wrong=wrong.shown[register],
    )


def shortened(draft: Draft, words: int) -> Draft:
    """The first paragraphs, at least `words` words of them."""
    kept: list[list[Sentence]] = []
    written = 0
    for paragraph in draft.paragraphs:
        if written >= words:
            break
        kept.append(paragraph)
        written += sum(sentence.text.count(" ") + 1 for sentence in paragraph)
    return Draft(draft.title, kept)
