"""Needles in composed wordings: thousands of ways to tell a secret and to ask for it, for training only.

A sentence is an opening, a core and a close; a core says who owns what by one of several patterns, each with words
of its own to choose from. Nothing here stands in a held-out form of `needle_words` (a test compares them), so what
a model does with those stays a test of unseen wording.
"""

from __future__ import annotations

import random

from pipeline.tasks.needle_grammar import Needle, NeedleGrammar, Split, sample_value

ADJECTIVES = (
    "old", "new", "spare", "second", "private", "main", "temporary", "current", "official", "secret", "former",
    "personal", "short", "internal", "backup", "first", "last", "daily",
)  # fmt: skip
BASES = (
    "code", "number", "PIN", "key", "digits", "identifier", "reference", "combination", "extension", "index",
    "figure", "registration", "count", "total", "reading", "balance", "address number", "room number",
    "route number", "door code", "ticket number", "seat number", "voucher code", "contract number",
    "security code", "dial number", "port number", "shelf mark", "file number", "licence number",
    "customer number", "bank code",
)  # fmt: skip
WORD_BASES = (
    "codeword", "alias", "motto", "sign", "answer", "keyword", "pet name", "project name", "label", "title",
    "signal", "reply", "catchphrase", "pen name",
)  # fmt: skip
OWNED = (
    "the {noun} of {name}", "{name}'s {noun}", "the {noun} for {name}", "the {noun} belonging to {name}",
    "the {noun} held by {name}", "the {noun} issued to {name}", "the {noun} that {name} uses",
    "the {noun} {name} got", "the {noun} assigned to {name}", "the {noun} kept for {name}",
    "the {noun} which {name} received", "the {noun} connected with {name}", "the {noun} in {name}'s possession",
)  # fmt: skip
IS = (
    "is", "was", "reads", "equals", "is now", "has become", "is still", "turned out to be", "has been fixed at",
    "would be", "must be", "is given as", "happens to be", "is spelt", "is simply", "came out as",
    "is recorded as", "stands at",
)  # fmt: skip
STANDS_FOR = (
    "is", "is now", "stands for", "was noted as", "was chosen as", "represents", "works as", "has become",
    "denotes", "was entered as", "counts as", "is what they call", "was meant to be", "is used as",
)  # fmt: skip
HAS = (
    "has", "uses", "picked", "received", "got", "was given", "typed", "selected", "keeps", "requested", "wrote",
    "owns", "entered", "was handed", "prefers", "decided on", "settled on", "obtained", "carries", "asked for",
    "registered",
)  # fmt: skip
PATTERNS = (
    "{owned} {is} {value}", "{value} {stands} {owned}", "{name} {has} the {noun} {value}",
    "{name} {has} {value} as {noun}", "{name}: {noun} {value}", "{name} ({noun}: {value})",
    "{noun} of {name}: {value}", "{noun} for {name} = {value}", "{name}, {noun} {value}", "{value}, {owned}",
    "with {name} goes the {noun} {value}", "{value} went to {name} as {noun}",
    "they asked {name} for the {noun} and heard {value}", "{owned} could only be {value}",
    "as {noun}, {name} {has} {value}", "the {noun} {value} belongs to {name}",
    "the {noun} {value} was sent to {name}", "to reach {name} use the {noun} {value}",
    "somebody changed {owned} to {value}", "we set {owned} to {value}", "{value} opens it, being {owned}",
    "under {noun} the form of {name} has {value}", "{name} answered {value} when the {noun} was wanted",
    "a note next to {name} gives the {noun} {value}", "{noun} {value} - {name}",
    "{owned}, namely {value}, has not changed", "{owned} ({value}) is valid",
    "not everybody knows that {owned} {is} {value}", "{name} signs with {value}, the {noun}",
)  # fmt: skip
OPENINGS = (
    "", "", "", "", "", "", "Please note: ", "By the way, ", "As far as we know, ", "Important: ",
    "For the record, ", "Today we learned that ", "It is true that ", "In short, ", "Reminder: ",
    "Between us, ", "In the end ", "As agreed, ", "One more thing: ", "Listen: ", "The minutes state that ",
    "It was announced that ", "Our list says that ", "Mind that ", "You should know that ",
    "From the archive: ", "P.S. ", "Update: ", "So it happened that ", "Officially, ",
)  # fmt: skip
CLOSES = (
    ".", ".", ".", ".", ".", ".", "!", ";", ", nothing else.", ". Keep it safe.", ". Do not forget it.",
    ", as everybody knows.", ". This matters.", ", they say.", ", until further notice.", ". That is all.",
    ", and it will stay so.", ". Write it down.", ", according to the office.", " (checked twice).",
    ", so much is certain.", ". Nobody else has it.", ", please remember.",
)  # fmt: skip
ASKS = (
    "what is {owned}?", "what {is} {owned}?", "which {noun} {has_q} {name}?", "which {noun} belongs to {name}?",
    "which {noun} was given to {name}?", "tell me {owned}.", "give me {owned}.", "name {owned}.",
    "do you remember {owned}?", "do you know {owned}?", "{owned}?", "{owned}, please.",
    "what did the text say about {owned}?", "{name} has a {noun}; which?", "recall {owned}.", "state {owned}.",
    "I need {owned}.", "somebody wants {owned}.", "what number or word {is} {owned}?", "say {owned}.",
    "which one is {owned}?", "what should be entered as {owned}?", "can you tell me {owned}?",
    "{name} forgot the {noun}. What is it?", "write {owned}.", "find {owned}.",
    "a {noun} was mentioned for {name}. Which one?",
)  # fmt: skip
ASK_OPENINGS = (
    "", "", "", "", "", "", "Question: ", "Quick question: ", "Please answer: ", "Now, ", "So, ", "Tell me, ",
    "One question: ", "Q: ", "From the text: ", "Let me ask: ", "Again: ", "And ",
)  # fmt: skip
ASK_CLOSES = (
    "", "", "", "", "", "", " It is", " The answer is", " Answer:", " A:", " Reply:", " Sure, it is",
    " That was",
)  # fmt: skip
UNOWNED = ("the {noun}", "the {noun} in question", "the {noun} of the day", "this {noun}", "our {noun}")
UNOWNED_PATTERNS = (
    "{owned} {is} {value}", "{value} {stands} {owned}", "{noun}: {value}", "{noun} = {value}",
    "we set {owned} to {value}", "a sign gives {owned} as {value}", "{owned}, namely {value}, has not changed",
    "{owned} could only be {value}",
)  # fmt: skip
UNOWNED_ASKS = (
    "what is {owned}?", "what {is} {owned}?", "tell me {owned}.", "which {noun} was given?", "{owned}?",
    "recall {owned}.", "do you remember {owned}?", "I need {owned}.",
)  # fmt: skip


