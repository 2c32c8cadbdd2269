"""A small head on a middle layer: every chunk that passes gets a landmark, every question a query, unit vectors.

One head serves a session's cache, its past and the store: what a question needs is the landmark of highest dot
product, without a second model (MSA, arXiv 2603.23516, routes in the latter half of its layers; ours is one
shared landmark a chunk). The decoder is not patched: a forward hook hands over the layer's output.

Shapes: `n` tokens, `d` width of the decoder, `r` width of a landmark, `c` chunks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from models.cache.ranker import base_identity
from models.digests import read_sealed, sealed
from models.formats import FORMAT, KEY, first_line

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone

Side = Literal["chunk", "question"]
FILE_NAME = "landmark_head.safetensors"
_KIND = "dysra landmark head 1"


@dataclass(frozen=True, kw_only=True, slots=True)
class LandmarkHeadConfig:
    """Shape of a head and the layer that it listens to."""

    width: int = field(metadata={"help": "d, the decoder's hidden width"})
    layer: int = field(metadata={"help": "index of the decoder layer whose output is read, from 0"})
    landmark: int = field(default=128, metadata={"help": "r, numbers of a landmark"})
    weights_of: str = field(
        default="", metadata={"help": "identity of the model, without an adapter; empty: any"}
    )

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("layer", 0), ("landmark", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: given {value!r}; allowed: whole numbers of at least {least}")


class LandmarkHead(nn.Module):
    """Pools the tokens of each chunk by learned weights and maps them to a unit vector.

    Both sides pool and map by weights of their own; mapping starts tied, so that an untrained head already finds
    what resembles the question.
    """

    def __init__(self, config: LandmarkHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.pool = nn.ModuleDict({side: nn.Linear(config.width, 1) for side in ("chunk", "question")})
        self.map = nn.ModuleDict(
            {side: nn.Linear(config.width, config.landmark, bias=False) for side in ("chunk", "question")}
        )
        for side in ("chunk", "question"):
            for parameter in self.pool[side].parameters():
                nn.init.zeros_(parameter)
        for parameter in self.map["chunk"].parameters():
            nn.init.orthogonal_(parameter)
        self.map["question"].load_state_dict(self.map["chunk"].state_dict())

    def forward(self, hidden: Tensor, offsets: Tensor, side: Side = "chunk") -> Tensor:
        """Unit vectors `[c, r]` of chunks of `hidden [n, d]`: chunk i is tokens `offsets[i] … offsets[i + 1] - 1`.

        `offsets [c + 1]` ascend from 0 to n and no chunk is empty; raises ValueError otherwise.
        """
        count = len(offsets) - 1
        if hidden.ndim != 2 or hidden.shape[1] != self.config.width:
            raise ValueError(
                f"hidden: given shape {tuple(hidden.shape)}; the head takes [tokens, {self.config.width}]"
            )
        sizes = offsets.diff()
        if count < 1 or int(offsets[0]) != 0 or int(offsets[-1]) != len(hidden) or bool((sizes < 1).any()):
            raise ValueError(
                f"offsets: given {offsets.tolist()[:8]}…; allowed: ascending from 0 to the {len(hidden)} tokens"
            )
        normed = self.norm(hidden.float())
        owner = torch.repeat_interleave(torch.arange(count, device=hidden.device), sizes)
        scores = self.pool[side](normed)[:, 0]
        highest = torch.full((count,), -torch.inf, device=hidden.device)
        highest = highest.scatter_reduce(0, owner, scores.detach(), "amax")
        weights = (scores - highest[owner]).exp()
        total = weights.new_zeros(count).index_add(0, owner, weights)
        pooled = normed.new_zeros(count, normed.shape[1]).index_add(
            0, owner, normed * (weights / total[owner])[:, None]
        )
        return normalize(self.map[side](pooled), dim=-1)

    def save(self, folder: Path) -> Path:
        """Write `landmark_head.safetensors` and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE_NAME
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.state_dict().items()}
        metadata = {"kind": _KIND, KEY: str(FORMAT), "config": json.dumps(asdict(self.config))}
        save_file(tensors, str(path), metadata=sealed(tensors, metadata))
        return path

    @classmethod
    def load(cls, folder: Path, identity: str = "") -> LandmarkHead:
        """Read what `save` wrote; raises ValueError for damage, or for a head of another model than `identity`."""
        path = folder if folder.is_file() else folder / FILE_NAME
        if not path.is_file():
            raise ValueError(f"{path} does not exist; train a landmark head and name its folder")
        metadata, tensors = read_sealed(path, _KIND)
        try:
            config = LandmarkHeadConfig(**json.loads(metadata["config"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({first_line(error)}); copy it again") from None
        if identity and config.weights_of and base_identity(identity) != config.weights_of:
            raise ValueError(
                f"the landmark head was trained on {config.weights_of}, the model is {base_identity(identity)}"
            )
        head = cls(config)
        try:
            head.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{path} is damaged ({first_line(error)}); copy it again") from None
        return head.requires_grad_(False).eval()


def middle_layer(backbone: HfBackbone) -> int:
    """The layer a head listens to unless told otherwise: two thirds up, where hidden states retrieve."""
    return (2 * len(backbone.specs)) // 3


def new_head(backbone: HfBackbone, layer: int | None = None, landmark: int = 128) -> LandmarkHead:
    """An untrained head for a backbone; raises ValueError for a layer that it does not have."""
    layer = middle_layer(backbone) if layer is None else layer
    if not 0 <= layer < len(backbone.specs):
        raise ValueError(
            f"layer: given {layer}; {backbone.identity} has layers 0 to {len(backbone.specs) - 1}"
        )
    width = int(backbone.model.config.get_text_config(decoder=True).hidden_size)
    config = LandmarkHeadConfig(
        width=width, layer=layer, landmark=landmark, weights_of=base_identity(backbone.identity)
    )
    return LandmarkHead(config).to(backbone.device)


@contextmanager
def listening(backbone: HfBackbone, layer: int) -> Iterator[list[Tensor]]:
    """Collect the output `[T, d]` of a decoder layer of every step that is computed inside, in order."""
    found: list[Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        found.extend(hidden.detach())

    hook = backbone.model.get_decoder().layers[layer].register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


@torch.no_grad()
def hidden_of(backbone: HfBackbone, ids: list[int], layer: int) -> Tensor:
    """Hidden states `[n, d]` of a text read by itself, after `layer`."""
    from models.cache.rotating import CacheView

    with listening(backbone, layer) as found:
        backbone.run(ids, CacheView.empty(backbone.specs, len(ids)))
    return torch.cat(found)
