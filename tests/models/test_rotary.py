"""Rotary tables: equal to the model's own turn, exact at any distance that the cache uses."""

from __future__ import annotations

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import apply_rotary_pos_emb

from models.rotary import RotaryTable
from tests.models import tiny


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
def test_turn_equals_the_model_s_own_rotary_embedding(kind: str) -> None:
    """Keys turned by our table are the keys that transformers would have made."""
    backbone = tiny.backbone()
    spec = backbone.specs[0 if kind == "sliding_attention" else 1]
    keys, places = torch.randn(1, 2, 50, 16), torch.arange(7, 57)
    cos, sin = backbone.model.model.rotary_emb(keys, places[None], kind)
    expected = apply_rotary_pos_emb(keys, keys, cos, sin)[1]
    spec.rotary.reserve(57)
    torch.testing.assert_close(spec.rotary.turn(keys, places), expected)


def test_turning_back_gives_the_key_again() -> None:
    """A turn keeps lengths, and its opposite undoes it to rounding."""
    from models.rotary import turn

    table = tiny.backbone().specs[1].rotary
    table.reserve(5000)
    keys = torch.randn(2, 9, 16)
    cos, sin = table.at(torch.arange(4000, 4009))
    turned = turn(keys, cos, sin)
    torch.testing.assert_close(turned.norm(dim=-1), keys.norm(dim=-1))
    torch.testing.assert_close(turn(turned, cos, -sin), keys)


def test_dimensions_beyond_the_table_pass_unturned() -> None:
    """A model that turns only a part of each head keeps the other part as it is."""
    from models.rotary import turn

    keys = torch.randn(3, 5, 10)
    cos, sin = torch.rand(5, 2), torch.rand(5, 2)
    assert torch.equal(turn(keys, cos, sin)[..., 4:], keys[..., 4:])


def test_growing_the_table_changes_no_place() -> None:
    """Places known before stay equal bit for bit when the table grows."""
    table = tiny.backbone().specs[1].rotary
    table.reserve(100)
    before = table.at(torch.arange(100))[0].clone()
    table.reserve(60_000)
    assert torch.equal(before, table.at(torch.arange(100))[0])


def test_rotary_embedding_that_shifts_place_zero_is_refused() -> None:
    """What is no pure turn at place 0 would reach the cache as a changed key."""

    def angles(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = (places[..., None] + 1.0).expand(*places.shape, 4)
        return angle.cos(), angle.sin()

    with pytest.raises(ValueError, match="position 0"):
        RotaryTable(angles, device=torch.device("cpu"))


def test_float32_angles_at_stream_positions_are_wrong_where_places_are_right() -> None:
    """Why places: the same distance 100 read at position 16 million is off by more than 1e-3 in float32."""
    spec = tiny.backbone().specs[1]
    query, key = torch.randn(2, 1, 1, 16)
    frequencies = 1.0 / 1e6 ** (torch.arange(0, 16, 2).float() / 16)

    def score(query_at: int, key_at: int, dtype: torch.dtype) -> float:
        from models.rotary import turn

        turned = []
        for x, at in ((query, query_at), (key, key_at)):
            angle = (torch.tensor(float(at), dtype=dtype) * frequencies.to(dtype)).float()
            turned.append(turn(x, angle.cos(), angle.sin()))
        return float((turned[0] * turned[1]).sum())

    true = score(100, 0, torch.float64)
    spec.rotary.reserve(101)
    ours = spec.rotary.turn(query, torch.tensor([100])) * spec.rotary.turn(key, torch.tensor([0]))
    far = 16_000_003
    assert abs(float(ours.sum()) - true) < 1e-5
    assert abs(score(far + 100, far, torch.float32) - true) > 1e-3
