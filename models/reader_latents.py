"""A reader's loss with its compressed cache in the path: answers whose context is held as a session holds it.

The context is read exactly; its pairs in the full-attention layers are then what `RotatingLayer` would hold at a
share of the bytes (low-rank latents and a ring, or heavy hitters by a ranker and a ring), and questions are read
against that. Which pairs stay, and the subspace of a block, are chosen without a gradient; what is held is a linear
function of the context's pairs, so the gradient reaches every weight that made them.

Shapes: `H` key heads, `N` context tokens, `m` held pairs, `d` head width, `B` questions of the context, `T` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.cache_utils import Cache

from models.cache.config import CacheConfig
from models.cache.layers import MemoryLayer
from models.cache.ranker import Ranker, context_features
from models.cache.spec import LayerSpec
from models.compared.ours import Ours
from models.reader_training import Batch

# cuDNN's attention, which torch prefers on Hopper, refuses masks of odd shapes when it runs
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
FORMS = ("full", "latents", "hitters")


@dataclass(frozen=True, kw_only=True, slots=True)
class Squeeze:
    """How the full-attention layers of a context are held."""

    form: str = field(default="latents", metadata={"help": ", ".join(FORMS)})
    keep: float = field(default=0.1, metadata={"help": "share of the full layers' bytes, 0 to 1"})

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form: given {self.form!r}; allowed: {', '.join(FORMS)}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep: given {self.keep}; allowed: above 0, at most 1")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a layer holds of its context: stream `positions [H, m]`, `places [H, m]`, the next token's place.

    From the `first`-th held pair on, `rows [H, blocks, n, r]` (of keys, of values) are the orthonormal columns that
    blocks of latents are projected on; None where all pairs are raw.
    """

    positions: Tensor
    places: Tensor
    next_place: int
    first: int = 0
    rows: tuple[Tensor, Tensor] | None = None

    def rebuild(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The held keys (not turned) and values `[H, m, d]` of the context's pairs `[H, N, d]`; differentiable."""
        which = self.positions[..., None].expand(-1, -1, keys.shape[-1])
        found = [pair.float().gather(1, which) for pair in (keys, values)]
        if self.rows is None:
            return found[0], found[1]
        out = []
        for pair, rows in zip(found, self.rows, strict=True):
            heads, blocks, n, _ = rows.shape
            end = self.first + blocks * n
            block = pair[:, self.first : end].reshape(heads, blocks, n, -1)
            latent = rows @ (rows.transpose(-1, -2) @ block)
            out.append(torch.cat((pair[:, : self.first], latent.flatten(1, 2), pair[:, end:]), 1))
        return out[0], out[1]


def leading_columns(blocks: Tensor, rank: int, iterations: int = 12) -> Tensor:
    """About the `rank` leading left singular vectors `[H, b, n, r]` of each block `[H, b, n, d]`, all at once.

    Orthogonal iteration in double, each step made orthonormal by Cholesky's factor: on a GPU an eigenproblem a
    block takes 13 ms, one after another. The columns span what the exact ones do up to singular values that are
    nearly equal: what they leave out of a block is that of the exact ones to 2% (tested).
    """
    gram = (blocks @ blocks.transpose(-1, -2)).double()
    chance = torch.Generator().manual_seed(0)
    start = torch.randn(gram.shape[-1], rank, generator=chance, dtype=torch.float64).to(gram.device)
    columns = start.expand(*gram.shape[:-2], -1, -1)
    unit = torch.eye(rank, dtype=torch.float64, device=gram.device)
    for step in range(iterations + 1):
        columns = gram @ columns if step < iterations else columns
        inner = columns.transpose(-1, -2) @ columns
        # a block of lower rank than asked for: columns that are nothing stay finite
        size = inner.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)[..., None, None]
        factor, _ = torch.linalg.cholesky_ex(inner + 1e-12 * size * unit)
        columns = torch.linalg.solve_triangular(factor, columns.transpose(-1, -2), upper=False).transpose(
            -1, -2
        )
    return columns.to(blocks.dtype)


