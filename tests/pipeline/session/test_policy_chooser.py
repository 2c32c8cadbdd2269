"""pipeline/session/policy_chooser.py: the champion chooses, is followed, and never stands in the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.formats import KEY
from models.retriever import PolicyNetwork, RetrieverConfig, load_policy, save_policy
from models.retriever.pair_reader import BESIDE, save_pair_reader
from models.retriever.table import ALL_FEATURES
from pipeline.candidate_features import FEATURES, preselect
from pipeline.session.chooser import HybridChooser
from pipeline.session.policy_chooser import PolicyChooser, _unit
from pipeline.session.sentences import Candidate
from tests.models.retriever import decoder_case
from tests.models.retriever.pair_case import NAMES, THINGS, reader

DIM = 8


def candidate(at: int, article: str) -> Candidate:
    """A sentence of an article."""
    return Candidate(
        article_id=article, version_ms=0, published_ms=1_700_000_000_000 + at, title=f"Title {article}", source="s",
        stream="s", url=None, text=f"Sentence {at} about harbour {at % 3}.", position=at, rank=at // 3,
        num_tokens=9, head_tokens=6,
    )  # fmt: skip


CANDIDATES = [candidate(at, f"a{at // 3}") for at in range(12)]


def embed(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors that depend on the text alone."""
    rows = [np.random.default_rng(len(text) * 31 + ord(text[-2])).normal(size=DIM) for text in texts]
    return np.array([row / np.linalg.norm(row) for row in rows], np.float32)


def policy(folder: Path, seed: int, dim: int = DIM, names: tuple[str, ...] = FEATURES) -> Path:
    """A policy of random weights that likes one feature."""
    torch.manual_seed(seed)
    network = PolicyNetwork(
        RetrieverConfig(dim=dim, num_features=len(names), feature_names=names, width=16, heads=2)
    )
    with torch.no_grad():
        network.prior.weight[0, seed % len(names)] = 30.0
        network.stop[-1].bias.fill_(-20.0)
    return save_policy(network, folder, {"candidates": 10})


def test_the_policy_chooses_within_the_budget_in_reading_order(tmp_path: Path) -> None:
    """Heads count once an article; nothing twice; oldest article first."""
    chooser = PolicyChooser(policy(tmp_path / "p", 1), embed, HybridChooser())
    chosen = chooser.choose("Which harbour is it?", CANDIDATES, 60)
    assert chosen
    assert len(set(chosen)) == len(chosen)
    heads = {c.article_id: c.head_tokens for c in chosen}
    assert sum(c.num_tokens for c in chosen) + sum(heads.values()) <= 60
    assert chosen == sorted(chosen, key=lambda c: (c.published_ms, c.article_id, c.position))


def test_a_promotion_is_followed_and_a_broken_pointer_is_not(tmp_path: Path) -> None:
    """The next look after the pause serves the new champion; a half-written pointer changes nothing."""
    now = [0.0]
    pointer = tmp_path / "champion.json"
    chooser = PolicyChooser(pointer, embed, HybridChooser(), poll_s=5.0, clock=lambda: now[0])
    chooser.choose("q?", CANDIDATES, 60)
    assert chooser.serving is None
    for number, pause in ((1, 6.0), (2, 6.0)):
        folder = policy(tmp_path / f"v{number}", number)
        pointer.write_text(json.dumps({"folder": str(folder)}))
        chooser.choose("q?", CANDIDATES, 60)
        assert chooser.serving != folder
        now[0] += pause
        chooser.choose("q?", CANDIDATES, 60)
        assert chooser.serving == folder
    for broken in ('{"folder": ', json.dumps({KEY: 2, "folder": str(tmp_path / "v1")})):
        pointer.write_text(broken)  # half of it, and one of a later version
        now[0] += 6.0
        chooser.choose("q?", CANDIDATES, 60)
        assert chooser.serving == tmp_path / "v2"
    pointer.write_text(json.dumps({KEY: 1, "folder": str(tmp_path / "v1")}))
    now[0] += 6.0
    chooser.choose("q?", CANDIDATES, 60)
    assert chooser.serving == tmp_path / "v1"


def test_a_promotion_tells_how_the_policy_is_read(tmp_path: Path) -> None:
    """The pointer's word where there is one, a fixed folder's own where it serves; together where nothing says."""
    paid = policy(tmp_path / "paid", 1)
    network, about = load_policy(paid)
    save_policy(network, paid, {**about, "reading": "apart"})
    assert PolicyChooser(paid, embed, HybridChooser()).reading == "apart"
    plain = policy(tmp_path / "plain", 1)
    assert PolicyChooser(plain, embed, HybridChooser()).reading == "together"
    pointer = tmp_path / "champion.json"
    now = [0.0]
    chooser = PolicyChooser(pointer, embed, HybridChooser(), poll_s=5.0, clock=lambda: now[0])
    assert chooser.reading == "together"  # nothing serves
    for body, expected in (
        ({"folder": str(plain), "reading": "apart"}, "apart"),
        ({"folder": str(paid)}, "together"),  # promoted before readings were told
    ):
        pointer.write_text(json.dumps(body))
        now[0] += 6.0
        assert chooser.reading == expected


