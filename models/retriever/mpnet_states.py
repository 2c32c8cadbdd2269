"""MPNet's last states with all of attention in one kernel: no weights of it are kept for the backward pass.

transformers' MPNet (arXiv 2004.09297) makes each layer's weights [N, H, T, T], keeps them several times over, and
adds the bias of distances and the mask of padding anew in every layer. Here both are one additive mask, made once
for all layers, and a layer's attention is `scaled_dot_product_attention`. Modules, weights and dropout are the
library's: this is another order of the same products.

`N` rows, `H` heads, `T` tokens, `W` the model's width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

AWAY = -1e4
"""Added where a key is padding. Finite: a row of padding alone has weights, and no NaN behind them."""


def last_states(bert: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The last states of an `MPNetModel` over token ids and 1 for tokens, both [N, T]. [N, T, W]"""
    hidden: Tensor = bert.embeddings(input_ids=ids)
    added = added_to_scores(bert.encoder, hidden, mask)
    for layer in bert.encoder.layer:
        hidden = _layer(layer, hidden, added)
    return hidden


def added_to_scores(encoder: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """What stands beside the products of queries and keys: distances' bias, and AWAY at padding. [N, H, T, T]

    Of the dtype that attention computes in, so that it is cast once and not in each layer.
    """
    bias = encoder.compute_position_bias(
        hidden[:1]
    )  # its own would be made for every row: [N, H, T, T] in float32
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    away = (1 - mask[:, None, None, :].to(dtype)) * AWAY
    added: Tensor = bias.to(dtype) + away
    return added


def _layer(layer: Any, hidden: Tensor, added: Tensor) -> Tensor:
    attention = layer.attention
    own = attention.attn
    rows, tokens, _ = hidden.shape
    heads = (rows, tokens, own.num_attention_heads, own.attention_head_size)
    query, key, value = (part(hidden).view(heads).transpose(1, 2) for part in (own.q, own.k, own.v))
    mixed = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=added, dropout_p=own.dropout.p if own.training else 0.0
    )
    whole = own.o(mixed.transpose(1, 2).reshape(rows, tokens, own.all_head_size))
    hidden = attention.LayerNorm(attention.dropout(whole) + hidden)
    found: Tensor = layer.output(layer.intermediate(hidden), hidden)
    return found