@torch.no_grad()
def choose(
    spec: LayerSpec, keys: Tensor, values: Tensor, squeeze: Squeeze, ranker: Ranker | None = None
) -> Kept:
    """What is held of a layer's pairs `[H, N, d]`; places are those of `RotatingLayer` with the same budget.

    Heavy hitters are the highest scored of all evicted tokens, where the cache chooses block by block.
    """
    heads, count = keys.shape[:2]
    spec = replace(spec, dtype=torch.float32)
    every = torch.arange(count, device=keys.device).expand(heads, -1)
    if squeeze.form == "full":
        return Kept(every, every, count)
    scorer = "ranker" if squeeze.form == "hitters" else ""
    budget = int(squeeze.keep * 2 * heads * spec.head_dim * 4 * count)
    config = Ours(scorer=scorer).config(spec, count, budget)
    blocks = evicted_blocks(config, count)
    sinks, gone = min(config.sinks, count), config.sinks + blocks * config.evict_block
    if not blocks:
        return Kept(every, every, count)
    if config.has_latents:
        held = min(blocks, config.latent_blocks)
        shift = (blocks - held) * config.evict_block
        positions = torch.cat((every[:, :sinks], every[:, sinks + shift :]), 1)
        places = torch.cat((every[:, :sinks], every[:, sinks + shift :] - shift), 1)
        span = slice(sinks + shift, gone)
        ranks = config.key_and_value_ranks
        rows = tuple(
            _subspace(pair[:, span].float().reshape(heads, held, config.evict_block, -1), rank)
            for pair, rank in zip((keys, values), ranks, strict=True)
        )
        return Kept(positions, places, count - shift, sinks, cast("tuple[Tensor, Tensor]", rows))
    heavy = min(config.heavy, blocks * config.heavy_per_block)
    shift = max(0, gone - config.sinks - config.heavy)
    ring = every[:, gone:]
    parts, stands = [every[:, :sinks]], [every[:, :sinks]]
    if heavy:
        if ranker is None:
            raise ValueError(
                "form hitters: given no ranker; give the model's (models.cache.ranker.find_ranker)"
            )
        scores = ranker.score(spec.index, context_features(spec, keys.float(), values.float()))
        best = scores[:, sinks:gone].topk(heavy, dim=1).indices.sort(dim=1).values + sinks
        by_age = torch.arange(heavy, device=keys.device) + config.sinks
        parts.append(best)
        stands.append(torch.maximum(best - shift, by_age))
    positions, places = torch.cat((*parts, ring), 1), torch.cat((*stands, ring - shift), 1)
    return Kept(positions, places, count - shift)


def evicted_blocks(config: CacheConfig, num_tokens: int) -> int:
    """Blocks that have left a `RotatingLayer`'s ring when it was given so many tokens, step by step."""
    blocks = 0
    for start in range(0, num_tokens, config.read_block):
        in_ring = max(0, start - config.sinks) - blocks * config.evict_block
        new = min(config.read_block, num_tokens - start)
        new -= max(0, min(new, config.sinks - start))
        while in_ring + new > config.ring:
            blocks, in_ring = blocks + 1, in_ring - config.evict_block
    return blocks


def _subspace(blocks: Tensor, rank: int) -> Tensor:
    """The `rank` leading left singular vectors `[H, b, n, r]` of each block `[H, b, n, d]`, exact on a CPU."""
    if blocks.is_cuda:
        return leading_columns(blocks, rank)
    _, vectors = torch.linalg.eigh((blocks @ blocks.transpose(-1, -2)).double())
    leading: Tensor = vectors[..., -rank:].flip(-1).to(blocks.dtype)
    return leading


