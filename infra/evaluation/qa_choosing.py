"""What learned and staged methods give to read: policy, supervised, router, cascade; and LongRAG's long units.

All choose among the candidates of one pool: the texts that words and meaning find together (`hybrid_pool`), cut
into units. So they differ in choosing alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from infra.evaluation.hybrid_pool import HybridPool
from infra.evaluation.qa_sources import QaSource
from models.retriever.network import PolicyNetwork
from models.retriever.pair_pins import check_pins, reads_by_decoder
from models.retriever.pair_reader import load_pair_reader, pair_folder_for
from models.retriever.router import router_scores
from models.retriever.selecting import fill, select
from models.retriever.storage import SHIPPED, load_policy
from models.retriever.table import ALL_FEATURES, TableBatch
from pipeline.candidate_features import FEATURES, Encode, PairColumns
from pipeline.errors import UsageError
from pipeline.session.prompts import Sentence, article_head
from pipeline.tasks.cached import offered
from pipeline.tasks.choices import cut, material_of
from pipeline.tasks.contexts import CountTokens
from pipeline.tasks.qa import Question, SourceText

LEARNED = ("policy", "supervised", "router")
LONG_UNIT_TOKENS = 4000
"""LongRAG's units are pages of at most this many tokens (arXiv 2406.15319)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceSettings:
    """How candidates are made and chosen from."""

    method: str
    unit: str
    budget: int
    span_tokens: int
    passages: int
    reach: int
    stop_bias: float
    policy: Path | None
    cache: int = 0
    device: str = "cpu"
    """Where a decoder in the policy's pair reader reads; MiniLM alone reads on the CPU, as sessions have it."""


class ChoosingMethod:
    """`context(question)`: what one of `policy`, `supervised`, `router`, `cascade` gives to read."""

    def __init__(
        self, source: QaSource, settings: ChoiceSettings, encode: Encode, count: CountTokens,
        words: Tensor | None = None,
    ) -> None:  # fmt: skip
        """`words`: the input embedding of the model that reads, on the settings' device."""
        self._settings, self._encode, self._count = settings, encode, count
        self._newest = source.newest
        if settings.cache and (self._newest is None or settings.unit != "sentence"):
            raise UsageError(
                f"--cache {settings.cache}: a session's cache offers sentences of dated news; give questions of "
                "RealTimeQA or of a newswire, and --unit sentence"
            )
        self._pool = HybridPool(source, encode, settings.reach)
        self._network: PolicyNetwork | None = None
        self._pair: PairColumns | None = None
        self._about = "", ""
        self._candidates = 64
        self._words = False
        self._bias = settings.stop_bias
        if settings.method in LEARNED:
            self._network, about = open_policy(settings.policy)
            refuse_other_training(
                settings.method, str(about.get("algorithm", "")), settings.policy or SHIPPED
            )
            self._pair = pair_columns_of(settings.policy, self._network, about, settings.device, words)
            self._about = f"{settings.policy or SHIPPED}", str(about.get("embedder", "minilm"))
            self._candidates = int(about.get("candidates", 64))
            self._words = self._network.config.encoder != "vectors"
            self._bias = settings.stop_bias + float(about.get("stop_bias", 0.0))
            trained = about.get("unit", settings.unit)
            if trained != settings.unit:
                raise UsageError(
                    f"--unit {settings.unit}: the policy chooses by {trained}; give --unit {trained}, or train one"
                )

    def context(self, question: Question) -> tuple[Sentence, ...]:
        """The chosen sentences in reading order; nothing where nothing was found."""
        settings = self._settings
        texts = self._pool(question, settings.passages)
        if settings.cache and self._newest is not None:
            last = self._newest(question, settings.cache)
            choices = offered(question.text, texts, last, self._count)
        else:
            choices = cut(texts, settings.unit, self._count, settings.span_tokens)
        if not choices:
            return ()
        made, table, _ = material_of(
            question, choices, self._encode, self._count, most=self._candidates, with_words=self._words,
            pair=self._pair,
        )  # fmt: skip
        tables = TableBatch.stack([table])
        if self._network is not None and self._network.config.dim != tables.dim:
            name, embedder = self._about
            raise UsageError(
                f"--embedder: given one of vectors of {tables.dim}; the policy {name} was trained over those of "
                f"{embedder} ({self._network.config.dim}): give --embedder {embedder}"
            )
        if self._network is None:
            scores = tables.features[:, :, FEATURES.index("fused")]
            chosen = fill(tables, scores, settings.budget)[0]
        elif settings.method == "router":
            chosen = fill(tables, router_scores(self._network, tables), settings.budget)[0]
        else:
            chosen = select(self._network, tables, settings.budget, stop_bias=self._bias)[0]
        return made.chosen(chosen.picks or self._cheapest(tables))

    def _cheapest(self, tables: TableBatch) -> tuple[int, ...]:
        """Where nothing fits the budget, the best candidate by itself, as every other method does."""
        return (int(tables.features[0, tables.present[0], FEATURES.index("fused")].argmax()),)


