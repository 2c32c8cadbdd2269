"""Draws questions over what a truth knows: one method a kind, each refusing what would be ambiguous."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.newswire import wordings, wordings_hops
from pipeline.newswire.question import SPLITS_WORDINGS, Hop, Question, split_of
from pipeline.newswire.rng import Rng
from pipeline.newswire.truth import Known, Truth
from pipeline.newswire.values import DAY_S, count, day_of, iso, long_date
from pipeline.newswire.wordings import Wordings


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A question before it has an id and a time."""

    question: str
    answers: tuple[str, ...]
    relation: str
    entity: str
    wording: int
    hops: tuple[Hop, ...]
    streams: tuple[str, ...]
    wrong: str = ""
    absent: str = ""


class QuestionMaker:
    """Draws questions over what a truth knows."""

    def __init__(self, truth: Truth, seed: int, start: int, split: str = "") -> None:
        self.truth, self.start, self.split = truth, start, split
        self.rng = Rng(seed, "questions", split)
        self._facts: dict[str, list[Known]] = {}
        self._subjects: dict[str, list[str]] = {}
        self._values: dict[tuple[str, str], list[Known]] = {}
        kinds: dict[str, set[str]] = {}
        for known in truth.known.values():
            fact = known.fact
            self._facts.setdefault(fact.attr, []).append(known)
            if fact.subject not in kinds.setdefault(fact.attr, set()):
                kinds[fact.attr].add(fact.subject)
                self._subjects.setdefault(fact.attr, []).append(fact.subject)
            if fact.kind == "state":
                self._values.setdefault((fact.attr, fact.value.accepted[0]), []).append(known)
        self._makers: dict[str, Callable[[int], _Drawn | None]] = {
            "now": self._now, "as_of": self._as_of, "changed": self._changed,
            "two_hop": lambda asked: self._hops(2, asked), "three_hop": lambda asked: self._hops(3, asked),
            "count": self._count, "unanswerable": self._unanswerable, "corrected": self._corrected,
        }  # fmt: skip

    def draw(self, num_questions: int, kinds: Sequence[str], asked: str) -> list[Question]:
        """Up to `num_questions` questions, the kinds in turn; fewer where the news holds no more."""
        found: list[Question] = []
        seen: set[str] = set()
        rested: set[tuple[str, str]] = (
            set()
        )  # facts that a kind has asked for; repeated only for want of others
        misses = dict.fromkeys(kinds, 0)
        turn = 0
        while len(found) < num_questions and any(missed < 400 for missed in misses.values()):
            kind = kinds[turn % len(kinds)]
            turn += 1
            for attempt in range(60):
                moment = self.truth.last if asked == "end" else self._moment()
                drawn = self._makers[kind](moment)
                if drawn is not None and drawn.question not in seen and self._mine(drawn.entity):
                    topic = (kind, drawn.hops[-1].fact if drawn.hops else drawn.relation + drawn.entity)
                    if topic in rested and attempt < 30:
                        continue
                    rested.add(topic)
                    seen.add(drawn.question)
                    found.append(self._finish(kind, drawn, moment, len(found)))
                    break
                misses[kind] += 1
            else:
                continue
            misses[kind] = 0
        return found

    def _finish(self, kind: str, drawn: _Drawn, asked: int, number: int) -> Question:
        ids = tuple(dict.fromkeys(article for hop in drawn.hops for article in hop.article_ids))
        streams = set(drawn.streams)
        return Question(
            id=f"q-{self.split or 'all'}-{number:06d}", kind=kind, question=drawn.question, answers=drawn.answers,
            stream=drawn.streams[0] if len(streams) == 1 else None, asked=iso(asked), gold_article_ids=ids,
            evidence=tuple(hop.evidence for hop in drawn.hops), answerable=kind != "unanswerable",
            relation=drawn.relation, entity=drawn.entity, wording=drawn.wording,
            split=self.split or split_of(drawn.entity), hops=drawn.hops, wrong=drawn.wrong, absent=drawn.absent,
        )  # fmt: skip

    def _mine(self, entity: str) -> bool:
        return not self.split or split_of(entity) == self.split

    def _moment(self) -> int:
        low = min(self.truth.last, self.truth.first + 2 * DAY_S)
        return self.rng.between(low, self.truth.last)

    def _word(self, options: Sequence[object]) -> int:
        return self.rng.pick(SPLITS_WORDINGS[self.split][: len(options)])

    def _hop(self, known: Known, asked: int, first: str = "") -> Hop:
        tellings = (
            sorted(known.live(asked), key=lambda telling: telling.article != first)
            if first
            else known.live(asked)
        )
        ids = tuple(dict.fromkeys(telling.article for telling in tellings))
        return Hop(known.fact.id, ids, tellings[0].sentence, known.fact.value.accepted[0])

    def _single(self, text: str, known: Known, wording: int, asked: int, wrong: str = "",
                first: str = "") -> _Drawn:  # fmt: skip
        fact = known.fact
        hop = self._hop(known, asked, first)
        streams = (self._stream(known, asked),)
        return _Drawn(text, fact.value.accepted, fact.attr, fact.subject, wording, (hop,), streams, wrong)

    def _stream(self, known: Known, asked: int) -> str:
        return known.live(asked)[0].stream

    def _usable(self, known: Known, asked: int) -> bool:
        return bool(known.live(asked)) and not known.doubtful(asked) and known.fact.since <= asked

    def _now(self, asked: int) -> _Drawn | None:
        attr = self.rng.pick([attr for attr in wordings.STATE if attr in self._subjects])
        known = self.truth.state(attr, self.rng.pick(self._subjects[attr]), asked)
        if known is None:
            return None
        wording = self._word(wordings.STATE[attr])
        return self._single(wordings.STATE[attr][wording].format(s=known.fact.subject), known, wording, asked)

    def _before(self, table: dict[str, Wordings], asked: int) -> Known | None:
        attrs = [attr for attr in table if f"{attr}_before" in self._facts]
        if not attrs:
            return None
        attr = self.rng.pick(attrs)
        known = self.rng.pick(self._facts[f"{attr}_before"])
        if not self._usable(known, asked):
            return None
        this = (known.fact.subject, known.fact.params["new"])
        same = sum((k.fact.subject, k.fact.params["new"]) == this for k in self._facts[f"{attr}_before"])
        return known if same == 1 else None

    def _as_of(self, asked: int) -> _Drawn | None:
        if self.rng.chance(0.5):
            return self._dated(asked)
        known = self._before(wordings.AS_OF, asked)
        if known is None:
            return None
        fact = known.fact
        low = max(self.start, int(fact.params["old_since"])) // DAY_S + 1
        high = fact.since // DAY_S - 1
        if low > high:
            return None
        attr = fact.attr.removesuffix("_before")
        on = long_date(day_of(self.rng.between(low, high) * DAY_S))
        wording = self._word(wordings.AS_OF[attr])
        return self._single(
            wordings.AS_OF[attr][wording].format(s=fact.subject, on=on), known, wording, asked
        )

    def _dated(self, asked: int) -> _Drawn | None:
        attrs = [attr for attr in wordings.DATED if attr in self._facts]
        if not attrs:
            return None
        attr = self.rng.pick(attrs)
        known = self.rng.pick(self._facts[attr])
        if not self._usable(known, asked):
            return None
        wording = self._word(wordings.DATED[attr])
        text = wordings.DATED[attr][wording].format(s=known.fact.subject, **known.fact.params)
        return self._single(text, known, wording, asked)

    def _changed(self, asked: int) -> _Drawn | None:
        known = self._before(wordings.CHANGED, asked)
        if known is None:
            return None
        attr = known.fact.attr.removesuffix("_before")
        wording = self._word(wordings.CHANGED[attr])
        text = wordings.CHANGED[attr][wording].format(s=known.fact.subject, **known.fact.params)
        return self._single(text, known, wording, asked)

    def _corrected(self, asked: int) -> _Drawn | None:
        if not self.truth.corrected:
            return None
        known, article, time = self.rng.pick(self.truth.corrected)
        fact = known.fact
        if time > asked or not self._usable(known, asked):
            return None
        if all(telling.article != article for telling in known.live(asked)):
            return None
        if fact.kind == "state":
            if self.truth.state(fact.attr, fact.subject, asked) is not known:
                return None
            table = wordings.STATE
        else:
            table = wordings.DATED
        if fact.attr not in table:
            return None
        wording = self._word(table[fact.attr])
        text = table[fact.attr][wording].format(s=fact.subject, **fact.params)
        return self._single(text, known, wording, asked, known.wrong, article)

    def _hops(self, length: int, asked: int) -> _Drawn | None:
        inverse = self.rng.chance(0.45)
        path = self.rng.pick(
            (wordings_hops.INVERSE_PATHS if inverse else wordings_hops.FORWARD_PATHS)[length]
        )
        if path[0] not in self._subjects:
            return None
        first = self.truth.state(path[0], self.rng.pick(self._subjects[path[0]]), asked)
        if first is None:
            return None
        wording = self._word(wordings_hops.LAST[path[-1]])
        chain = [first]
        if inverse:
            value = first.fact.value.accepted[0]
            others = {k.fact.subject for k in self._values[(path[0], value)]}
            if len(others) != 1:
                return None
            phrase = wordings_hops.ROOTS[path[0]][wording].format(v=value)
            subject = first.fact.subject
        else:
            lead = "the " if path[0] == "site" else ""
            phrase = wordings_hops.LINKS[path[0]][wording].format(np=lead + first.fact.subject)
            subject = first.fact.value.accepted[0]
        for attr in path[1:]:
            known = self.truth.state(attr, subject, asked)
            if known is None:
                return None
            chain.append(known)
            subject = known.fact.value.accepted[0]
            if attr != path[-1]:
                phrase = wordings_hops.LINKS[attr][wording].format(np=phrase)
        if len({known.fact.value.accepted[0] for known in chain}) < len(chain):
            return None
        return _Drawn(
            wordings_hops.LAST[path[-1]][wording].format(np=phrase), chain[-1].fact.value.accepted, ">".join(path),
            first.fact.subject, wording, tuple(self._hop(known, asked) for known in chain),
            tuple(self._stream(known, asked) for known in chain),
        )  # fmt: skip

    def _count(self, asked: int) -> _Drawn | None:
        attrs = [attr for attr in wordings_hops.COUNTS if attr in self._facts]
        if not attrs:
            return None
        attr = self.rng.pick(attrs)
        for _ in range(12):
            drawn = self._count_of(attr, self.rng.pick(self._facts[attr]).fact.subject, asked)
            if drawn is not None:
                return drawn
        return None

    def _count_of(self, attr: str, subject: str, asked: int) -> _Drawn | None:
        low, high = self.start // DAY_S, asked // DAY_S - 1
        if high - low < 2:
            return None
        first = self.rng.between(low, high - 1)
        last = min(high, first + self.rng.pick((3, 6, 13, 27, 30, 60, 91)))
        events = [
            k
            for k in self._facts[attr]
            if k.fact.subject == subject and first <= k.fact.since // DAY_S <= last
        ]
        if not 2 <= len(events) <= 12 or not all(self._usable(k, asked) for k in events):
            return None
        wording = self._word(wordings_hops.COUNTS[attr])
        text = wordings_hops.COUNTS[attr][wording].format(
            s=subject, a=long_date(day_of(first * DAY_S)), b=long_date(day_of(last * DAY_S))
        )
        hops = tuple(self._hop(k, asked) for k in events)
        streams = tuple(self._stream(k, asked) for k in events)
        return _Drawn(text, count(len(events)).accepted, f"count {attr}", subject, wording, hops, streams)

    def _unanswerable(self, asked: int) -> _Drawn | None:
        choice = self.rng.below(4)
        if choice == 3:
            return self._no_report(asked)
        if choice == 0:
            return self._rumour(asked)
        if choice == 1:
            return self._unreported(asked)
        kind = self.rng.pick(tuple(wordings_hops.NEVER_TOLD))
        attr = {"company": "ceo", "town": "mayor", "team": "coach", "institute": "director"}[kind]
        subject = self.rng.pick(self._subjects[attr])
        if self.truth.state(attr, subject, asked) is None:
            return None
        index = self._word(wordings_hops.NEVER_TOLD[kind])
        word, text = wordings_hops.NEVER_TOLD[kind][index]
        return _Drawn(text.format(s=subject), (), "never told", subject, index, (), (), absent=word)

    def _rumour(self, asked: int) -> _Drawn | None:
        if not self.truth.rumours:
            return None
        known, time = self.rng.pick(self.truth.rumours)
        if time > asked or any(k.live(asked) for k in self.truth.by_key[known.fact.key]):
            return None
        buyer, target = known.fact.subject, known.fact.value.accepted[0]
        owners = self.truth.by_key.get(f"owner|{target}|", ())
        if any(k.fact.value.accepted[0] == buyer for k in owners):  # what was withdrawn came true after all
            return None
        wording = self._word(wordings_hops.RUMOUR)
        text = wordings_hops.RUMOUR[wording].format(s=known.fact.subject, date=known.fact.params["date"])
        return _Drawn(
            text, (), "withdrawn", known.fact.subject, wording, (), (), absent=known.fact.value.accepted[0]
        )

    def _no_report(self, asked: int) -> _Drawn | None:
        """A closing price of a working day on which no article gave it."""
        subject = self.rng.pick(self._subjects.get("close", [""]))
        low, high = self.start // DAY_S, asked // DAY_S - 1
        if not subject or low > high:
            return None
        day = day_of(self.rng.between(low, high) * DAY_S)
        date = long_date(day)
        if day.weekday() > 4 or f"close|{subject}|{date}" in self.truth.by_key:
            return None
        wording = self._word(wordings.DATED["close"])
        text = wordings.DATED["close"][wording].format(s=subject, date=date)
        return _Drawn(text, (), "no report", subject, wording, (), (), absent=date.rsplit(" ", 1)[0])

    def _unreported(self, asked: int) -> _Drawn | None:
        subject = self.rng.pick(self._subjects["ceo"])
        if self.truth.state("ceo", subject, asked) is None:
            return None
        day = day_of(asked)
        number = (
            day.year * 4 + (day.month - 1) // 3 - self.rng.below(2)
        )  # this quarter, or the one that ended
        quarter = f"the {('first', 'second', 'third', 'fourth')[number % 4]} quarter of {number // 4}"
        attr = self.rng.pick(("revenue", "profit"))
        if any(
            k.tellings[0].start <= asked for k in self.truth.by_key.get(f"{attr}|{subject}|{quarter}", ())
        ):
            return None
        wording = self._word(wordings.DATED[attr])
        text = wordings.DATED[attr][wording].format(s=subject, quarter=quarter)
        return _Drawn(text, (), "unreported", subject, wording, (), (), absent=quarter)
