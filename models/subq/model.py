"""The sub-quadratic language model: lower blocks, chunk encoder, and upper blocks that read chosen chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.subq.chunks import Around, ChunkCodes, build_encoder, neighbourhood
from models.subq.config import SubqConfig
from models.subq.copying import Copied, CopyHead
from models.subq.layers import FeedForward, rms
from models.subq.mixers import MixerState, build_mixer
from models.subq.retrieval_attention import Chosen, ChunkReader
from models.subq.router import Forced, Routing, route, shifted


class BlockState(NamedTuple):
    """What a block carries: the last taps - 1 inputs of its convolution [B, taps - 1, D], and its mixer's state."""

    inputs: Tensor
    mixer: MixerState


class Block(nn.Module):
    """Causal convolution over a few tokens, mixer, in upper blocks the chosen chunks, feed-forward network."""

    def __init__(self, config: SubqConfig, mixer: str, reads: bool) -> None:
        super().__init__()
        self.conv = nn.Parameter(torch.randn(config.taps, config.width) * 0.1)
        self.mixer = build_mixer(mixer, config)
        self.reader = ChunkReader(config) if reads else None
        self.feed_forward = FeedForward(config.width, config.feed_forward)

    def forward(
        self, x: Tensor, state: BlockState | None = None, chosen: Chosen | None = None
    ) -> tuple[Tensor, BlockState]:
        """x [B, T, D] -> (x [B, T, D], state after the last token)."""
        h = rms(x)
        taps, length = self.conv.shape[0], h.shape[1]
        past = h.new_zeros(h.shape[0], taps - 1, h.shape[2]) if state is None else state.inputs.to(h.dtype)
        joined = torch.cat((past, h), 1)
        weight = self.conv.to(h.dtype)
        mixed = h + sum(weight[tap] * joined[:, tap : tap + length] for tap in range(taps))
        y, carried = self.mixer(mixed, None if state is None else state.mixer)
        x = x + y
        if self.reader is not None and chosen is not None:
            shared = self.mixer.project if self.reader.query is None else None
            x = x + self.reader(x, chosen, shared)
        return x + self.feed_forward(x), BlockState(joined[:, length:], carried)


class Output(NamedTuple):
    """hidden [B, T, D] (normalised, for `logits`), the chunks' codes, what each query chose, the lower half's."""

    hidden: Tensor
    codes: ChunkCodes | None
    routing: Routing | None
    lower: Tensor | None = None


