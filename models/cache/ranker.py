"""A learned ranker per KV head: which tokens later questions will look at, told from key and value alone.

An MLP of 519 features a token (idea: KVP, arXiv 2602.10238; features, shape and loss: our own measurements). It
is trained on recorded attention of later questions (infra/training/ranker.py) and belongs to one model's weights;
adapters on top of them are allowed. Scores rank tokens; their scale means nothing.

Shapes: `H` KV heads, `n` tokens, `d` head width, `f = 2 d + 7` features.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, gelu, normalize

from models.cache.spec import LayerSpec
from models.digests import read_sealed, sealed
from models.formats import FORMAT, KEY, first_line
from models.shipped import RANKER

NUM_PLACE_FEATURES = 3
FILE_NAME = "ranker.safetensors"
_KIND = "dysra kv ranker 1"


@dataclass(frozen=True, slots=True)
class Places:
    """Where tokens stand: `at [n]` counted from the first of `total` tokens."""

    at: Tensor
    total: int


def features(
    keys: Tensor, values: Tensor, mean_key: Tensor, turned: Tensor, mean_turned: Tensor, places: Places | None
) -> Tensor:
    """Features `[H, n, 2 d + 7]` of tokens: key before rotary, value, log lengths, cosines to mean keys, place.

    `mean_key, mean_turned [H, 1, d]` are means of unit keys before and after rotary embedding. Without `places`
    (a stream has no end) the last three are NaN, which the network reads as unknown.
    """
    keys, values = keys.float(), values.float()
    scalars = [
        keys.norm(dim=-1).clamp_min(1e-6).log(),
        values.norm(dim=-1).clamp_min(1e-6).log(),
        cosine_similarity(keys, mean_key, dim=-1),
        cosine_similarity(turned, mean_turned, dim=-1),
    ]
    if places is None:
        where = torch.full((NUM_PLACE_FEATURES, keys.shape[-2]), float("nan"), device=keys.device)
    else:
        at, total = places.at.float(), places.total
        where = torch.stack(((at + 1).log(), (total - at).clamp_min(1).log(), at / max(1, total)))
    scalars += [row.expand(keys.shape[:-1]) for row in where]
    return torch.cat((keys, values, torch.stack(scalars, dim=-1)), dim=-1)


def context_features(spec: LayerSpec, keys: Tensor, values: Tensor) -> Tensor:
    """Features of a whole context `[H, n, d]` whose first token stands at place 0."""
    n = keys.shape[1]
    spec.rotary.reserve(n)
    at = torch.arange(n, device=keys.device)
    turned = spec.rotary.turn(keys.float(), at)
    means = [normalize(x.float(), dim=-1).mean(1, keepdim=True) for x in (keys, turned)]
    return features(keys, values, means[0], turned, means[1], Places(at, n))


class LayerRanker(nn.Module):
    """One layer's network `f -> 64 -> 64 -> 1`, weights of its own for each KV head."""

    mean: Tensor
    scale: Tensor

    def __init__(self, num_heads: int, num_features: int, hidden: int = 64) -> None:
        super().__init__()
        sizes = (num_features, hidden, hidden, 1)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(num_heads, a, b) * (2 / a) ** 0.5) for a, b in itertools.pairwise(sizes)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(num_heads, 1, size)) for size in sizes[1:])
        self.register_buffer("mean", torch.zeros(num_heads, 1, num_features))
        self.register_buffer("scale", torch.ones(num_heads, 1, num_features))

    def standardise(self, samples: Tensor) -> None:
        """Take mean and deviation from `samples [H, n, f]`; a feature that never changes is left as it is."""
        self.mean.copy_(samples.mean(1, keepdim=True))
        deviation = samples.std(1, keepdim=True)
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, given: Tensor) -> Tensor:
        """Scores `[H, n]` of features `[H, n, f]`."""
        hidden = ((given - self.mean) / self.scale).nan_to_num(0.0)  # unknown counts as average
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = hidden @ weight + bias
            if layer < last:
                hidden = gelu(hidden)
        return hidden[..., 0]


