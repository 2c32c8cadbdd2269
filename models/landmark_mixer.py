"""A small mixer over a frozen decoder's hidden states: what a causal decoder read forwards is read both ways here.

A session has the hidden states of what it reads anyhow; two small layers of attention within a text, over the
states after several decoder layers, make of them what a landmark head can pool. No second pass of the decoder.

Shapes: `B` texts, `T` tokens of the longest, `d` width of the decoder, `w` width of the mixer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.digests import read_sealed, sealed
from models.formats import FORMAT, KEY, first_line

FILE_NAME = "landmark_mixer.safetensors"
_KIND = "dysra landmark mixer 1"


@dataclass(frozen=True, kw_only=True, slots=True)
class MixerConfig:
    """Shape of a mixer and the layers that it listens to."""

    width: int = field(metadata={"help": "d, the decoder's hidden width"})
    layers: tuple[int, ...] = field(metadata={"help": "decoder layers whose outputs are read, from 0"})
    inner: int = field(default=512, metadata={"help": "w, width of the mixer; a multiple of heads"})
    heads: int = field(default=8, metadata={"help": "attention heads"})
    depth: int = field(default=2, metadata={"help": "layers of the mixer"})

    def __post_init__(self) -> None:
        for name in ("width", "inner", "heads", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if not self.layers or min(self.layers) < 0:
            raise ValueError(f"layers: given {self.layers}; allowed: one or more, each 0 or more")
        if self.inner % self.heads:
            raise ValueError(f"inner: given {self.inner}; allowed: a multiple of heads ({self.heads})")


class _Block(nn.Module):
    """Attention among the tokens of a text, then a feed-forward layer; each on normed input, added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.taken = nn.Linear(width, 3 * width, bias=False)
        self.given = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, steps, width = x.shape
        parts = self.taken(self.before(x)).view(rows, steps, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        x = x + self.given(seen.transpose(1, 2).reshape(rows, steps, width))
        mixed: Tensor = x + self.down(F.gelu(self.up(self.between(x))))
        return mixed


class LandmarkMixer(nn.Module):
    """See the module's text. With `checkpointing` set, its blocks are computed again for the gradient."""

    checkpointing = False

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.config = config
        self.norms = nn.ModuleList(nn.RMSNorm(config.width, eps=1e-6) for _ in config.layers)
        self.ins = nn.ModuleList(nn.Linear(config.width, config.inner, bias=False) for _ in config.layers)
        self.blocks = nn.ModuleList(_Block(config.inner, config.heads) for _ in range(config.depth))

    def forward(self, states: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Mixed states [B, T, w] of `states`, [B, T, d] of each layer; `mask` [B, T] is true where tokens are.

        A text's states depend on its own tokens alone, whatever stands beside it; raises ValueError for another
        number of layers than the mixer listens to.
        """
        if len(states) != len(self.ins):
            raise ValueError(f"states: given {len(states)}; the mixer listens to layers {self.config.layers}")
        dtype = next(self.parameters()).dtype
        x = sum(
            each(norm(state.to(dtype)))
            for each, norm, state in zip(self.ins, self.norms, states, strict=True)
        )
        assert isinstance(x, Tensor)
        mixed: Tensor = x
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                mixed = checkpoint(block, mixed, mask, use_reentrant=False)
            else:
                mixed = block(mixed, mask)
        return mixed

    def save(self, folder: Path) -> Path:
        """Write `landmark_mixer.safetensors` (weights in bf16) and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE_NAME
        tensors = {name: t.detach().bfloat16().contiguous().cpu() for name, t in self.state_dict().items()}
        metadata = {"kind": _KIND, KEY: str(FORMAT), "config": json.dumps(asdict(self.config))}
        save_file(tensors, str(path), metadata=sealed(tensors, metadata))
        return path

    @classmethod
    def load(cls, folder: Path) -> LandmarkMixer:
        """Read what `save` wrote; ValueError where it is missing, damaged, of another kind or a later version."""
        path = folder / FILE_NAME
        if not path.is_file():
            raise ValueError(f"{path} does not exist; train a landmark mixer and name its folder")
        metadata, tensors = read_sealed(path, _KIND)
        try:
            told = json.loads(metadata["config"])
            mixer = cls(MixerConfig(**(told | {"layers": tuple(told["layers"])})))
            mixer.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged ({first_line(error)}); copy it again") from None
        return mixer.requires_grad_(False).eval()


def spread_layers(top: int, count: int = 3) -> tuple[int, ...]:
    """`count` layers up to `top`, evenly apart, the last of them `top` (fewer where there are no more)."""
    step = (top + 1) / count
    return tuple(sorted({max(0, round(step * (at + 1)) - 1) for at in range(count)} | {top}))
