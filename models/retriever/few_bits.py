"""Matrices in few bits: groups of neighbours in a row share a scale, codes stand one behind another without a gap.

For weights that ship: an encoder's vectors of words lose next to nothing at 4 bits, its layers little at 6 (E5
small untrained, 120 pairs: scores correlate by .9992 with those of all bits; docs/log.md). A packed matrix is three
tensors: `<name>:codes` (uint8), `<name>:scales` (float16, one a group), `<name>:form` (bits, group, rows, columns).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

CODES, SCALES, FORM = ":codes", ":scales", ":form"
WORDS = "word_embeddings.weight"
WORD_BITS, WORD_GROUP = 4, 32
LAYER_BITS, LAYER_GROUP = 6, 64


def packed(matrix: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """A matrix' codes [bytes] and scales [rows · columns / group]; ValueError where a group does not fit."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits: given {bits}; allowed: 2 to 8")
    if matrix.shape[1] % group:
        raise ValueError(f"group: given {group}; allowed: what divides {matrix.shape[1]}, the width of a row")
    most = 2 ** (bits - 1) - 1
    rows = matrix.detach().cpu().float().reshape(-1, group)
    # the scale as it will be read, so that rounding is to the nearest of what can be had
    scales = (rows.abs().amax(1) / most).clamp_min(6e-8).half()
    codes = (rows / scales.float()[:, None]).round().clamp(-most, most).to(torch.int16).numpy() + most
    flat = codes.astype(np.uint8).reshape(-1)
    single = np.unpackbits(flat[:, None], axis=1, bitorder="little")[:, :bits]
    return torch.from_numpy(np.packbits(single.reshape(-1), bitorder="little")), scales


def unpacked(codes: Tensor, scales: Tensor, form: Tensor) -> Tensor:
    """The matrix, float32. [rows, columns]"""
    bits, group, rows, columns = (int(each) for each in form)
    single = np.unpackbits(codes.numpy(), count=rows * columns * bits, bitorder="little").reshape(-1, bits)
    values = np.packbits(single, axis=1, bitorder="little")[:, 0].astype(np.float32) - (2 ** (bits - 1) - 1)
    whole = values.reshape(-1, group) * scales.float().numpy()[:, None]
    return torch.from_numpy(whole.reshape(rows, columns))


def in_few_bits(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Vectors of words in 4 bits, other matrices in 6 where their width allows; all else as it is, in float32."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        words = name.endswith(WORDS)
        bits, group = (WORD_BITS, WORD_GROUP) if words else (LAYER_BITS, LAYER_GROUP)
        if tensor.ndim == 2 and tensor.shape[0] > 1 and not tensor.shape[1] % group:
            found[f"{name}{CODES}"], found[f"{name}{SCALES}"] = packed(tensor, bits, group)
            found[f"{name}{FORM}"] = torch.tensor([bits, group, *tensor.shape], dtype=torch.int32)
        else:
            found[name] = tensor.detach().cpu().float().contiguous()
    return found


def from_few_bits(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `in_few_bits` made, in float32; tensors of another form as they are."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(CODES):
            whole = name.removesuffix(CODES)
            found[whole] = unpacked(tensor, state[f"{whole}{SCALES}"], state[f"{whole}{FORM}"])
        elif not name.endswith((SCALES, FORM)):
            found[name] = tensor
    return found