def open_policy(folder: Path | None) -> tuple[PolicyNetwork, dict[str, Any]]:
    """The policy of a folder, else the shipped one; UsageError says what to do where there is none."""
    chosen = folder or (SHIPPED if SHIPPED.is_dir() else None)
    if chosen is None:
        raise UsageError(
            "no policy is shipped with this version; train one (dysra train-retriever) and give --policy FOLDER"
        )
    try:
        network, about = load_policy(chosen)
    except ValueError as error:
        raise UsageError(str(error)) from None
    known = network.config.feature_names
    if known and known not in (FEATURES, ALL_FEATURES):
        raise UsageError(
            f"{chosen}: trained on features {', '.join(known)}; "
            f"this version makes {', '.join(ALL_FEATURES)}: train it again"
        )
    return network, about


def refuse_other_training(method: str, algorithm: str, folder: Path) -> None:
    """UsageError where `method` says otherwise of a policy than its own record does."""
    rewarded = algorithm in ("reinforce", "plain_ppo", "ppo")
    if method == "router" and algorithm not in ("", "router"):
        raise UsageError(
            f"--method router: {folder} was trained by {algorithm}; give a folder trained as a router, or --method "
            f"{'policy' if rewarded else 'supervised'}"
        )
    if method != "router" and algorithm == "router":
        raise UsageError(f"--method {method}: {folder} was trained as a router; give --method router")
    if method == "supervised" and rewarded:
        raise UsageError(
            f"--method supervised: {folder} was trained by {algorithm}; give --method policy, or --policy FOLDER "
            "of one trained by labels alone"
        )


def pair_columns_of(
    folder: Path | None, network: PolicyNetwork, about: Mapping[str, Any], device: str = "cpu",
    words: Tensor | None = None,
) -> PairColumns | None:  # fmt: skip
    """What makes the pair features that the policy of a folder (else the shipped one) knows; None without them.

    `device` and `words` (an input embedding on it): for a decoder in the pair reader. UsageError where there is no
    pair reader, or another one than `about` notes.
    """
    policy = folder or SHIPPED
    try:
        place = pair_folder_for(policy, network.config.num_features)
        check_pins(about, place, policy)
        if place is None:
            return None
        if not reads_by_decoder(place):
            return load_pair_reader(place)[0].features
        return load_pair_reader(place, device, words=words)[0].features
    except ValueError as error:
        raise UsageError(str(error)) from None


def long_units(
    question: Question, source: QaSource, pool: Callable[[Question, int], list[SourceText]],
    budget: int, count: CountTokens,
) -> tuple[Sentence, ...]:  # fmt: skip
    """LongRAG: whole pages (passages of one title, in order), the page of the best passage first.

    A page's score is its best passage's, as in the paper; pages are cut at LONG_UNIT_TOKENS, and added while they
    fit the budget, at least one.
    """
    pages: dict[str, list[SourceText]] = {}
    for text in source.texts.values():
        pages.setdefault(text.title, []).append(text)
    chosen: list[Sentence] = []
    left = budget
    for title in dict.fromkeys(text.title for text in pool(question, 20)):
        unit, size = _page(pages[title], count)
        if chosen and size > left:
            break
        chosen += unit
        left -= size
        if left <= 0:
            break
    return tuple(sorted(chosen, key=lambda sentence: sentence[1]))


def _page(texts: Sequence[SourceText], count: CountTokens) -> tuple[list[Sentence], int]:
    unit: list[Sentence] = []
    size = count(article_head(texts[0].title, texts[0].date)) + 2
    for text in texts:
        cost = count(f" {text.text}")
        if unit and size + cost > LONG_UNIT_TOKENS:
            break
        unit.append((text.title, text.date, text.text))
        size += cost
    return unit, size
