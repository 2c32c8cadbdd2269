"""Reading apart: what it costs, whom it trusts, and a policy with trust and verifier served to a session."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.training.policy_ship import ship
from models.retriever.pair_reader import PairRow, load_pair_reader, save_pair_reader
from models.retriever.table import ALL_FEATURES
from models.retriever.trust import Combination, claim
from models.retriever.trust_files import TRUST, VERIFIER, Trust, put_trust, trust_beside
from pipeline.errors import UsageError
from pipeline.session.apart import ApartChoice, choose_apart, read_apart
from pipeline.session.asking import AskParts
from pipeline.session.chooser import HybridChooser
from pipeline.session.policy_chooser import PolicyChooser
from pipeline.session.ports import InlineRunner
from pipeline.session.prompts import GIVEN_UP
from pipeline.session.sentences import Candidate
from tests.models.retriever.pair_case import reader
from tests.pipeline.session.support import ShardLibrary, article, ask_parts, stocked
from tests.pipeline.session.test_asking import ask, done, read_ids
from tests.pipeline.session.test_policy_chooser import CANDIDATES, embed, policy

PROMPT = 7
END = 100


class Scripted:
    """A backbone of whole words: what it answers over a sentence, and how sure it is, stand in a table."""

    bos: tuple[int, ...] = ()

    def __init__(self, said: dict[str, tuple[str, float, float]]) -> None:
        self.said, self.asked = said, list[str]()
        self._words: list[str] = ["\n"]

    def encode(self, text: str) -> list[int]:
        """A number a word."""
        words = [text.strip()] if text.strip() else ["\n"]
        for word in words:
            if word not in self._words:
                self._words.append(word)
        return [self._words.index(word) for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        """The words again."""
        return " ".join(self._words[at] for at in ids)

    def generate(self, ids: Sequence[int], *_: Any, suppress_first: Sequence[int] = ()) -> Iterator[int]:
        """The table's answer over a prompt."""
        self.asked.append(self.decode(ids))
        assert suppress_first == self.encode(GIVEN_UP)
        yield from self.encode(self.said[self.decode(ids)][0])

    def score(self, prompt: Sequence[int], answer: Sequence[int], cache: Any = None) -> float:
        """The answer's whole log-probability, or how much likelier giving up is than it."""
        _, sure, margin = self.said[self.decode(prompt)]
        return margin if list(answer) == self.encode(GIVEN_UP) else sure if len(answer) > 1 else 0.0


def sentence(text: str) -> Candidate:
    """A sentence of an article of its own."""
    return replace(CANDIDATES[0], text=text, article_id=text)


def read(said: dict[str, tuple[str, float, float]], enough: float = 1.0, **more: Any) -> tuple[Any, Scripted]:
    """The answer over the table's sentences in their order, and the backbone that was asked."""
    backbone = Scripted(said)
    picks = tuple(sentence(text) for text in said)
    choice = ApartChoice(picks, tuple(range(len(picks))), trust=Trust(enough=enough), **more)
    found = read_apart(
        "Who?", choice, lambda pick: backbone.encode(pick.text), backbone, InlineRunner(),  # type: ignore[arg-type]
        form="adapted", cache=None, limit=8, stopped=threading.Event(),
    )  # fmt: skip
    return found, backbone


def test_readings_that_agree_beat_a_surer_one_and_are_what_is_cited() -> None:
    """Two unsure readings of one answer outweigh a surer one; letters and articles do not part them."""
    found, _ = read({"s1": ("the Box", -0.9, -1.0), "s2": ("bin", -0.6, -1.0), "s3": ("box", -0.8, -1.0)})
    weights = [np.exp(whole) for whole in (-0.9, -0.6, -0.8)]  # four times a quarter of the logarithm
    assert found.reading.parsed.text == "box"  # the surer of the two
    assert [pick.text for pick in found.rests_on] == ["s1", "s3"]
    assert found.trust == pytest.approx((weights[0] + weights[2]) / (1 + sum(weights)))
    assert (found.num_read, found.prompt_tokens, found.generated) == (3, 3, 3)


def test_reading_ends_once_an_answer_is_trusted_enough() -> None:
    """At half a trust the first sure reading ends it; at 1 all are read; a stopped question reads no further."""
    said = {"s1": ("box", -0.0, -1.0), "s2": ("bin", -0.0, -1.0)}
    assert read(said, enough=0.5)[0].num_read == 1 and read(said, enough=0.51)[0].num_read == 2
    backbone = Scripted(said)
    over = threading.Event()
    over.set()
    choice = ApartChoice(tuple(sentence(text) for text in said), (0, 1))
    found = read_apart(
        "Who?", choice, lambda pick: backbone.encode(pick.text), backbone, InlineRunner(),  # type: ignore[arg-type]
        form="adapted", cache=None, limit=8, stopped=over,
    )  # fmt: skip
    assert found.num_read == 1


