"""models/retriever: one encoder for both, order does not matter, masks hold, warm start and router learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.retriever import GOLD, Choosing, PolicyNetwork, TableBatch, fill, load_policy, save_policy, select
from models.retriever.choosing import sufficient
from models.retriever.network import as_tensors, entropy
from models.retriever.router import router_scores, train_router
from models.retriever.supervised import SupervisedConfig, draw_states, train_supervised
from tests.rl.toy import network_config, tables

TABLES = tables(32)


def logits_of(network: PolicyNetwork, batch: TableBatch, budget: int = 90) -> torch.Tensor:
    """The first step's logits."""
    observed = as_tensors(Choosing(batch, np.arange(len(batch)), budget).observe())
    with torch.no_grad():
        return network.eval()(observed)[0]


def with_words(batch: TableBatch) -> TableBatch:
    """The tables with three hashed words a text."""
    words = np.random.default_rng(0).integers(1, 50, (len(batch), batch.num_candidates + 1, 3))
    return TableBatch(**(batch.arrays() | {"words": words}))


@pytest.mark.parametrize("encoder", ["vectors", "transformer", "bilstm"])
def test_candidates_may_stand_in_any_order(encoder: str) -> None:
    """Another order of the candidates gives the same logits in that order, whatever encodes the text."""
    torch.manual_seed(0)
    batch = with_words(TABLES.take([0, 1, 2]))
    network = PolicyNetwork(network_config(encoder=encoder, num_words=64))
    order = np.array([2, 0, 3, 1, 5, 4])
    turned = {}
    for name, array in batch.arrays().items():
        if name == "words":
            turned[name] = array[:, np.r_[0, 1 + order]]
        else:
            turned[name] = array if name in ("query", "needs_all") else array[:, order]
    before, after = logits_of(network, batch), logits_of(network, TableBatch(**turned))
    torch.testing.assert_close(after, before[:, np.r_[order, 6]], atol=1e-4, rtol=1e-4)


def test_question_and_candidates_share_one_encoder() -> None:
    """The same vector and words are encoded alike on either side."""
    network = PolicyNetwork(network_config(encoder="bilstm", num_words=64)).eval()
    vector, words = torch.randn(1, 8), torch.tensor([[3, 4, 0]])
    one = network.encode(vector, words)
    many = network.encode(vector[:, None].expand(1, 5, 8), words[:, None].expand(1, 5, 3))
    torch.testing.assert_close(many[0, 3], one[0])


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("encoder", ["transformer", "bilstm"])
def test_a_text_is_encoded_alike_however_far_it_is_padded(encoder: str, pooling: str) -> None:
    """Words end where they end, in either direction; a text without words has an encoding too."""
    torch.manual_seed(0)
    network = PolicyNetwork(network_config(encoder=encoder, pooling=pooling, num_words=64)).eval()
    vectors = torch.randn(3, 8)
    words = torch.tensor([[3, 4, 5], [6, 0, 0], [0, 0, 0]])
    padded = torch.nn.functional.pad(words, (0, 9))
    torch.testing.assert_close(network.encode(vectors, padded), network.encode(vectors, words))


@pytest.mark.parametrize("encoder", ["transformer", "bilstm"])
def test_a_token_in_front_reads_every_word_and_stands_for_the_text(encoder: str) -> None:
    """Another word anywhere is another state, which the token's own vector is part of; `mean` has no such token."""
    torch.manual_seed(0)
    network = PolicyNetwork(network_config(encoder=encoder, pooling="cls", num_words=64)).eval()
    vectors, words = torch.randn(1, 8), torch.tensor([[3, 4, 5, 6]])
    state = network.encode(vectors, words)
    for at in range(4):
        other = words.clone()
        other[0, at] = 9
        assert (network.encode(vectors, other) - state).abs().max() > 1e-4, at
    state.sum().backward()
    assert network.encode.cls.grad is not None and network.encode.cls.grad.abs().max() > 0
    assert network.encode(vectors, torch.full((1, 512), 3)).isfinite().all()
    plain = PolicyNetwork(network_config(encoder=encoder, num_words=64))
    assert plain.encode.cls is None and not any("cls" in name for name in plain.state_dict())


def test_illegal_actions_have_no_probability_and_padding_no_say() -> None:
    """Whatever stands in the padding, the logits are the same; what does not fit the budget has none."""
    network = PolicyNetwork(network_config())
    noisy = TABLES.arrays() | {"vectors": TABLES.vectors.copy(), "features": TABLES.features.copy()}
    noisy["vectors"][~TABLES.present] = 7.0
    noisy["features"][~TABLES.present] = -7.0
    first, second = logits_of(network, TABLES, 30), logits_of(network, TableBatch(**noisy), 30)
    torch.testing.assert_close(first, second)
    costs = Choosing(TABLES, np.arange(len(TABLES)), 30).costs()
    assert (first[:, :-1].numpy()[(costs > 30) | ~TABLES.present] < -1e8).all()
    assert (first[:, -1] > -1e8).all()
    assert torch.isfinite(entropy(first)).all()


