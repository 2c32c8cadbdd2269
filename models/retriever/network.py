"""The policy: a Siamese scorer F(s, c) over a question's state and its candidates, a pointer with STOP, a value.

`B` rows, `K` candidates (padded), `D` embedder width, `F` features, `W` network width, `T` words. Question and
candidates share one encoder; a few attention layers let candidates see each other, what was chosen and what each
would cost; the state s is the question's place in that sequence, what was chosen, and the budget left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.retriever.choosing import CHOICE_SIZE, STATE_SIZE
from models.retriever.config import RetrieverConfig

ILLEGAL = -1e9
"""Logit of an illegal action: no probability, and still a number in half precision's wider cousins."""
OBSERVED = ("query", "vectors", "features", "choice", "state", "present", "legal", "words")


class SiameseEncoder(nn.Module):
    """Question and candidates through the same weights: vectors, and words where configured. [..., W]"""

    def __init__(self, config: RetrieverConfig) -> None:
        super().__init__()
        self.kind = config.encoder
        self.project = nn.Linear(config.dim, config.width)
        if self.kind == "vectors":
            return
        self.embed = nn.Embedding(config.num_words, config.width, padding_idx=0)
        # in front of the words; its state stands for the text (the LSTM's way back ends there)
        self.cls = nn.Parameter(torch.randn(1, 1, config.width)) if config.pooling == "cls" else None
        if self.kind == "transformer":
            layer = _layer(config)
            self.mix: nn.Module = nn.TransformerEncoder(
                layer, config.encoder_layers, enable_nested_tensor=False
            )
            self.place = nn.Parameter(torch.zeros(1, 512 + (self.cls is not None), config.width))
        else:
            self.mix = nn.LSTM(
                config.width,
                config.width // 2,
                config.encoder_layers,
                batch_first=True,
                bidirectional=True,
            )

    def forward(self, vectors: Tensor, words: Tensor) -> Tensor:
        """`vectors` [..., D] and `words` [..., T] to [..., W]."""
        out: Tensor = self.project(vectors)
        if self.kind == "vectors":
            return out
        if words.shape[-1] == 0:
            raise ValueError(
                f"words: given none; the {self.kind} encoder reads them: make the tables with words, or use "
                "the encoder 'vectors'"
            )
        flat = words.long().reshape(-1, words.shape[-1])
        known = flat != 0
        known[:, 0] = True  # an empty text still has one place to look at
        embedded = self.embed(flat)
        if self.cls is not None:
            embedded = torch.cat([self.cls.expand(len(flat), 1, -1), embedded], 1)
            known = torch.cat([torch.ones_like(known[:, :1]), known], 1)
        if self.kind == "transformer":
            mixed = self.mix(embedded + self.place[:, : known.shape[1]], src_key_padding_mask=~known)
        else:
            # packed: the way back would begin in the padding and carry it into the words
            ends = known.sum(1).cpu()
            packed = pack_padded_sequence(embedded, ends, batch_first=True, enforce_sorted=False)
            mixed, _ = pad_packed_sequence(self.mix(packed)[0], batch_first=True, total_length=known.shape[1])
        if self.cls is not None:
            pooled = mixed[:, 0]
        else:
            pooled = (mixed * known[..., None]).sum(1) / known.sum(1, keepdim=True)
        mixed_in: Tensor = out + pooled.reshape(*words.shape[:-1], -1)
        return mixed_in


class PolicyNetwork(nn.Module):
    """Logits over the candidates and STOP, and the value of the state."""

    def __init__(self, config: RetrieverConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.encode = SiameseEncoder(config)
        self.describe = nn.Sequential(
            nn.Linear(config.num_features + CHOICE_SIZE, width), nn.GELU(), nn.Linear(width, width)
        )
        self.join = nn.Linear(3 * width, width)
        self.about_state = nn.Linear(STATE_SIZE, width)
        self.mix = (
            nn.TransformerEncoder(_layer(config), config.layers, enable_nested_tensor=False)
            if config.layers
            else None
        )
        self.state = nn.Sequential(nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, width))
        self.key = nn.Linear(width, width)
        self.prior = nn.Linear(config.num_features, 1, bias=False)
        self.stop = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.value = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        with torch.no_grad():
            self.prior.weight.zero_()
            self.key.weight.mul_(0.1)
            for head in (self.stop, self.value):
                last = head[-1]
                assert isinstance(last, nn.Linear)
                last.weight.mul_(0.1)
                last.bias.zero_()

    def forward(self, observed: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [B, K + 1], STOP last, illegal ones at ILLEGAL; values [B].

        `observed` is what `Choosing.observe` gives, as tensors: query [B, D], vectors [B, K, D], features
        [B, K, F], choice [B, K, 3], state [B, 5], present [B, K], legal [B, K + 1], words [B, K + 1, T].
        """
        states, candidates = self.states(observed)
        points = (states[:, None] * self.key(candidates)).sum(-1) / self.config.width**0.5
        points = points + self.prior(observed["features"])[..., 0]
        logits = torch.cat([points, self.stop(states)], 1)
        values: Tensor = self.value(states)[:, 0]
        return torch.where(observed["legal"] > 0.5, logits, ILLEGAL), values

    def states(self, observed: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The state of each row [B, W] and its candidates as they stand in it [B, K, W]."""
        words, present = observed["words"], observed["present"] > 0.5
        query = self.encode(observed["query"], words[:, 0])
        vectors = self.encode(observed["vectors"], words[:, 1:])
        described = self.describe(torch.cat([observed["features"], observed["choice"]], -1))
        candidates = self.join(torch.cat([vectors, vectors * query[:, None], described], -1))
        first = query + self.about_state(observed["state"])
        sequence = torch.cat([first[:, None], candidates], 1)
        if self.mix is not None:
            seen = torch.cat([torch.ones_like(present[:, :1]), present], 1)
            sequence = self.mix(sequence, src_key_padding_mask=~seen)
        candidates = sequence[:, 1:]
        chosen = observed["choice"][..., :1] * present[..., None]
        read = (candidates * chosen).sum(1) / chosen.sum(1).clamp_min(1.0)
        best = torch.where(present[..., None], candidates, -torch.inf).amax(1)
        best = torch.where(present.any(1, keepdim=True), best, 0.0)
        state: Tensor = self.state(torch.cat([sequence[:, 0], read, best], -1))
        return state, candidates


def as_tensors(observed: Mapping[str, Any], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """What was observed, as tensors on the device."""
    return {name: torch.as_tensor(observed[name]).to(device) for name in OBSERVED}


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the actions; illegal ones have none worth naming."""
    return F.log_softmax(logits.float() / temperature, -1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each row in nats, over its legal actions. [B]"""
    log_probs = log_probabilities(logits)
    return -(log_probs.exp() * log_probs.clamp_min(-50.0)).sum(-1)


def _layer(config: RetrieverConfig) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        config.width,
        config.heads,
        2 * config.width,
        config.dropout,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