def test_hybrid_ranking_pays_each_sentence_its_head_and_a_prompt_but_the_first() -> None:
    """As many of the best as the budget holds with a prompt each but the first; never more than allowed."""
    whole = CANDIDATES[0].num_tokens + CANDIDATES[0].head_tokens
    for budget, count in ((whole - 1, 0), (whole, 1), (2 * whole + PROMPT - 1, 1), (2 * whole + PROMPT, 2)):
        chosen = choose_apart(HybridChooser(), "Which harbour?", CANDIDATES, budget, PROMPT, 8)
        assert len(chosen.picks) == count
    many = choose_apart(HybridChooser(), "Which harbour?", CANDIDATES, 10_000, PROMPT, 3)
    scores = HybridChooser().scores("Which harbour?", CANDIDATES)
    best = sorted(range(len(CANDIDATES)), key=lambda at: (-scores[at], at))[:3]
    assert list(many.picks) == [CANDIDATES[at] for at in best]  # best first, costs as they were
    assert many.trust.combination.names == ("whole",) and many.verify is None


def folder_with_trust(tmp_path: Path, enough: float = 0.9) -> Path:
    """A policy, its trust and its verifier as real files, put together as they ship."""
    home = tmp_path / "home"
    policy(home / "policies" / "reinforce_apart-0" / "policy", 1, names=ALL_FEATURES)
    save_pair_reader(reader(3), home / "pairs" / "whole", {})
    save_pair_reader(reader(5), home / "trust" / "whole", {"verifies": "answers"})
    Combination(("whole", "pair", "verified"), (1.0, 2.0, 3.0), -0.5).save(home / "trust" / "verified.json")
    out = tmp_path / "shipped"
    told = ship(
        home, "reinforce_apart-0", out, trust="verified", enough=enough, stop_bias=-4.0, pair_reader=True
    )
    assert {TRUST, f"{VERIFIER}/config.json", "pair-reader/config.json", "policy.safetensors"} <= set(
        told["files"]
    )
    return out


def test_a_policy_brings_its_trust_and_its_verifier(tmp_path: Path) -> None:
    """From the files alone: prompts count in the budget, and trust is the fitted combination of what is known."""
    shipped = folder_with_trust(tmp_path)
    chooser = PolicyChooser(shipped, embed, HybridChooser())
    whole = CANDIDATES[0].num_tokens + CANDIDATES[0].head_tokens
    budget = 3 * whole + 2 * PROMPT
    choice = chooser.choose_apart("Which harbour?", CANDIDATES, budget, PROMPT, 8)
    assert chooser.serving == shipped and len(choice.picks) == 3
    assert len(chooser.choose_apart("Which harbour?", CANDIDATES, budget, PROMPT, 2).picks) == 2
    assert choice.trust.enough == 0.9 and choice.verify is not None and choice.tables is not None
    verifier = load_pair_reader(shipped / VERIFIER)[0]
    told = claim("box", choice.picks[0].title, choice.picks[0].text)
    asked, text = verifier.tokenize(["Which harbour?", told])
    by_hand = float(verifier.scores([PairRow(asked, text)])[0])
    assert float(choice.verify("Which harbour?", [told])[0]) == pytest.approx(by_hand)
    one = ApartChoice(choice.picks[:1], choice.places[:1], choice.tables, choice.trust, choice.verify)
    backbone = Scripted({choice.picks[0].text: ("box", -0.8, -1.0)})
    found = read_apart(
        "Which harbour?", one, lambda pick: backbone.encode(pick.text), backbone, InlineRunner(),  # type: ignore[arg-type]
        form="adapted", cache=None, limit=8, stopped=threading.Event(),
    )  # fmt: skip
    pair = float(choice.tables.features[0, choice.places[0], ALL_FEATURES.index("pair")])
    logit = -0.8 / 4 + 2 * pair + 3 * np.clip(by_hand / 4, -4, 4) - 0.5
    assert found.trust == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)


def test_a_trust_that_cannot_be_served_is_told_and_the_reader_s_own_word_serves(tmp_path: Path) -> None:
    """Without its verifier, or with weights of what the policy does not know, nothing of it is used."""
    shipped = folder_with_trust(tmp_path)
    (shipped / VERIFIER / "config.json").unlink()
    choice = PolicyChooser(shipped, embed, HybridChooser()).choose_apart("Which?", CANDIDATES, 90, PROMPT, 8)
    assert choice.trust == Trust() and choice.verify is None and choice.picks
    with pytest.raises(ValueError, match="holds none; put it there"):
        trust_beside(shipped, len(ALL_FEATURES))
    plain = policy(tmp_path / "plain", 1)
    with pytest.raises(ValueError, match="weighs pair, which a policy of 15 features does not know"):
        put_trust(plain, Combination(("pair",), (1.0,), 0.0), 1.0, None, 15)
    with pytest.raises(ValueError, match=r"enough: given 1\.5"):
        put_trust(plain, Combination(("whole",), (1.0,), 0.0), 1.5, None, 15)
    assert trust_beside(plain, 15) == Trust()
    (plain / TRUST).write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        trust_beside(plain, 15)