def test_a_policy_comes_back_from_disk_and_a_broken_one_is_named(tmp_path: Path) -> None:
    """The same logits; a folder that is none, or damaged, is a ValueError with its name."""
    network = PolicyNetwork(network_config())
    save_policy(network, tmp_path / "p", {"unit": "sentence"})
    again, about = load_policy(tmp_path / "p")
    torch.testing.assert_close(logits_of(again, TABLES), logits_of(network, TABLES))
    assert about == {"unit": "sentence"}
    assert "Retriever policy" in (tmp_path / "p" / "README.md").read_text()
    with pytest.raises(ValueError, match=r"allowed: a folder with config\.json"):
        load_policy(tmp_path)
    (tmp_path / "p" / "policy.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read"):
        load_policy(tmp_path / "p")


def test_the_warm_start_learns_to_choose_and_stop() -> None:
    """On new questions: the telling candidate in over 80% (chance: under 30%), and little else."""
    torch.manual_seed(0)
    network = PolicyNetwork(network_config())
    train_supervised(network, tables(96), SupervisedConfig(steps=80, lr=3e-3, batch=48, budget_high=160))
    fresh = tables(64, seed=9)
    chosen = select(network, fresh, 120)
    held = [bool((fresh.labels[row, list(c.picks)] == GOLD).any()) for row, c in enumerate(chosen)]
    assert np.mean(held) > 0.8
    assert np.mean([len(choice.picks) for choice in chosen]) < 2.0


def test_drawn_states_are_legal_and_their_targets_right() -> None:
    """STOP is the target exactly where the choice tells, or nothing needed fits any more."""
    chance = np.random.default_rng(0)
    config = SupervisedConfig(wrong=0.7, budget_low=40, budget_high=120)
    wanted = TABLES.labels == GOLD
    state, goal = draw_states(TABLES, np.arange(32), wanted, config, chance)
    assert (goal <= state.legal()).all()
    assert goal.any(1).all()
    enough = sufficient(TABLES.labels, state.chosen, TABLES.needs_all)
    assert goal[enough, -1].all()
    assert not goal[enough, :-1].any()
    assert (goal[:, :-1] <= wanted).all()
    assert 0.1 < state.chosen.any(1).mean() < 1.0


def test_all_gold_is_needed_where_the_question_says_so() -> None:
    """One of two supporting sentences is not enough."""
    labels = np.array([[GOLD, GOLD, 0], [GOLD, GOLD, 0]], np.int8)
    chosen = np.array([[True, False, True], [True, True, False]])
    assert sufficient(labels, chosen, np.array([True, True])).tolist() == [False, True]
    assert sufficient(labels, chosen, np.array([False, False])).tolist() == [True, True]


def test_the_router_learns_from_the_readers_losses_alone() -> None:
    """Its first choice is the candidate that the reader needs in over 80% of new questions."""
    torch.manual_seed(0)
    network, train = PolicyNetwork(network_config()), tables(96)
    train_router(network, train, np.where(train.labels == GOLD, 0.1, 3.0), steps=80, batch=48, lr=3e-3)
    fresh = tables(64, seed=9)
    first = router_scores(network, fresh).argmax(1)
    assert (fresh.labels[np.arange(64), first] == GOLD).mean() > 0.8
    with pytest.raises(ValueError, match="losses: given"):
        train_router(network, train, np.zeros((3, 3), np.float32), steps=1)


def test_filling_takes_the_best_that_still_fit() -> None:
    """A candidate that does not fit is passed over for a shorter one further down; never over the budget."""
    scores = TABLES.features[:, :, 1]
    chosen = fill(TABLES, scores, 60)
    state = Choosing(TABLES, np.arange(len(TABLES)), 60)
    for row, choice in enumerate(chosen):
        assert choice.tokens <= 60
        legal_first = np.where(state.legal()[row, :-1], scores[row], -1)
        if choice.picks:
            assert choice.picks[0] == legal_first.argmax()


def test_without_stop_the_policy_fills_and_a_high_bias_reads_one() -> None:
    """The two ends of the curve of tokens."""
    network = PolicyNetwork(network_config())
    filled = select(network, TABLES, 100, may_stop=False)
    short = select(network, TABLES, 100, stop_bias=1e6)
    assert {len(choice.picks) for choice in short} == {1}
    assert np.mean([c.tokens for c in filled]) > np.mean([c.tokens for c in short])
    rest = replace_needs(TABLES)
    assert select(network, rest, 1) and all(not choice.picks for choice in select(network, rest, 1))


def replace_needs(batch: TableBatch) -> TableBatch:
    """The same tables, all of their golds needed."""
    return replace(batch, needs_all=np.ones(len(batch), bool))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoder", "cnn"),
        ("heads", 5),
        ("dropout", 1.0),
        ("layers", -1),
        ("width", 0),
        ("pooling", "max"),
        ("pooling", "cls"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: object) -> None:
    """The error says what was given and what is allowed."""
    with pytest.raises(ValueError, match=rf"{name}: given .*allowed"):
        network_config(**{name: value})


def test_the_shipped_policy_loads_and_fits_this_version() -> None:
    """What comes with the project knows this version's features, the pair reader's too, and MiniLM's vectors."""
    from models.retriever import SHIPPED
    from models.retriever.table import ALL_FEATURES

    if not SHIPPED.is_dir():
        pytest.skip("no policy lies under models/weights/retriever")
    network, about = load_policy(SHIPPED)
    assert network.config.feature_names == ALL_FEATURES
    assert network.config.dim == 384
    assert about["unit"] == "sentence"
