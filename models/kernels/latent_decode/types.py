"""What the decode operator reads beside the ring: latents and chosen chunks, with the shapes checked once."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Latents:
    """Blocks of evicted tokens as low-rank factors: token j of a block has key u_j · K and value w_j · V.

    key_factor [B, Hkv, N, tokens, rk], key_basis [B, Hkv, N, rk, D]: keys before rotary embedding.
    value_factor [B, Hkv, N, tokens, rv], value_basis [B, Hkv, N, rv, D].
    place int32 [B, N, G]: rotary places of a block; its tokens form G equal runs, each run standing at one place
    (G = tokens: every token at its own place; G = 1: one place for the block). -1 hides the run.
    """

    key_factor: torch.Tensor
    key_basis: torch.Tensor
    value_factor: torch.Tensor
    value_basis: torch.Tensor
    place: torch.Tensor

    def __post_init__(self) -> None:
        if self.key_factor.ndim != 5 or not min(self.key_factor.shape[-1], self.value_factor.shape[-1]):
            raise ValueError(
                f"key_factor is {tuple(self.key_factor.shape)}, value_factor {tuple(self.value_factor.shape)}; "
                "give both as [B, Hkv, N, tokens, rank] with a rank of at least 1"
            )
        batch, heads, blocks, tokens, _ = self.key_factor.shape
        expected = {
            "key_basis": (batch, heads, blocks, self.key_factor.shape[-1], self.key_basis.shape[-1]),
            "value_factor": (batch, heads, blocks, tokens, self.value_factor.shape[-1]),
            "value_basis": (batch, heads, blocks, self.value_factor.shape[-1], self.key_basis.shape[-1]),
            "place": (batch, blocks, self.place.shape[-1]),
        }
        for name, shape in expected.items():
            given = tuple(getattr(self, name).shape)
            if given != shape:
                raise ValueError(
                    f"{name} is {given}; with key_factor {tuple(self.key_factor.shape)} it must be {shape}"
                )
        if (
            self.place.dtype != torch.int32
            or tokens % max(self.place.shape[-1], 1)
            or not self.place.shape[-1]
        ):
            raise ValueError(
                f"place is {self.place.dtype} {tuple(self.place.shape)}; give int32 with a last dimension that "
                f"divides the {tokens} tokens of a block"
            )


@dataclass(frozen=True, slots=True)
class ChosenChunks:
    """Raw chunks brought back by retrieval, read from a pool that all rows share.

    keys, values [P, C, Hkv, D] (keys before rotary embedding); pages int32 [B, K] names pages of the pool, -1 an
    empty slot; place int32 [B, K] is the rotary place of a page's first token, the others follow it;
    lengths int32 [P] or None: how many of a page's C tokens are valid.
    """

    keys: torch.Tensor
    values: torch.Tensor
    pages: torch.Tensor
    place: torch.Tensor
    lengths: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.keys.ndim != 4 or self.keys.shape != self.values.shape:
            raise ValueError(
                f"keys are {tuple(self.keys.shape)}, values {tuple(self.values.shape)}; give both as [P, C, Hkv, D]"
            )
        if self.pages.shape != self.place.shape or self.pages.ndim != 2:
            raise ValueError(
                f"pages are {tuple(self.pages.shape)}, place {tuple(self.place.shape)}; give both as [B, K]"
            )
        if self.pages.dtype != torch.int32 or self.place.dtype != torch.int32:
            raise ValueError(f"pages are {self.pages.dtype}, place {self.place.dtype}; give both as int32")
        if self.lengths is not None and self.lengths.shape != self.keys.shape[:1]:
            raise ValueError(
                f"lengths are {tuple(self.lengths.shape)}; the pool has {self.keys.shape[0]} pages"
            )