def test_what_a_run_lacks_is_not_shipped(tmp_path: Path) -> None:
    """The error names what there is; a folder that sessions may read is left as it is; nothing half is left."""
    shipped = folder_with_trust(tmp_path)
    home = tmp_path / "home"
    with pytest.raises(UsageError, match="has reinforce_apart-0"):
        ship(home, "reinforce-7", tmp_path / "new")
    with pytest.raises(UsageError, match="is not empty"):
        ship(home, "reinforce_apart-0", shipped)
    with pytest.raises(UsageError, match=r"plain\.json"):
        ship(home, "reinforce_apart-0", tmp_path / "new", trust="plain")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def library(tmp_path: Path) -> Iterator[ShardLibrary]:
    """A store with articles 1 to 5."""
    with stocked(tmp_path / "shelf", *(article(n) for n in range(1, 6))) as shelf:
        yield shelf


def test_a_session_reads_apart_where_it_is_told_to(library: ShardLibrary) -> None:
    """A real model: the answer comes whole, costs its prompts, cites what it rests on; else the policy says."""
    assert ask_parts(library).config.reading == "policy"
    parts = ask_parts(library, reading="apart", apart_readings=3, token_budget=400)
    counted = _Counting(parts)
    events = ask(counted.parts, "Which pier opened on Monday?")
    result = done(events)
    assert counted.calls == 3  # three readings, each a job of its own
    alone = done(ask(replace_config(parts, apart_readings=1), "Which pier opened on Monday?"))
    assert result["tokens"]["read"] > 2 * alone["tokens"]["read"] > 0
    assert {source["article_id"] for source in result["sources"]} <= read_ids(events)
    told = [event.data["text"] for event in events if event.kind == "token"]
    assert told == ([] if result["given_up"] else [result["text"]])
    assert counted.prompts_hold_one_article_each


def test_a_session_reads_as_the_serving_policy_was_paid_for(library: ShardLibrary) -> None:
    """Left to the policy: apart where it says so, together where it says that or nothing; a word of ours wins."""
    plain = ask_parts(library, apart_readings=3, token_budget=400)

    def prompts(reading: str, chooser: object) -> int:
        counted = _Counting(replace(replace_config(plain, reading=reading), chooser=chooser))
        ask(counted.parts, "Which pier opened on Monday?")
        return len(counted.prompts)

    assert prompts("policy", _Paid("apart")) == 3
    assert prompts("policy", _Paid("together")) == prompts("policy", plain.chooser) == 1
    assert prompts("together", _Paid("apart")) == 1
    assert prompts("apart", _Paid("together")) == 3


class _Paid(HybridChooser):
    """A chooser whose policy was paid for reading so."""

    def __init__(self, reading: str) -> None:
        super().__init__()
        self.reading = reading


def test_a_change_while_reading_apart_starts_again(library: ShardLibrary) -> None:
    """An article withdrawn under the second reading is neither read again nor cited."""
    parts = ask_parts(library, reading="apart", apart_readings=3, token_budget=400)
    counted = _Counting(parts, at_call=2, do=lambda: library.delete("a3"))
    events = ask(counted.parts, "Pier 3")
    assert [event.kind for event in events].count("restart") == 1
    assert "a3" not in read_ids(events) | {source["article_id"] for source in done(events)["sources"]}


def replace_config(parts: AskParts, **changes: Any) -> AskParts:
    """The parts with other settings."""
    return replace(parts, config=replace(parts.config, **changes))


class _Counting:
    """Counts model jobs, keeps the prompts that are generated from, and does something at one of them."""

    def __init__(self, parts: AskParts, at_call: int = 0, do: Any = None) -> None:
        self._model, self._runner, self._at, self._do = parts.backbone, parts.runner, at_call, do
        self.calls = 0
        self.prompts: list[str] = []
        self.parts = replace(parts, runner=self, backbone=self)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def call(self, job: Any) -> Any:
        self.calls += 1
        if self.calls == self._at:
            self._do()
        return self._runner.call(job)

    def iterate(self, job: Any) -> Iterator[Any]:
        return self._runner.iterate(job)

    def generate(self, ids: Sequence[int], *rest: Any, **more: Any) -> Iterator[int]:
        self.prompts.append(self._model.decode(ids))
        return self._model.generate(ids, *rest, **more)

    @property
    def prompts_hold_one_article_each(self) -> bool:
        """Whether every prompt has the lines of one article alone."""
        return all(prompt.count("(2024-03-") == 1 for prompt in self.prompts)


def test_a_trust_file_keeps_its_threshold(tmp_path: Path) -> None:
    """What was put beside a policy comes back as it was; without a verifier's weight none is copied."""
    folder = policy(tmp_path / "p", 1)
    made = Combination(("margin", "whole"), (0.5, 2.0), 0.25)
    put_trust(folder, made, 0.7, None, 15)
    assert trust_beside(folder, 15) == Trust(made, 0.7, None)
    assert json.loads((folder / TRUST).read_text())["enough"] == 0.7 and not (folder / VERIFIER).exists()