class ContextLayer(MemoryLayer):  # type: ignore[no-untyped-call]
    """Reads a context in one step and keeps its pairs as they came, with their gradients.

    No mask of all tokens by all tokens is made: it would be kept for the gradient, layer by layer.
    """

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self.pair: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See MemoryLayer; the whole context comes in one step."""
        self.pair = (key_states[0], value_states[0])
        return key_states, value_states

    def attend_rows(self, query: Tensor, scaling: float, softcap: float | None) -> Tensor:
        """Causal attention `[1, heads, N, d]` of queries that are not turned, within the layer's window."""
        _refuse_cap(self.spec, softcap)
        assert self.pair is not None
        heads, count = query.shape[1:3]
        self.spec.rotary.reserve(count)
        places = torch.arange(count, device=query.device)
        groups = heads // self.spec.num_kv_heads
        turned = self.spec.rotary.turn(query, places)
        keys, values = (
            pair[None].to(query.dtype).repeat_interleave(groups, 1)
            for pair in (self.spec.rotary.turn(self.pair[0], places), self.pair[1])
        )
        window = self.spec.window
        if window is None or count <= window:
            return F.scaled_dot_product_attention(turned, keys, values, is_causal=True, scale=scaling)
        return _banded(turned, keys, values, window, scaling)

    def get_seq_length(self) -> int:
        """Nothing is held before the context."""
        return 0

    def held(self, squeeze: Squeeze, ranker: Ranker | None) -> QuestionLayer:
        """What questions read of it: a sliding layer its window, a full one what `squeeze` leaves."""
        assert self.pair is not None
        keys, values = self.pair
        if self.spec.window is None:
            # subspaces and latents in float32, as the cache makes them, whatever the model computes in
            with torch.autocast(keys.device.type, enabled=False):
                kept = choose(self.spec, keys.detach(), values.detach(), squeeze, ranker)
                keys, values = kept.rebuild(keys, values)
            places, next_place = kept.places, kept.next_place
        else:
            keys, values = (pair[:, -(self.spec.window - 1) :] for pair in (keys, values))
            next_place = keys.shape[1]
            places = torch.arange(next_place, device=keys.device).expand(keys.shape[0], -1)
        return QuestionLayer(self.spec, keys, values, places, next_place)


class QuestionLayer(MemoryLayer):  # type: ignore[no-untyped-call]
    """Pairs `[H, m, d]` held of a context, read by `B` questions side by side, each with its own tokens behind."""

    def __init__(
        self, spec: LayerSpec, keys: Tensor, values: Tensor, places: Tensor, next_place: int
    ) -> None:
        super().__init__(spec)
        spec.rotary.reserve(next_place + 1024)
        self._held = (spec.rotary.turn(keys, places), values)
        self.places, self.next_place = places, next_place
        self._own: tuple[Tensor, Tensor] | None = None

    def get_seq_length(self) -> int:
        """Pairs held of the context."""
        return int(self.places.shape[1])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take the questions' pairs `[B, H, T, d]`; `attend_rows` reads them with what is held."""
        self._own = (key_states, value_states)
        return key_states, value_states

    def attend_rows(self, query: Tensor, scaling: float, softcap: float | None) -> Tensor:
        """Attention `[B, heads, T, d]` of queries that are not turned, over held pairs and the questions' own."""
        _refuse_cap(self.spec, softcap)
        assert self._own is not None
        rows, heads, steps, dim = query.shape
        own = torch.arange(self.next_place, self.next_place + steps, device=query.device)
        self.spec.rotary.reserve(self.next_place + steps)
        turn = self.spec.rotary.turn
        keys, values = (
            torch.cat((held.to(query.dtype).expand(rows, -1, -1, -1), new.to(query.dtype)), 2)
            for held, new in ((self._held[0], turn(self._own[0], own)), (self._held[1], self._own[1]))
        )
        causal = own[:, None] >= own  # [T, T]
        seen = torch.ones(steps, self.get_seq_length(), dtype=torch.bool, device=query.device)
        if self.spec.window is not None:
            causal &= own > own[:, None] - self.spec.window
            seen = self.places[0] > own[:, None] - self.spec.window
        mask = torch.cat((seen, causal), 1)
        groups = heads // keys.shape[1]
        grouped = turn(query, own).reshape(rows, -1, groups * steps, dim)
        out = F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=mask.repeat(groups, 1), scale=scaling
        )
        return out.reshape(rows, heads, steps, dim)