def test_no_pair_reader_looks_where_the_policy_cannot_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its seconds are not spent on vectors of another embedder; a broken one leaves it to hybrid ranking."""
    folder = policy(tmp_path / "p", 1, dim=DIM + 1, names=ALL_FEATURES)
    save_pair_reader(reader(3), folder / BESIDE, {})
    loads: list[Path] = []

    def load(path: Path, base: Path | None = None) -> object:
        loads.append(path)
        raise ValueError("broken")

    monkeypatch.setattr("models.retriever.pair_reader.load_pair_reader", load)
    plain = HybridChooser().choose("Which harbour?", CANDIDATES, 60)
    chooser = PolicyChooser(folder, embed, HybridChooser())
    assert chooser.choose("Which harbour?", CANDIDATES, 60) == plain
    assert loads == []
    fitting = policy(tmp_path / "q", 1, names=ALL_FEATURES)
    save_pair_reader(reader(3), fitting / BESIDE, {})
    chooser = PolicyChooser(fitting, embed, HybridChooser())
    assert [chooser.choose("Which harbour?", CANDIDATES, 60) for _ in range(2)] == [plain] * 2
    assert loads == [fitting / BESIDE]


@pytest.mark.parametrize("fault", ["no vectors", "other embedder", "broken folder"])
def test_what_cannot_choose_leaves_it_to_hybrid_ranking(tmp_path: Path, fault: str) -> None:
    """A question is answered as if there were no policy, never with an error."""
    folder = policy(tmp_path / "p", 1, dim=DIM + (fault == "other embedder"))
    if fault == "broken folder":
        (folder / "policy.safetensors").write_bytes(b"broken")
    plain = HybridChooser()
    chooser = PolicyChooser(folder, (lambda texts: None) if fault == "no vectors" else embed, plain)
    assert chooser.choose("Which harbour?", CANDIDATES, 60) == plain.choose("Which harbour?", CANDIDATES, 60)


def test_a_policy_with_a_pair_reader_reads_what_that_one_prefers(tmp_path: Path) -> None:
    """It brings its pair reader; its score decides; switched off, hybrid ranking chooses and nothing fails."""
    folder = policy(tmp_path / "p", ALL_FEATURES.index("pair"), names=ALL_FEATURES)
    judge = reader(3)
    save_pair_reader(judge, folder / BESIDE, {})
    told = [replace(c, text=f"{NAMES[at % 4]} has {THINGS[at // 4]}") for at, c in enumerate(CANDIDATES)]
    chooser = PolicyChooser(folder, embed, HybridChooser())
    chosen = chooser.choose("what ann key", told, 15)
    assert chooser.serving == folder
    units = [told[at] for at in preselect("what ann key", [_unit(c) for c in told], 10)]
    scores = judge.features("what ann key", [f"{c.title}: {c.text}" for c in units])[:, 0]
    assert chosen == [units[int(scores.argmax())]]

    without = PolicyChooser(folder, embed, HybridChooser(), pair_reader=False)
    assert without.choose("what ann key", told, 15) == HybridChooser().choose("what ann key", told, 15)
    assert without.serving is None


def test_a_pair_reader_over_the_decoder_works_over_the_reader_s_own_weights(tmp_path: Path) -> None:
    """The base is asked for when a question first needs it; over another one hybrid ranking chooses."""
    folder = policy(tmp_path / "p", ALL_FEATURES.index("pair"), names=ALL_FEATURES)
    base = decoder_case.base(tmp_path / "base")
    judge = decoder_case.reader(base)
    torch.nn.init.normal_(judge.model.head.weight, std=0.5)
    judge.tuning()
    save_pair_reader(judge, folder / BESIDE, {})
    told = [replace(c, text=f"{NAMES[at % 4]} has {THINGS[at // 4]}") for at, c in enumerate(CANDIDATES)]
    asked: list[Path] = []

    def found(path: Path) -> Path:
        asked.append(path)
        return path

    chooser = PolicyChooser(folder, embed, HybridChooser(), pair_base=lambda: found(base))
    assert not asked
    chosen = chooser.choose("what ann key", told, 15)
    assert asked == [base]
    units = [told[at] for at in preselect("what ann key", [_unit(c) for c in told], 10)]
    scores = judge.features("what ann key", [f"{c.title}: {c.text}" for c in units])[:, 0]
    assert chosen == [units[int(scores.argmax())]]

    other = decoder_case.base(tmp_path / "other", seed=1)
    elsewhere = PolicyChooser(folder, embed, HybridChooser(), pair_base=lambda: found(other))
    assert elsewhere.choose("what ann key", told, 15) == HybridChooser().choose("what ann key", told, 15)
