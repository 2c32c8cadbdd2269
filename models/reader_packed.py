"""Gemma 3 over packed readings: rows of one fixed length hold many readings, and none sees another.

`transformers` runs a step in some 10,000 small launches whatever its size: 0.36 s for 20,000 tokens. Here shapes
never change, padding is what no reading fills, and all between two attentions is one compiled piece, shared by all
layers. Weights are those of the `transformers` model that is given, so what is trained here is decoded there.

Shapes: `R` rows of `L` tokens, `D` model width, `H` query heads, `K` key heads, `d` head width, `S` readings of a
pack, `A` answer places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.reader_packs import Pack, PackShape, make_pack
from models.reader_training import ReadingRows

Attend = Callable[[Tensor, Tensor, Tensor, Pack, int | None, float], Tensor]
"""Queries [R, L, H, d], keys and values [R, L, K, d], the pack, the window, the scale -> [R, L, H, d]."""


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, pack: Pack, window: int | None, scale: float
) -> Tensor:
    """PyTorch's attention with a mask per row: runs everywhere, computes what is masked too."""
    same = pack.owner[:, :, None] == pack.owner[:, None, :]
    apart = pack.positions[:, :, None] - pack.positions[:, None, :]
    mask = same & (apart >= 0)
    if window is not None:
        mask &= apart < window
    groups = query.shape[2] // key.shape[2]
    q, k, v = (pair.transpose(1, 2) for pair in (query, key, value))
    k, v = (pair.repeat_interleave(groups, 1) for pair in (k, v))
    return F.scaled_dot_product_attention(q, k, v, mask[:, None], scale=scale).transpose(1, 2)


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, pack: Pack, window: int | None, scale: float
) -> Tensor:
    """FlashAttention over readings of unequal length, as torch brings it; half precision on CUDA only."""
    rows, length = query.shape[:2]
    q, k, v = (pair.flatten(0, 1) for pair in (query, key, value))
    options: dict[str, Any] = {"scale": scale}
    if window is not None and window < length:
        options |= {"window_size_left": window - 1, "window_size_right": 0}
    out = torch.ops.aten._flash_attention_forward(
        q, k, v, pack.starts, pack.starts, length, length, 0.0, True, False, **options
    )[0]
    return out.reshape(rows, length, *query.shape[2:])  # type: ignore[no-any-return]


def choose_attention(device: str) -> tuple[str, Attend]:
    """The fastest attention that agrees with the masked one on a small case, forward and backward, by trying."""
    if not device.startswith("cuda"):
        return "masked", masked_attention
    try:
        _check(flash_attention, device)
    except (RuntimeError, TypeError, NotImplementedError, AttributeError, ValueError) as error:
        return f"masked (flash: {str(error).splitlines()[0]})", masked_attention
    return "flash", flash_attention


