"""Landmarks and queries from a middle layer: shapes, pooling, storage, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.hf.landmark_head import LandmarkHead, hidden_of, listening, new_head
from tests.models import tiny


def head() -> LandmarkHead:
    """A head with weights that are not at their start."""
    torch.manual_seed(2)
    made = new_head(tiny.backbone(), landmark=8)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def test_a_landmark_is_the_pooled_and_mapped_chunk() -> None:
    """Against plain loops, both sides, chunks of any length."""
    made, hidden = head(), torch.randn(11, 32)
    offsets = torch.tensor([0, 1, 6, 11])
    for side in ("chunk", "question"):
        found = made(hidden, offsets, side)
        for at in range(3):
            tokens = made.norm(hidden[offsets[at] : offsets[at + 1]])
            weights = made.pool[side](tokens)[:, 0].softmax(0)
            wanted = made.map[side](weights @ tokens)
            torch.testing.assert_close(found[at], wanted / wanted.norm())
    assert not torch.allclose(made(hidden, offsets, "chunk"), made(hidden, offsets, "question"))


def test_gradients_reach_every_weight() -> None:
    """A loss over both sides moves all parameters."""
    made, hidden = head(), torch.randn(9, 32)
    offsets = torch.tensor([0, 4, 9])
    loss = (made(hidden, offsets) * torch.randn(2, 8)).sum() + made(hidden, offsets, "question")[:, 0].sum()
    loss.backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and (name.endswith("bias") or float(parameter.grad.norm()) > 0), (
            name
        )


def test_hidden_states_are_those_of_the_layer() -> None:
    """What the hook hands over is transformers' own hidden state; afterwards the hook is gone."""
    backbone, ids = tiny.backbone(), [1, *tiny.ids(40)]
    with torch.no_grad():
        plain = backbone.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    torch.testing.assert_close(hidden_of(backbone, ids, 1), plain[2][0], atol=1e-4, rtol=1e-4)
    with listening(backbone, 1) as found:
        pass
    hidden_of(backbone, ids, 1)
    assert found == []


def test_a_saved_head_gives_the_same_landmarks(tmp_path: Path) -> None:
    """Weights, layer and the model that it belongs to."""
    made, hidden, offsets = head(), torch.randn(5, 32), torch.tensor([0, 5])
    made.save(tmp_path)
    again = LandmarkHead.load(tmp_path, tiny.backbone().identity)
    assert again.config == made.config
    torch.testing.assert_close(again(hidden, offsets), made(hidden, offsets))
    with pytest.raises(ValueError, match="was trained on"):
        LandmarkHead.load(tmp_path, "other:adapter-none")
    (tmp_path / "landmark_head.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ValueError, match="no safetensors file"):
        LandmarkHead.load(tmp_path)


@pytest.mark.parametrize("offsets", [[0, 4], [1, 5], [0, 3, 3, 5], [0]])
def test_offsets_that_do_not_cover_the_tokens_are_refused(offsets: list[int]) -> None:
    """Short, late, with an empty chunk, none."""
    with pytest.raises(ValueError, match="offsets: given"):
        head()(torch.randn(5, 32), torch.tensor(offsets))


def test_wrong_widths_and_layers_name_both_sides() -> None:
    """Hidden states of another width; a layer that the decoder lacks."""
    with pytest.raises(ValueError, match=r"given shape \(5, 31\); the head takes \[tokens, 32\]"):
        head()(torch.randn(5, 31), torch.tensor([0, 5]))
    with pytest.raises(ValueError, match=r"given 4; .* has layers 0 to 3"):
        new_head(tiny.backbone(), layer=4)
