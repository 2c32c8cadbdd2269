"""The near-duplicate index as an ingester sees it: divided by stream over one or more actors, asked as one.

Duplicates are sought within a stream, so the keeper of a stream alone can judge its articles, and the verdicts are
those of one index: what must be told to every keeper is told (a withdrawal; an article that may have been in
another stream before), and an article that changed its stream is an update of itself, wherever it was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from actors.near_duplicates import Asker, Verdicts, near_duplicates_name
from actors.remote import Outage, call
from actors.store_client import StoreClient
from pipeline.near_duplicates import Fingerprint, Match
from pipeline.placement import shard_of

_JUDGE_TIMEOUT_S = 60.0
_ATTEMPTS = 3
_REMEMBERED = 65_536
"""Accepted articles whose stream is known here: far more than are under way, later ones are known to the store."""

Entry = Fingerprint | str
Persist = Callable[[Callable[[], Any], str], Any]
_Part = tuple[list[int], list[Entry]]
"""For one keeper: the place of each entry in the answer, and the entries in order."""


class Keepers:
    """`count` keepers of one store's index. One thread judges; `adopt` may be called by another."""

    def __init__(
        self,
        client: StoreClient,
        count: int,
        asker: Asker,
        persist: Persist,
        under_way: Callable[[], list[Entry]],
    ) -> None:
        """`persist(attempt, what)` retries outages; `under_way()` are the accepted articles and the withdrawals
        that no shard has yet, in order: a keeper that was made anew is told them first."""
        self._client = client
        self._count = count
        self._asker = asker
        self._persist = persist
        self._under_way = under_way
        self._generations: list[int | None] = [None] * count
        self._placed: OrderedDict[str, int] = OrderedDict()
        self._homes: dict[str, int] = {}
        """The keeper of a stream: an article's is asked for three times, and streams are few."""
        self._judged: list[Entry] = []
        """Accepted in earlier runs of the call at hand: not under way yet."""

    def judge(self, entries: Sequence[Entry]) -> Verdicts:
        """A verdict for each fingerprint, None for the id of a withdrawn article; in order."""
        matches: list[Match | None] = [None] * len(entries)
        self._judged = []
        for begin, end in self._runs(entries):
            parts = self._parts(entries, begin, end)
            self._persist(partial(self._ask, parts, matches), "the near-duplicate index")
            for entry, match in zip(entries[begin:end], matches[begin:end], strict=True):
                self._note(entry, match)
                if match is None:
                    self._judged.append(entry)
        return Verdicts(0, matches)

    def adopt(self, prints: Sequence[Fingerprint]) -> list[Match | None]:
        """For copies that lost their original, in order: what each repeats now, or None: it stands."""
        matches: list[Match | None] = [None] * len(prints)
        parts: dict[int, tuple[list[int], list[Fingerprint]]] = {}
        for at, one in enumerate(prints):
            places, mine = parts.setdefault(self._home(one), ([], []))
            places.append(at)
            mine.append(one)
        try:
            refs = {
                keeper: self._actor(keeper).adopt.remote(mine, self._asker)
                for keeper, (_, mine) in parts.items()
            }
            for keeper, ref in refs.items():
                for at, match in zip(parts[keeper][0], call(ref, _JUDGE_TIMEOUT_S), strict=True):
                    matches[at] = match
        except Outage:
            self._client.forget_handles()
            raise
        return matches

    def _home(self, one: Fingerprint) -> int:
        home = self._homes.get(one.stream)
        if home is None:
            if len(self._homes) >= _REMEMBERED:
                self._homes.clear()
            home = self._homes[one.stream] = shard_of(one.stream, self._count)
        return home

    def _actor(self, keeper: int) -> Any:
        return self._client.handle(near_duplicates_name(self._client.name, keeper))

    def _runs(self, entries: Sequence[Entry]) -> Iterator[tuple[int, int]]:
        """Parts of the entries in which no article is in the streams of two keepers."""
        begin, homes = 0, dict[str, int]()
        if self._count > 1:
            for at, entry in enumerate(entries):
                if isinstance(entry, str):
                    continue
                home = self._home(entry)
                if homes.setdefault(entry.article_id, home) != home:
                    yield begin, at
                    begin, homes = at, {entry.article_id: home}
        yield begin, len(entries)

    def _parts(self, entries: Sequence[Entry], begin: int, end: int) -> dict[int, _Part]:
        parts: dict[int, _Part] = {}

        def tell(keeper: int, at: int, entry: Entry) -> None:
            places, mine = parts.setdefault(keeper, ([], []))
            places.append(at)
            mine.append(entry)

        for at in range(begin, end):
            entry = entries[at]
            if isinstance(entry, str):
                for keeper in range(self._count):
                    tell(keeper, at, entry)
                continue
            home = self._home(entry)
            if self._placed.get(entry.article_id, home) != home:
                entry = entry._replace(known=True)
            if entry.known:
                for keeper in range(self._count):
                    if keeper != home:
                        tell(keeper, at, entry.article_id)
            tell(home, at, entry)
        return parts

    def _note(self, entry: Entry, match: Match | None) -> None:
        if self._count == 1:
            return
        if isinstance(entry, str):
            self._placed.pop(entry, None)
        elif match is None:
            self._placed[entry.article_id] = self._home(entry)
            self._placed.move_to_end(entry.article_id)
            if len(self._placed) > _REMEMBERED:
                self._placed.popitem(last=False)

    def _ask(self, parts: dict[int, _Part], matches: list[Match | None]) -> None:
        """Ask every keeper of `parts`, and take out those that answered: another try asks the others alone."""
        for _ in range(_ATTEMPTS):
            outage: BaseException | None = None
            refs = {
                keeper: self._actor(keeper).judge.remote(mine, self._generations[keeper], self._asker)
                for keeper, (_, mine) in parts.items()
            }
            for keeper, ref in refs.items():
                try:
                    verdicts: Verdicts = call(ref, _JUDGE_TIMEOUT_S)
                    if verdicts.matches is None:
                        self._remind(keeper)
                        continue
                except Outage as error:
                    self._client.forget_handles()
                    outage = error
                    continue
                places, mine = parts.pop(keeper)
                for at, entry, match in zip(places, mine, verdicts.matches, strict=True):
                    if not isinstance(entry, str):
                        matches[at] = match
            if outage is not None:
                raise outage
            if not parts:
                return
        raise ConnectionError("the near-duplicate index keeps restarting")

    def _remind(self, keeper: int) -> None:
        """Tell a keeper that was made anew what the shards could not tell it."""
        under_way = [*self._under_way(), *self._judged]
        known = [one for one in under_way if isinstance(one, str) or self._home(one) == keeper]
        told = self._actor(keeper).remember.remote(known, self._asker)
        self._generations[keeper] = call(told, _JUDGE_TIMEOUT_S)
