"""What a policy chooses from: the candidates of a question as plain arrays, and batches of them.

`K` candidates of one question, `D` the embedder's width, `F` features, `N` questions. Costs are the reader's
tokens: a candidate's own, and its text's head ("Title (date):"), paid once for each text that is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MAX_CANDIDATES = 64
GOLD, HOLDS = 2, 1
"""Labels: the candidate is what tells; it holds an answer string, but under another text."""

FEATURES = (
    "dense",  # cosine of the embedder
    "dense_shifted",  # minus the mean over the question's candidates, times 4
    "dense_rank",  # 1 / (1 + place)
    "bm25",  # over the best of the question's candidates
    "bm25_rank",
    "fused",  # reciprocal rank fusion of both and of the text's place, 1 at best
    "passage",  # 1 / (1 + place of the text in the search)
    "place",  # 1 / (1 + place in the text)
    "opens",  # first of its text
    "tokens",  # log2 / 8
    "overlap",  # weighted share of the question's words
    "title_overlap",
    "number_asked",  # the question wants a number or a date, and the candidate has one
    "name_asked",  # the question wants a name, and the candidate has one that the question lacks
    "neighbour",  # bm25 of the sentence before or after, over the best
)
"""What describes a candidate beside its vector, in this order; `pipeline/candidate_features.py` makes them."""

PAIR_FEATURES = (
    "pair",  # the pair reader's score over "none of them", by 8
    "pair_share",  # its probability among the candidates and "none of them"
    "pair_rank",  # 1 / (1 + place)
    "next",  # the same score with the best candidate already read, by 8; -1 where not asked
    "next_share",
    "enough",  # the probability that nothing more is needed beside the best candidate; one for all
)
"""What follows them where a pair reader has looked (`models/retriever/pair_reader.py`)."""

ALL_FEATURES = (*FEATURES, *PAIR_FEATURES)


def names_for(num_features: int) -> tuple[str, ...]:
    """The names of a table's features, where their number tells; else none."""
    return next((names for names in (FEATURES, ALL_FEATURES) if len(names) == num_features), ())


@dataclass(frozen=True, slots=True)
class CandidateTable:
    """The candidates of one question.

    `query` [D], `vectors` [K, D], `features` [K, F], `tokens` [K], `groups` [K] (which text each belongs to),
    `heads` [K] (tokens of that text's head), `labels` [K] (GOLD, HOLDS or 0; all 0 where unknown), `needs_all`:
    every GOLD candidate is needed to answer, else one is enough. `words` [1 + K, T]: hashed words of the question
    and of each candidate (0 is padding), for encoders that read words; empty where there are none.
    """

    query: Halves
    vectors: Halves
    features: Floats
    tokens: Ints
    groups: Ints
    heads: Ints
    labels: npt.NDArray[np.int8]
    needs_all: bool = False
    words: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def __post_init__(self) -> None:
        count = len(self.tokens)
        sizes = {
            name: len(getattr(self, name)) for name in ("vectors", "features", "groups", "heads", "labels")
        }
        if set(sizes.values()) - {count}:
            raise ValueError(f"tokens: given {count} candidates; {sizes} must all be equal to it")
        if count > MAX_CANDIDATES:
            raise ValueError(f"tokens: given {count} candidates; allowed: at most {MAX_CANDIDATES}")
        if count and (self.tokens < 1).any():
            raise ValueError("tokens: every candidate must cost at least 1 token")
        if self.words.size and len(self.words) != count + 1:
            raise ValueError(
                f"words: given {len(self.words)} rows; allowed: {count + 1}, the question's first"
            )


@dataclass(frozen=True, slots=True)
class TableBatch:
    """Tables of `N` questions, padded to the same K; `present` [N, K] tells candidates from padding."""

    query: Floats
    vectors: Halves
    features: Floats
    tokens: Ints
    groups: Ints
    heads: Ints
    labels: npt.NDArray[np.int8]
    present: Bools
    needs_all: Bools
    words: Ints

    def __len__(self) -> int:
        return len(self.query)

    @property
    def num_candidates(self) -> int:
        """K, padding included."""
        return int(self.tokens.shape[1])

    @property
    def num_features(self) -> int:
        """F."""
        return int(self.features.shape[2])

    @property
    def dim(self) -> int:
        """D."""
        return int(self.query.shape[1])

    def take(self, rows: Sequence[int] | Ints) -> TableBatch:
        """The tables of some rows, in the order given."""
        at = np.asarray(rows, np.int64)
        return TableBatch(**{name: getattr(self, name)[at] for name in self.__slots__})

    def seen_with(self, num_features: int) -> TableBatch:
        """The same tables for a network that knows the first `num_features` features only.

        ValueError where it knows more than these tables have: they were made without a pair reader then.
        """
        if num_features == self.num_features:
            return self
        if num_features > self.num_features:
            raise ValueError(
                f"features: the policy knows {num_features}, these tables have {self.num_features}; make them with "
                "a pair reader (its folder stands beside the policy, or is named by `session.pair_reader`)"
            )
        return replace(self, features=self.features[:, :, :num_features])

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Every array by its name, as `TableBatch(**arrays)` takes them."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def stack(cls, tables: Sequence[CandidateTable], num_candidates: int = 0) -> TableBatch:
        """Tables padded to `num_candidates` (0: to the longest). Groups are numbered from 0 in each question."""
        if not tables:
            raise ValueError("tables: given none; a batch needs at least one question")
        width = num_candidates or max(1, max(len(table.tokens) for table in tables))
        longest = max(len(table.tokens) for table in tables)
        if width < longest:
            raise ValueError(f"num_candidates: given {width}; a question has {longest} candidates")
        dim = len(tables[0].query)
        features = max(table.features.shape[1] for table in tables)
        num_words = max(table.words.shape[1] for table in tables)
        count = len(tables)
        made = cls(
            query=np.zeros((count, dim), np.float32),
            vectors=np.zeros((count, width, dim), np.float16),
            features=np.zeros((count, width, features), np.float32),
            tokens=np.zeros((count, width), np.int64),
            groups=np.zeros((count, width), np.int64),
            heads=np.zeros((count, width), np.int64),
            labels=np.zeros((count, width), np.int8),
            present=np.zeros((count, width), bool),
            needs_all=np.array([table.needs_all for table in tables], bool),
            words=np.zeros((count, width + 1, num_words), np.int64),
        )
        for at, table in enumerate(tables):
            size = len(table.tokens)
            made.query[at] = table.query
            made.present[at, :size] = True
            made.groups[at, :size] = np.unique(table.groups, return_inverse=True)[1] if size else 0
            for name in ("vectors", "features", "tokens", "heads", "labels"):
                getattr(made, name)[at, :size] = getattr(table, name)
            if table.words.size:
                made.words[at, : size + 1, : table.words.shape[1]] = table.words
        return made