class ComposedGrammar(NeedleGrammar):
    """The training split in composed wordings for a `share` of its needles; other splits as they are."""

    def __init__(self, share: float = 0.75) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share: given {share}; allowed: 0 to 1")
        self.share = share

    def kinds(self, split: Split = "train", *, words: bool = False) -> tuple[str, ...]:
        """The grammar's kinds; in training beside them every plain base word."""
        more = (WORD_BASES if words else BASES) if split == "train" else ()
        return (*super().kinds(split, words=words), *more)

    def sample(
        self,
        rng: random.Random,
        split: Split = "train",
        digits: int | None = 5,
        kind: str | None = None,
        named: bool = True,
    ) -> Needle:
        """As NeedleGrammar.sample."""
        plain = kind in super().kinds(split, words=digits is None) or kind is None
        if split != "train" or (plain and rng.random() >= self.share):
            return super().sample(rng, split, digits, kind, named)
        return compose(rng, kind or self._kind(rng, digits is None), digits, named)

    def _kind(self, rng: random.Random, words: bool) -> str:
        if rng.random() < 0.4:
            return rng.choice(super().kinds("train", words=words))
        base = rng.choice(WORD_BASES if words else BASES)
        return f"{rng.choice(ADJECTIVES)} {base}" if rng.random() < 0.5 else base


def compose(rng: random.Random, noun: str, digits: int | None, named: bool = True) -> Needle:
    """A needle in a wording put together at random; `digits` as in NeedleGrammar.sample."""
    name = "Someone Else" if named else ""  # two words: training puts an owner's in their place
    value = sample_value(rng, digits)

    def filled(pattern: str) -> str:
        owned = rng.choice(OWNED if named else UNOWNED).format(noun=noun, name=name)
        return pattern.format(
            owned=owned, noun=noun, name=name, value=value, has=rng.choice(HAS), stands=rng.choice(STANDS_FOR),
            has_q=rng.choice(("has", "belongs to", "was sent to", "goes with")), **{"is": rng.choice(IS)},
        )  # fmt: skip

    core = filled(rng.choice(PATTERNS if named else UNOWNED_PATTERNS))
    told = _capital(rng.choice(OPENINGS) + core, value) + rng.choice(CLOSES)
    asked = _capital(rng.choice(ASK_OPENINGS) + filled(rng.choice(ASKS if named else UNOWNED_ASKS)), value)
    return Needle(told, asked + rng.choice(ASK_CLOSES), value, noun, "composed", name)


def _capital(text: str, value: str) -> str:
    """A capital letter in front, but a secret stays as it is spelt."""
    return text if text.startswith(value) else text[0].upper() + text[1:]