def _check(attend: Attend, device: str) -> None:
    """RuntimeError where `attend` differs from `masked_attention` by more than half precision explains."""
    shape = PackShape(rows=2, length=256, readings=16, answers=32)
    chance = np.random.default_rng(0)
    made = ReadingRows.of([(chance.integers(4, 20, n).tolist(), [1, 2]) for n in (120, 37, 200, 61)])
    pack = make_pack(made, [[0, 1, 3], [2]], shape).to(device)
    torch.manual_seed(0)
    for window in (None, 64):
        pairs = [
            torch.randn(2, 256, heads, 256, device=device, dtype=torch.bfloat16) for heads in (4, 1, 1, 4)
        ]
        found = []
        for each in (attend, masked_attention):
            inputs = [pair.clone().requires_grad_() for pair in pairs[:3]]
            out = each(inputs[0], inputs[1], inputs[2], pack, window, 1 / 16)
            out.backward(pairs[3])  # type: ignore[no-untyped-call]
            found.append([out, *(pair.grad for pair in inputs)])
        for ours, theirs in zip(*found, strict=True):
            assert ours is not None and theirs is not None
            worst = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
            if not worst < 0.02:
                raise RuntimeError(f"differs from masked attention by {worst:.3f} (window {window})")


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * (1.0 + weight.float())
    return wide.to(x.dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def _before(
    x: Tensor, weights: Sequence[Tensor], cos: Tensor, sin: Tensor, head_dim: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """From the residual stream to turned queries and keys, and values."""
    norm, wq, wk, wv, q_norm, k_norm = weights
    h = _norm(x, norm, eps)
    q, k, v = (F.linear(h, w).unflatten(-1, (-1, head_dim)) for w in (wq, wk, wv))  # type: ignore[no-untyped-call]
    return _turn(_norm(q, q_norm, eps), cos, sin), _turn(_norm(k, k_norm, eps), cos, sin), v


def _after(x: Tensor, attended: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    """The rest of a layer, on to the residual stream."""
    wo, post, pre, gate, up, down, last = weights
    x = x + _norm(F.linear(attended.flatten(-2), wo), post, eps)
    h = _norm(x, pre, eps)
    h = F.linear(F.gelu(F.linear(h, gate), approximate="tanh") * F.linear(h, up), down)
    return x + _norm(h, last, eps)


class PackedReader:
    """The hidden states of packs, computed with the weights of a `transformers` Gemma 3.

    With `compiled` the pieces between attentions are compiled; where the first step fails call `fall_back`, and
    they run as they are. Raises ValueError for a model that is not of this kind.
    """

    def __init__(
        self, model: nn.Module, *, attend: Attend = masked_attention, compiled: bool = False
    ) -> None:
        config: Any = model.config
        _refuse_others(config)
        self.model, self.config, self.attend = model, config, attend
        self.scale = float(config.query_pre_attn_scalar) ** -0.5
        self.compiled, self.failure = compiled, ""
        self._pieces: tuple[Callable[..., Any], Callable[..., Any]] = (_before, _after)
        if compiled:
            self._pieces = (torch.compile(_before, dynamic=False), torch.compile(_after, dynamic=False))
        self._tables: dict[tuple[str, torch.device], Tensor] = {}

    def hidden(self, pack: Pack) -> Tensor:
        """Last hidden states [R, L, D]."""
        body: Any = self.model.model  # type: ignore[union-attr]
        eps, head_dim = self.config.rms_norm_eps, self.config.head_dim
        x = body.embed_tokens(pack.ids)
        if torch.is_grad_enabled() and not x.requires_grad:
            x.requires_grad_()  # else the first layer would be compiled apart
        turns = {kind: self._rotary(kind, pack.positions, x.dtype) for kind in set(self.config.layer_types)}
        before, after = self._pieces
        for kind, layer in zip(self.config.layer_types, body.layers, strict=True):
            a, m = layer.self_attn, layer.mlp
            first = (
                layer.input_layernorm.weight, a.q_proj.weight, a.k_proj.weight, a.v_proj.weight,
                a.q_norm.weight, a.k_norm.weight,
            )  # fmt: skip
            q, k, v = before(x, first, *turns[kind], head_dim, eps)
            window = self.config.sliding_window if kind == "sliding_attention" else None
            seen = self.attend(q, k, v, pack, window, self.scale)
            rest = (
                a.o_proj.weight, layer.post_attention_layernorm.weight, layer.pre_feedforward_layernorm.weight,
                m.gate_proj.weight, m.up_proj.weight, m.down_proj.weight,
                layer.post_feedforward_layernorm.weight,
            )  # fmt: skip
            x = after(x, seen, rest, eps)
        return _norm(x, body.norm.weight, eps)

    def fall_back(self, error: Exception) -> None:
        """Run uncompiled from now on; `failure` says why."""
        self.compiled, self._pieces = False, (_before, _after)
        self.failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"

    def _rotary(self, kind: str, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        key = (kind, positions.device)
        if key not in self._tables:
            theta = float(self.config.rope_parameters[kind]["rope_theta"])
            steps = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32, device=positions.device)
            self._tables[key] = 1.0 / theta ** (steps / self.config.head_dim)
        angles = positions[..., None].float() * self._tables[key]
        whole = torch.cat((angles, angles), -1)[:, :, None]
        return whole.cos().to(dtype), whole.sin().to(dtype)

    def logits(self, pack: Pack) -> Tensor:
        """Logits at the answer places [A, vocabulary], float32."""
        hidden = self.hidden(pack).flatten(0, 1)[pack.places]
        logits: Tensor = self.model.lm_head(hidden)  # type: ignore[operator]
        return logits.float()


def pack_loss(reader: PackedReader, pack: Pack, contrast: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy a reading's answer token, plus `contrast` times the unlikelihood of what is to be avoided.

    The unlikelihood -log(1 - p) (arXiv 1908.04319) is of a token that the distracting sentences suggest, at the
    place where its answer and the right one part. Also: the share of answer tokens predicted right, and the avoided
    tokens' mean probability.
    """
    logits = reader.logits(pack)
    count = pack.weights.sum().clamp_min(1.0)
    losses = F.cross_entropy(logits, pack.targets, reduction="none")
    loss = (losses * pack.weights).sum() / count
    with torch.no_grad():
        right = ((logits.argmax(-1) == pack.targets) * pack.weights).sum() / count
    shown = {"loss": loss.detach(), "right": right}
    if contrast > 0:
        shunned = pack.avoid >= 0
        log_p = torch.log_softmax(logits, -1).gather(1, pack.avoid.clamp_min(0)[:, None])[:, 0]
        # 1 - p at least 1e-4: a reader that is sure of the wrong answer has a loss of 9, not infinity
        unlikely = -torch.log1p(-log_p.exp().clamp_max(1 - 1e-4)) * shunned
        loss = loss + contrast * unlikely.sum() / count
        shown["avoided_p"] = (log_p.detach().exp() * shunned).sum() / shunned.sum().clamp_min(1)
    return loss, shown


def _refuse_others(config: Any) -> None:
    """ValueError that names what of a model's configuration this forward does not know."""
    wanted = {
        "model_type": "gemma3_text",
        "attention_bias": False,
        "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    }
    for name, value in wanted.items():
        if getattr(config, name, value) != value:
            raise ValueError(f"{name}: given {getattr(config, name)!r}; the packed reader knows {value!r}")
    for kind, rope in config.rope_parameters.items():
        if rope["rope_type"] != "default":
            raise ValueError(
                f"rope_parameters of {kind}: given {rope['rope_type']!r}; the packed reader knows 'default'"
            )
