"""Learned linear readers of latents: what the projection and the autoencoder share, and their file.

A code `z [H, n, r]` a token is read as `K ≈ z D_k`, `V ≈ z D_v` with matrices that belong to the model, not to a
block: a block costs its codes alone, and attention reads them without unpacking as it reads SVD's factors. Columns
are nested: a cache of a smaller rank takes the first ones. Trained by infra/training/compressors.py.

Shapes: `H` KV heads, `n` tokens, `d` head width, `r` rank.
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor, nn

from models.cache.compressor import Compressor, Factors, SharedBases
from models.cache.config import CacheConfig
from models.cache.ranker import base_identity
from models.cache.spec import LayerSpec
from models.digests import read_sealed, sealed
from models.formats import FORMAT, KEY, first_line
from models.shipped import COMPRESSORS


class LayerCodes(nn.Module):
    """One layer's encoder and its linear decoders. `joint`: one code stands for key and value."""

    joint: ClassVar[bool]
    key_decoder: nn.Parameter
    value_decoder: nn.Parameter

    @property
    def most_rank(self) -> int:
        """The largest rank that was trained."""
        return int(self.key_decoder.shape[1])

    @abstractmethod
    def encode(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Codes `[H, n, R]` of keys and of values `[H, n, d]` (joint: the same tensor twice)."""

    def read(self, keys: Tensor, values: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Keys and values as they are read back from `rank` columns."""
        key, value = (code[..., :rank] for code in self.encode(keys, values))
        return key @ self.key_decoder[:, :rank], value @ self.value_decoder[:, :rank]


class LearnedWeights:
    """The layers of one model, by index. `weights_of`: identity of the model, adapters left out."""

    def __init__(
        self, kind: str, layers: Mapping[int, LayerCodes], weights_of: str, about: Mapping[str, str]
    ):
        self.kind, self.layers, self.weights_of, self.about = kind, dict(layers), weights_of, dict(about)

    def save(self, folder: Path) -> Path:
        """Write `<kind>.safetensors` in 16 bits and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.kind}.safetensors"
        tensors = {
            f"layer{index}.{name}": tensor.detach().half().contiguous().cpu()
            for index, layer in self.layers.items()
            for name, tensor in layer.state_dict().items()
        }
        metadata = {"kind": self.kind, "weights_of": self.weights_of, "about": json.dumps(self.about)}
        metadata[KEY] = str(FORMAT)
        save_file(tensors, str(path), metadata=sealed(tensors, metadata))
        return path

    @classmethod
    def load(cls, kind: str, layer_type: type[LayerCodes], folder: Path) -> LearnedWeights:
        """Read what `save` wrote; raises ValueError that names the file and what is wrong with it."""
        path = folder if folder.is_file() else folder / f"{kind}.safetensors"
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist; train it (python -m infra.training.compressors --help) or use another "
                "cache.compressor"
            )
        metadata, stored = read_sealed(path, kind)
        tensors = {name: tensor.float() for name, tensor in stored.items()}
        layers: dict[int, LayerCodes] = {}
        try:
            for index in sorted({int(name.partition(".")[0].removeprefix("layer")) for name in tensors}):
                state = {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(f"layer{index}.")}
                heads, rank, dim = state["key_decoder"].shape
                layers[index] = layer_type(heads, dim, rank)
                layers[index].load_state_dict(state)
                layers[index].requires_grad_(False).eval()
            return cls(kind, layers, metadata["weights_of"], json.loads(metadata["about"]))
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged ({first_line(error)}); copy it again") from None

    def check(self, identity: str) -> None:
        """Raise ValueError unless trained on the weights that `identity` names."""
        if base_identity(identity) != self.weights_of:
            raise ValueError(
                f"the {self.kind} was trained on {self.weights_of}, the model is {base_identity(identity)}; train "
                "one for it (python -m infra.training.compressors) or use cache.compressor svd"
            )

    @property
    def stamp(self) -> int:
        """A number that differs for different weights."""
        digest = xxhash.xxh3_64()
        for index, layer in sorted(self.layers.items()):
            for name, tensor in sorted(layer.state_dict().items()):
                digest.update(f"{index}.{name}".encode())
                digest.update(tensor.detach().half().cpu().contiguous().view(torch.uint8).numpy().data)
        return int(digest.intdigest() >> 1)


def learned_folder(name: str) -> Path:
    """Where the weights that a configuration names are: `shipped`, or a folder."""
    if name != "shipped":
        return Path(name)
    home = Path(os.environ.get("DYSRA_CACHE") or Path.home() / ".cache" / "dysra")
    places = (COMPRESSORS, home / "weights" / COMPRESSORS.name)
    return next((place for place in places if place.is_dir()), COMPRESSORS)


class LearnedCompressor(Compressor):
    """Blocks as codes; the readers are the model's."""

    kind: ClassVar[str]
    layer_type: ClassVar[type[LayerCodes]]

    def __init__(self, spec: LayerSpec, config: CacheConfig) -> None:
        super().__init__(spec, config)
        weights = spec.learned
        if weights is None or weights.kind != self.kind:
            raise ValueError(
                f"cache.compressor {self.kind} needs its trained weights; make the cache by backbone.new_cache"
            )
        if spec.index not in weights.layers:
            known = ", ".join(map(str, weights.layers))
            raise ValueError(f"the {self.kind} has no layer {spec.index}; it knows {known}")
        self.layer = weights.layers[spec.index].to(spec.device)
        heads, most, dim = self.layer.key_decoder.shape
        if (heads, dim) != (spec.num_kv_heads, spec.head_dim):
            raise ValueError(
                f"the {self.kind} of layer {spec.index} is for {heads} KV heads of width {dim}; the model's layer "
                f"has {spec.num_kv_heads} of width {spec.head_dim}"
            )
        if max(self.key_rank, self.value_rank) > most:
            raise ValueError(
                f"cache.rank is {max(self.key_rank, self.value_rank)}, the {self.kind} of layer {spec.index} was "
                f"trained up to {most}; lower rank"
            )
        if self.layer.joint and self.key_rank != self.value_rank:
            raise ValueError(
                f"cache.value_rank is {self.value_rank} and cache.rank {self.key_rank}: the {self.kind} has one "
                "code for key and value; leave value_rank 0"
            )
        if config.key_frame != "before_rotary":
            raise ValueError(
                f"cache.key_frame is {config.key_frame}; the {self.kind} was trained before_rotary"
            )
        self._stamp = weights.stamp
        self._stamped = torch.tensor([self._stamp], dtype=torch.int64, device=spec.device)

    def tensors(self) -> dict[str, Tensor]:
        """See Compressor.tensors: which weights made the codes."""
        return {"stamp": self._stamped}

    def reset(self) -> None:
        """See Compressor.reset."""
        self._stamped.fill_(self._stamp)

    def check(self) -> None:
        """See Compressor.check."""
        if int(self._stamped) != self._stamp:
            raise ValueError(
                f"the codes of layer {self.spec.index} were made by another {self.kind}; load the weights that "
                "made them, or read the stream again"
            )

    def shared(self) -> SharedBases:
        """See Compressor.shared."""
        dtype = self.spec.dtype
        return SharedBases(
            self.layer.key_decoder[:, : self.key_rank].to(dtype),
            self.layer.value_decoder[:, : self.value_rank].to(dtype),
            self.layer.joint,
        )

    @torch.no_grad()
    def compress(self, keys: Tensor, values: Tensor) -> tuple[Factors, Factors]:
        """See Compressor.compress."""
        key, value = self.layer.encode(keys, values)
        return (
            Factors(key[..., : self.key_rank], self.layer.key_decoder[:, : self.key_rank]),
            Factors(value[..., : self.value_rank], self.layer.value_decoder[:, : self.value_rank]),
        )