def _banded(query: Tensor, keys: Tensor, values: Tensor, window: int, scaling: float) -> Tensor:
    """Attention of `[1, heads, N, d]` over the last `window` keys of each query, itself the last: in blocks.

    A block of `window` queries sees its own keys and the block before it.
    """
    heads, count, dim = query.shape[1:]
    blocks = -(-count // window)
    rest = blocks * window - count
    rows = F.pad(query[0], (0, 0, 0, rest)).reshape(heads, blocks, window, dim).transpose(0, 1)
    seen = []
    for given in (keys, values):
        cut = F.pad(given[0], (0, 0, window, rest)).reshape(heads, blocks + 1, window, dim)
        seen.append(torch.cat((cut[:, :-1], cut[:, 1:]), 2).transpose(0, 1))
    at = torch.arange(window, device=query.device)[:, None]
    far = torch.arange(2 * window, device=query.device)
    mask = ((far > at) & (far <= at + window)).expand(blocks, 1, -1, -1).clone()
    mask[0, ..., :window] = False  # nothing is before the first block
    out = F.scaled_dot_product_attention(rows, seen[0], seen[1], attn_mask=mask, scale=scaling)
    return out.transpose(0, 1).reshape(1, heads, blocks * window, dim)[:, :, :count]


def _refuse_cap(spec: LayerSpec, softcap: float | None) -> None:
    if softcap is not None:
        raise ValueError(
            f"layer {spec.index} caps its logits (softcap {softcap}); train a reader without a cap"
        )


def read_context(model: nn.Module, specs: Sequence[LayerSpec], ids: Tensor) -> list[ContextLayer]:
    """The layers of a context `ids [N]` read exactly, with gradients where they are on."""
    layers = [ContextLayer(spec) for spec in specs]
    _decode(model, layers, ids[None])
    return layers


def latent_answer_loss(
    model: nn.Module, specs: Sequence[LayerSpec], context: Tensor, questions: Batch, squeeze: Squeeze,
    ranker: Ranker | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean cross entropy of the answers' tokens given the squeezed context, and the share of them right (argmax).

    `model` is a decoder with our attention (`models.hf.loading.load`) or a peft model around one, `specs` its
    layers, `context [N]` its ids; `questions` are rows of question and answer (`models.reader_training.collate`).
    """
    return held_answer_loss(model, read_context(model, specs, context), questions, squeeze, ranker)


def held_answer_loss(
    model: nn.Module, layers: Sequence[ContextLayer], questions: Batch, squeeze: Squeeze,
    ranker: Ranker | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same over a context that `read_context` has read: once read, it may be held in several ways."""
    held = [layer.held(squeeze, ranker) for layer in layers]
    hidden = _decode(model, held, questions.ids)
    logits = _base(model).lm_head(hidden[questions.predicts]).float()
    targets = questions.ids[:, 1:][questions.predicts[:, :-1]]
    return F.cross_entropy(logits, targets), (logits.argmax(-1) == targets).float().mean()


def _decode(model: nn.Module, layers: Sequence[MemoryLayer], ids: Tensor) -> Tensor:
    memory = Cache(layers=list(layers))
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "position_ids": torch.zeros_like(ids),  # the layers turn keys and queries (models/hf/attention.py)
        "past_key_values": memory,
        "use_cache": True,
        "memory": memory,
    }
    with sdpa_kernel(BACKENDS):
        hidden: Tensor = _base(model).get_decoder()(**inputs).last_hidden_state
    return hidden


def _base(model: nn.Module) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
