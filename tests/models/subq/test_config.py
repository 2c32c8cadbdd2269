"""Configurations that make no sense are refused with an error that names the field."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.subq import SubqConfig
from models.subq.baselines import BASELINES, COMPARED, baseline, choice, count, method_of

WRONG = [
    ({"chunk": 48}, "chunk: given 48; allowed: a power of two"),
    ({"retrieval": "page"}, "retrieval: given 'page'; allowed: chunk, token, none"),
    ({"index": "hnsw"}, "index: given 'hnsw'; allowed: flat, ivf, tree, groups"),
    ({"lower_mixers": ("rwkv",)}, "lower_mixers: given .*rwkv.*; allowed: a tuple of sliding"),
    ({"lower_mixers": "sliding"}, "lower_mixers: given 'sliding'; allowed: a tuple"),
    ({"width": 500}, "width: given 500, head_dim 64"),
    ({"kv_heads": 3}, "width: given 512, head_dim 64, kv_heads 3"),
    ({"head_dim": 0}, "head_dim: given 0; allowed: 1 or more"),
    ({"encoder_heads": 7}, "encoder_heads: given 7; allowed: divisors of width 512"),
    ({"upper_blocks": 0}, "retrieval: given 'chunk' with upper_blocks 0"),
    ({"scale": 0.0}, "scale: given 0.0; allowed: above 0, at most scale_max"),
    ({"neighbours": True, "near": 1}, "near: given 1 with neighbours"),
    ({"rerank": True, "kernel": "fused"}, "kernel: given 'fused' with rerank; allowed: auto or plain"),
    ({"lookahead": 33}, r"lookahead: given 33; allowed: 0 to half a chunk \(32\)"),
    ({"lookbehind": -1}, "lookbehind: given -1; allowed: 0 to half a chunk"),
    ({"lookahead": 8, "near": 1}, "near: given 1 with lookahead 8; allowed: 2 or more"),
    ({"encoder": "deep"}, "encoder: given 'deep'; allowed: layer, lean"),
    ({"encoder": "lean", "lookahead": 8}, "encoder: given 'lean' with lookahead 8"),
    ({"shared_reader": True, "upper_mixers": ("state_space",)}, "shared_reader: given with upper mixers"),
    ({"top_k": 0}, "top_k: given 0; allowed: 1 or more"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[str(changes) for changes, _ in WRONG])
def test_wrong_field_is_named(changes: dict[str, object], message: str) -> None:
    """The error says the field, what was given and what is allowed."""
    with pytest.raises(ValueError, match=message):
        SubqConfig(**changes)  # type: ignore[arg-type]


def test_configuration_survives_its_own_form() -> None:
    """What is written beside a checkpoint reads back equal, and unknown fields are refused."""
    config = SubqConfig(lower_mixers=("gated_linear", "sliding"), neighbours=True)
    assert SubqConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="unknown fields \\['depth'\\]"):
        SubqConfig.from_dict({**config.to_dict(), "depth": 3})


@pytest.mark.parametrize("name", BASELINES)
def test_compared_methods_have_about_as_many_parameters(name: str) -> None:
    """A comparison is fair: within a tenth of the full model's parameters."""
    full = count(SubqConfig(vocabulary=1_000))
    other = count(baseline(name, SubqConfig(vocabulary=1_000)))
    assert abs(other - full) <= 0.1 * full


def test_a_shape_tells_which_method_it_is() -> None:
    """Each compared method by its name; ours, ours with one thing changed, and mixtures as subq."""
    full = SubqConfig(vocabulary=100, width=64, head_dim=32, feed_forward=96)
    told = {name: method_of(baseline(name, full)) for name in BASELINES}
    assert told == {name: name if name in COMPARED else "subq" for name in BASELINES}
    assert {method_of(choice(name, full)) for name in ("subq-state-space", "subq-token")} == {"subq"}
    mixed = replace(baseline("mamba-2", full), lower_mixers=("state_space", "sliding"))
    assert method_of(mixed) == "subq"


def test_reach_counts_what_can_change_a_token() -> None:
    """Windows and convolutions add up over the blocks; a mixer that remembers without end has no reach."""
    config = SubqConfig(lower_blocks=3, window=512, taps=4)
    assert config.reach(upper=False) == 3 * (511 + 3)
    assert SubqConfig(lower_mixers=("state_space",)).reach(upper=False) is None


def test_logarithmic_k_is_bounded() -> None:
    """round(c * log2(n)), at least 1 and at most top_k."""
    config = SubqConfig(top_k=16, top_k_log=0.5)
    assert [config.chosen(n) for n in (0, 2, 256, 262_144, 2**40)] == [1, 1, 4, 9, 16]