class Ranker:
    """The networks of a model's full-attention layers, by layer index."""

    def __init__(self, layers: Mapping[int, LayerRanker], weights_of: str, about: Mapping[str, str]) -> None:
        """`weights_of` is `base_identity` of the model that it was trained on."""
        self.layers, self.weights_of, self.about = dict(layers), weights_of, dict(about)

    @torch.no_grad()
    def score(self, index: int, given: Tensor) -> Tensor:
        """Scores `[H, n]` of layer `index` for features `[H, n, f]`, or `[B, H, n]` for `[B, H, n, f]`."""
        if index not in self.layers:
            raise ValueError(f"the ranker has no layer {index}; it knows {', '.join(map(str, self.layers))}")
        layer = self.layers[index]
        if layer.mean.shape[0] != given.shape[-3] or layer.mean.shape[-1] != given.shape[-1]:
            raise ValueError(
                f"layer {index}: features of shape {tuple(given.shape)}, the ranker takes "
                f"[{layer.mean.shape[0]}, tokens, {layer.mean.shape[-1]}]"
            )
        return layer.to(given.device)(given)  # type: ignore[no-any-return]

    def check(self, identity: str) -> None:
        """Raise ValueError unless the ranker was trained on the weights that `identity` names."""
        if base_identity(identity) != self.weights_of:
            raise ValueError(
                f"the ranker was trained on {self.weights_of}, the model is {base_identity(identity)}; train one "
                "for it (python -m infra.training.ranker) or use another score"
            )

    def save(self, folder: Path) -> Path:
        """Write `ranker.safetensors` and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"layer{index}.{name}": tensor.detach().contiguous().cpu()
            for index, layer in self.layers.items()
            for name, tensor in layer.state_dict().items()
        }
        path = folder / FILE_NAME
        metadata = {
            "kind": _KIND,
            KEY: str(FORMAT),
            "weights_of": self.weights_of,
            "about": json.dumps(self.about, sort_keys=True),
        }
        save_file(tensors, str(path), metadata=sealed(tensors, metadata))
        return path

    @classmethod
    def load(cls, folder: Path) -> Ranker:
        """Read what `save` wrote; raises ValueError that names the file and what is wrong with it."""
        path = folder if folder.is_file() else folder / FILE_NAME
        if not path.is_file():
            raise ValueError(f"{path} does not exist; train a ranker: python -m infra.training.ranker --help")
        metadata, tensors = read_sealed(path, _KIND)
        layers: dict[int, LayerRanker] = {}
        try:
            for index in sorted({int(name.partition(".")[0].removeprefix("layer")) for name in tensors}):
                state = {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(f"layer{index}.")}
                heads, _, width = state["mean"].shape
                layers[index] = LayerRanker(heads, width, state["weights.0"].shape[-1])
                layers[index].load_state_dict(state)
                layers[index].requires_grad_(False).eval()
            return cls(layers, metadata["weights_of"], json.loads(metadata["about"]))
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged ({first_line(error)}); copy it again") from None


def find_ranker(name: str, identity: str) -> Ranker:
    """The ranker that a configuration names, for the model `identity`; raises ValueError if they do not fit.

    `shipped` is looked for beside the code and, where a job's upload leaves weights out, in the cache folder.
    """
    folder = Path(name)
    if name == "shipped":
        home = os.environ.get("DYSRA_CACHE") or Path.home() / ".cache" / "dysra"
        places = [RANKER, Path(home) / "weights" / RANKER.name]
        folder = next((place for place in places if (place / FILE_NAME).is_file()), RANKER)
    found = Ranker.load(folder)
    found.check(identity)
    return found


def base_identity(identity: str) -> str:
    """A backbone's identity without its adapter."""
    return identity.rpartition(":adapter-")[0] or identity


def kept_mass(scores: Tensor, mass: Tensor, share: float) -> float:
    """Share of `mass [H, n]` on the `share` of tokens with the highest scores, mean over heads."""
    count = max(1, int(scores.shape[1] * share))
    best = scores.topk(count, dim=1).indices
    return float((mass.gather(1, best).sum(1) / mass.sum(1).clamp_min(1e-12)).mean())


def log_rank_loss(drawn: Tensor, others: Tensor, num_tokens: int) -> Tensor:
    """Mean log of the soft rank of tokens drawn in proportion to their mass; "logauc" of the notes.

    `drawn [H, a]` scores of the drawn tokens, `others [H, b]` of tokens drawn evenly from `num_tokens`. It is mass
    kept, summed over all budgets on a logarithmic scale, with the step of the rank smoothed.
    """
    above = torch.sigmoid(others[:, None] - drawn[..., None]).mean(-1) * num_tokens
    return (1 + above).log().mean()