class SubqModel(nn.Module):
    """See SubqConfig. Embedding and output share their weights.

    With `checkpointing` set, what blocks and encoder compute on the way is not kept for the gradient but computed
    again: between blocks alone something is held. Losses and gradients are the same.
    """

    checkpointing = False

    def __init__(self, config: SubqConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.lower_blocks = nn.ModuleList(
            Block(config, config.lower_mixer(i), False) for i in range(config.lower_blocks)
        )
        self.upper_blocks = nn.ModuleList(
            Block(config, config.upper_mixer(i), True) for i in range(config.upper_blocks)
        )
        self.encoder = build_encoder(config) if config.upper_blocks else None
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        self.copier = CopyHead(config) if config.copies else None
        self._initialise()
        if self.copier is not None:
            self.copier.close()

    @property
    def scale(self) -> Tensor:
        """Factor of cosines in the choice's softmax."""
        return self.log_scale.exp().clamp(max=self.config.scale_max)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def lower(
        self, ids: Tensor, states: Sequence[BlockState | None] | None = None
    ) -> tuple[Tensor, list[BlockState]]:
        """ids [B, T] -> (hidden [B, T, D] after the lower blocks, their states)."""
        x = rms(self.embedding(ids))
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        out: list[BlockState] = []
        for at, block in enumerate(self.lower_blocks):
            x, state = self._computed(block, x, None if states is None else states[at])
            out.append(state)
        return x, out

    def encode(self, hidden: Tensor, before: int = 0) -> ChunkCodes:
        """Codes [B, n, …] of the whole chunks in hidden [B, T, D] after its first `before` tokens.

        Those, and what is left over at the end, are not encoded: chunks look back and ahead to them where the
        configuration says so. A chunk at the end looks ahead to less than it will: it may not be offered yet.
        """
        if self.encoder is None:
            raise ValueError("this model has no upper blocks, so it encodes no chunks")
        size = self.config.chunk
        whole = (hidden.shape[1] - before) // size
        own = hidden[:, before : before + whole * size].unflatten(1, (whole, size)).flatten(0, 1)  # type: ignore[no-untyped-call]
        # all chunks in one dimension: one shape to compile for batches of as many tokens
        beside = neighbourhood(hidden, before, whole, self.config) if whole else None
        around = None if beside is None else Around(*(each.flatten(0, 1) for each in beside))
        codes = self._computed(self.encoder, own, around)
        return ChunkCodes(*(each.unflatten(0, (hidden.shape[0], whole)) for each in codes))

    def upper(
        self, hidden: Tensor, chosen: Chosen | None, states: Sequence[BlockState | None] | None = None
    ) -> tuple[Tensor, list[BlockState]]:
        """hidden of the lower half [B, T, D] -> (normalised [B, T, D], states of the upper blocks)."""
        out: list[BlockState] = []
        for at, block in enumerate(self.upper_blocks):
            hidden, state = self._computed(block, hidden, None if states is None else states[at], chosen)
            out.append(state)
        return rms(hidden), out

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] of normalised hidden states [..., D]."""
        return F.linear(hidden, self.embedding.weight.to(hidden.dtype))

    def copied(self, out: Output, ids: Tensor) -> Copied | None:
        """What the tokens of a pass over ids [B, T] may copy; None where nothing is read, or nothing copied."""
        if self.copier is None or out.routing is None or out.lower is None:
            return None
        return self.copier.offered(out.lower, ids, out.routing)

    def next_logits(self, hidden: Tensor, copied: Copied | None) -> Tensor:
        """Logits [B, T, vocabulary] of normalised hidden states [B, T, D] with what is copied: of a model with such
        a head they are logarithms of chances, in float32, whether or not there is something to copy."""
        logits = self.logits(hidden)
        if self.copier is None:
            return logits
        return logits.float().log_softmax(-1) if copied is None else self.copier.mixed(logits, hidden, copied)

    def token_losses(self, out: Output, ids: Tensor, losses: Tensor, targets: Tensor) -> Tensor:
        """Nats of `targets` [B, T] after ids [B, T]: the logits give `losses`, copying may give less."""
        copied = self.copied(out, ids)
        if self.copier is None or copied is None:
            return losses
        mixed: Tensor = self.copier(losses, out.hidden, targets, copied)
        return mixed

    def queries(self, hidden: Tensor, codes: ChunkCodes) -> tuple[Tensor, Tensor]:
        """What each unit asks with [B, U, R], and the chunk it stands in [U]: units are chunks or tokens."""
        length, size = hidden.shape[1], self.config.chunk
        if self.config.retrieval == "token":
            assert self.encoder is not None
            return self.encoder.token_queries(hidden), torch.arange(length, device=hidden.device) // size
        units = -(-length // size)
        return shifted(codes.queries, units), torch.arange(units, device=hidden.device)

    def forward(
        self,
        ids: Tensor,
        *,
        cross: Tensor | None = None,
        hidden_from_others: Tensor | None = None,
        forced: Forced | None = None,
        read: bool = True,
        joined: bool = False,
    ) -> Output:
        """One pass over sequences ids [B, T]; the options are those of `router.route`; read=False: no retrieval.

        joined: the blocks run over all sequences as one (whole chunks each), so that all batches of as many tokens
        have one shape to compile; what a mixer carries over a border is the sequence before. Choosing keeps
        them apart.
        """
        rows, length = ids.shape
        if joined and length % self.config.chunk:
            raise ValueError(
                f"ids of {length} tokens a sequence; joined needs whole chunks of {self.config.chunk}"
            )
        apart = (rows, -1) if not joined else (1, -1)
        hidden, _ = self.lower(ids.reshape(apart))
        if self.encoder is None:
            return Output(rms(hidden).view(rows, length, -1), None, None)
        codes = self.encode(hidden.view(rows, length, -1))
        unit = 1 if self.config.retrieval == "token" else self.config.chunk
        routing = chosen = None
        if read and codes.landmarks.shape[1]:
            with torch.autocast(ids.device.type, enabled=False):
                queries, chunks = self.queries(hidden.view(rows, length, -1), codes)
                routing = route(
                    queries, codes.landmarks, chunks, self.config, self.scale,
                    cross=cross, hidden_from_others=hidden_from_others, forced=forced,
                )  # fmt: skip
            indices, weights = (each.reshape(*apart, each.shape[-1]) for each in routing)
            chosen = Chosen(codes.keys.flatten(0, 1), codes.values.flatten(0, 1), indices, weights, unit)
        out, _ = self.upper(hidden, chosen)
        return Output(out.view(rows, length, -1), codes, routing, hidden.view(rows, length, -1))

    def _computed(self, module: nn.Module, *given: Any) -> Any:
        """What a module gives; computed again for the gradient where that is asked for."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *given, use_reentrant=False)
        return module(*given)

    def num_parameters(self) -> tuple[int, int]:
        """All parameters, and those of the embedding among them."""
        return sum(p.numel() for p in self.parameters()), self.embedding.weight.numel()

    @torch.no_grad()
    def close_readers(self) -> None:
        """Chunks hold values of zero: what is read adds nothing until training opens it.

        Without upper blocks there is nothing to close.
        """
        if self.encoder is not None:
            values = self.encoder.kv.weight.unflatten(0, (2, -1))[1]  # type: ignore[no-untyped-call]
            nn.init.zeros_(values)

    @torch.no_grad()
    def _initialise(self) -> None:
        blocks = self.config.lower_blocks + self.config.upper_blocks
        nn.init.normal_(self.embedding.weight, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                std = 0.7 * module.in_features**-0.5
                # what is added to the residual stream starts small, the more blocks the smaller
                nn.init.normal_(
                    module.weight, std=std / math.sqrt(2 * blocks) if name.endswith("out") else std
                )
                if module.bias is not None and "gate" not in name:
                    nn.init.zeros_(module.bias)
