"""The learned policy as a session's chooser; it follows promotions by itself and falls back to hybrid ranking.

The pointer file (`champion.json`, written by `dysra models promote`) names the champion's folder. It is looked at
no more than every few seconds; a session keeps everything it has when the policy changes.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.formats import NewerFormat, check_format
from models.retriever.table import ALL_FEATURES, FEATURES
from models.retriever.trust_files import Trust, trust_beside
from pipeline.candidate_features import Unit, candidate_table, preselect
from pipeline.log import get_logger
from pipeline.session.apart import ApartChoice, Verify, choose_apart
from pipeline.session.chooser import Chooser, Embed, reading_order
from pipeline.session.known_vectors import KnownVectors
from pipeline.session.lazy_pair import LazyPair
from pipeline.session.sentences import Candidate

POLL_S = 5.0
TOGETHER = "together"


class PolicyChooser:
    """Chooses by the champion where there is one and its vectors can be made, else by `otherwise`.

    `folder` is a fixed policy's folder, or the pointer file. A policy that knows a pair reader's features brings it
    (`pair-reader` in its folder) or takes the shipped one; without `pair_reader` such a policy does not serve.
    `pair_base` finds the folder of the weights that a pair reader over a decoder was trained on (default: the
    project's own reader's), when one is first loaded; `pair_device` is where a decoder in it reads (MiniLM alone
    reads on the CPU), and `pair_words` the input embedding of the sessions' model there, which is not held twice.
    """

    def __init__(
        self,
        folder: Path,
        embed: Embed,
        otherwise: Chooser,
        *,
        pair_reader: bool = True,
        pair_base: Callable[[], Path] | None = None,
        pair_device: str = "cpu",
        pair_words: Any = None,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._embed, self._otherwise = folder, KnownVectors(embed), otherwise
        self._poll_s, self._clock = poll_s, clock
        self._stop_bias = self._next_bias = 0.0
        self._reading = self._next_reading = TOGETHER
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._folder: Path | None = None
        self._network: Any = None
        self._may_pair, self._pair_base = pair_reader, pair_base
        self._pair_device, self._pair_words = pair_device, pair_words
        self._pair: LazyPair | None = None
        self._most = 64
        self._told_of: Path | None = None
        self._told_newer = ""
        self._trust_of: Path | None = None
        self._trust = Trust()
        self._verify: Verify | None = None

    @property
    def serving(self) -> Path | None:
        """The folder of the policy that chooses now; None while `otherwise` does."""
        return self._folder

    @property
    def reading(self) -> str:
        """How what the serving policy chooses is read, as it was paid for and promoted: together or apart."""
        return self._reading if self._current()[0] is not None else TOGETHER

    def load_now(self) -> None:
        """Load policy and pair reader before the first question; ValueError says what cannot be had."""
        folder = self._named()
        if folder is None:
            raise ValueError(f"policy: {self._source} is not there")
        try:
            network, about, pair = self._opened(folder)
            if pair is not None:
                pair.load()
        except (OSError, RuntimeError) as error:
            raise ValueError(f"policy: {folder}: {error}") from None
        self._serve(folder, network, about, pair)
        self._looked = self._clock()

    def choose(self, question: str, candidates: Sequence[Candidate], budget: int) -> list[Candidate]:
        """The sentences to read, in reading order, of at most `budget` tokens with their heads."""
        found = self._table(question, candidates)
        if found is None:
            return self._otherwise.choose(question, candidates, budget)
        from models.retriever.selecting import select

        network, table, kept = found
        chosen = select(network, table, budget, stop_bias=self._stop_bias)[0]
        return reading_order([candidates[kept[pick]] for pick in chosen.picks])

    def choose_apart(
        self, question: str, candidates: Sequence[Candidate], budget: int, prompt_tokens: int, most: int
    ) -> ApartChoice:
        """At most `most` sentences, each read alone, of `budget` tokens with all prompts but the first."""
        found = self._table(question, candidates)
        if found is None:
            return choose_apart(self._otherwise, question, candidates, budget, prompt_tokens, most)
        from models.retriever.apart_costs import apart_tables
        from models.retriever.selecting import select

        network, table, kept = found
        trust, verify = self._trusting(network.config.num_features)
        costly = apart_tables(table, table.present, np.array([prompt_tokens], np.int64))
        room = budget + prompt_tokens
        chosen = select(network, costly, room, stop_bias=self._stop_bias, max_choices=most)[0]
        picks = chosen.picks
        return ApartChoice(tuple(candidates[kept[pick]] for pick in picks), picks, table, trust, verify)

    def _table(self, question: str, candidates: Sequence[Candidate]) -> tuple[Any, Any, list[int]] | None:
        """The policy that serves, the candidates as it sees them, and which they are; None where it cannot."""
        network, pair = self._current()
        if network is None or not candidates:
            return None
        from models.retriever.table import TableBatch

        units = [_unit(candidate) for candidate in candidates]
        kept = preselect(question, units, self._most)

        def encode(texts: Sequence[str]) -> Any:
            # Checked here, before the pair reader looks: what cannot be chosen from must not cost its seconds.
            made = self._embed(texts)
            if made is None:
                raise LookupError
            if made.shape[1] != network.config.dim:
                self._tell_once(made.shape[1], network.config.dim)
                raise LookupError
            return made

        try:
            table = candidate_table(question, [units[at] for at in kept], encode, pair=pair)
        except LookupError:
            return None
        return network, TableBatch.stack([table]), kept

    def _trusting(self, num_features: int) -> tuple[Trust, Verify | None]:
        """What readings apart of the serving policy are trusted by, looked at once for each policy."""
        with self._lock:
            folder = self._folder
            if self._trust_of != folder:
                self._trust_of, self._trust, self._verify = folder, Trust(), None
                try:
                    self._trust = trust_beside(folder or Path(), num_features)
                    if self._trust.verifier is not None:
                        self._verify = _verify_by(self._trust.verifier, self._pair_base)
                except (OSError, RuntimeError, ValueError) as error:
                    self._trust = Trust()
                    get_logger().warning("trust_not_loaded", folder=str(folder), reason=str(error))
            return self._trust, self._verify

    def _tell_once(self, given: int, wanted: int) -> None:
        """One warning for each policy: every question would repeat it."""
        if self._told_of != self._folder:
            self._told_of = self._folder
            get_logger().warning("policy_of_another_embedder", given=given, wanted=wanted)

    def _current(self) -> tuple[Any, LazyPair | None]:
        """The policy that serves now, with what makes its pair features."""
        with self._lock:
            now = self._clock()
            if now - self._looked < self._poll_s:
                return self._network, self._pair
            self._looked = now
            folder = self._named()
            if folder != self._folder:
                self._load(folder)
            return self._network, self._pair

    def _named(self) -> Path | None:
        """The folder to serve; the one at hand where the pointer cannot be read right now."""
        if self._source.is_dir():
            return self._source
        try:
            told = json.loads(self._source.read_text(encoding="utf-8"))
            check_format(told, self._source)
            folder, self._next_bias = Path(told["folder"]), float(told.get("stop_bias", 0.0))
            self._next_reading = str(told.get("reading", TOGETHER))
            return folder
        except FileNotFoundError:
            return None
        except NewerFormat as error:
            if self._told_newer != (told := str(error)):
                self._told_newer = told
                get_logger().warning("pointer_of_a_later_version", reason=told)
            return self._folder
        except (OSError, ValueError, KeyError, TypeError):
            return self._folder

    def _load(self, folder: Path | None) -> None:
        if folder is None:
            self._folder = self._network = self._pair = None
            return
        try:
            opened = self._opened(folder)
        except (OSError, ValueError) as error:
            get_logger().warning("policy_not_loaded", folder=str(folder), reason=str(error))
            return
        self._serve(folder, *opened)

    def _opened(self, folder: Path) -> tuple[Any, dict[str, Any], LazyPair | None]:
        """A policy's network, what it says about itself, and its pair reader; ValueError where it cannot serve."""
        from models.retriever.pair_pins import check_pins
        from models.retriever.pair_reader import pair_folder_for
        from models.retriever.storage import load_policy

        network, about = load_policy(folder)
        features = network.config.num_features
        known = (len(FEATURES), len(ALL_FEATURES)) if self._may_pair else (len(FEATURES),)
        if features not in known or network.config.encoder != "vectors":
            raise ValueError(
                f"policy: {folder} knows {features} features over {network.config.encoder}; allowed: vectors and "
                f"{', '.join(map(str, known))} features"
                + ("" if self._may_pair else " (session.pair_reader is off)")
            )
        place = pair_folder_for(folder, features)
        check_pins(about, place, folder)
        read = (self._pair_base, self._pair_device, self._pair_words)
        pair = None if place is None else LazyPair(place, *read)
        return network, about, pair

    def _serve(self, folder: Path, network: Any, about: dict[str, Any], pair: LazyPair | None) -> None:
        self._network, self._folder, self._pair = network, folder, pair
        if self._source.is_file():
            self._stop_bias, self._reading = self._next_bias, self._next_reading
        else:
            self._stop_bias = float(about.get("stop_bias", 0.0))
            self._reading = str(about.get("reading", TOGETHER))
        self._most = min(64, int(about.get("candidates", 64)))
        get_logger().info("policy_serves", folder=str(folder))


def _verify_by(folder: Path, base: Callable[[], Path] | None = None) -> Verify:
    """A verifier's logits of claims; ValueError where it cannot be read."""
    from models.retriever.pair_reader import PairRow, load_pair_reader

    reader = load_pair_reader(folder, base=base() if base else None)[0]
    lock = threading.Lock()

    def verify(question: str, claims: Sequence[str]) -> Any:
        with lock:
            asked, *texts = reader.tokenize([question, *claims])
            return reader.scores([PairRow(asked, text) for text in texts])

    return verify


def _unit(candidate: Candidate) -> Unit:
    return Unit(
        text=candidate.text,
        title=candidate.title,
        rank=candidate.rank,
        place=candidate.position % 10_000,
        num_tokens=max(1, candidate.num_tokens),
        head_tokens=candidate.head_tokens,
    )
