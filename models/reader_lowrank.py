"""Low-rank adapters trained through the merged weight: the forward pass is the plain model's.

W = W0 + s·B·A (arXiv 2106.09685) is written into the model before a step, and the gradients of A and B are made
from W's afterwards: dB = s·G·Aᵀ, dA = s·Bᵀ·G. The same mathematics as an adapter beside the weight without dropout,
but 126 pairs of thin matrix products, their casts and their launches are gone; what it costs is W's own gradient.
Files are those of peft.

`n` matrices of a shape [o, i] are one stack [n, o, i]; rank `r`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models.digests import put_beside
from models.reader_training import LORA_TARGETS

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


class LowRank:
    """Adapters on all linear layers of a decoder, or on those that `targets` names; the other weights are frozen.

    `parameters()` are what an optimizer moves (float32); call `gather()` after a backward pass and `merge()`
    after a step of the optimizer.
    """

    def __init__(
        self, model: nn.Module, *, rank: int, alpha: float, seed: int = 0,
        targets: Sequence[str] = LORA_TARGETS,
    ) -> None:  # fmt: skip
        if rank < 1:
            raise ValueError(f"rank: given {rank}; allowed: 1 or more")
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        shapes: dict[tuple[int, ...], list[tuple[str, nn.Linear]]] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in targets:
                shapes.setdefault(tuple(module.weight.shape), []).append((name, module))
        if not shapes:
            raise ValueError(f"model has none of the linear layers {', '.join(targets)}")
        self._stacks = list(shapes.values())
        self._base, self._a, self._b = [], [], []
        chance = torch.Generator().manual_seed(seed)
        for stack in self._stacks:
            weights = [module.weight for _, module in stack]
            rows, columns = weights[0].shape
            device = weights[0].device
            self._base.append(torch.stack([weight.detach().clone() for weight in weights]))
            # peft's start: A uniform as a linear layer's weights are, B zero
            a = torch.rand(len(stack), rank, columns, generator=chance) * 2 - 1
            self._a.append(nn.Parameter((a * columns**-0.5).to(device)))
            self._b.append(nn.Parameter(torch.zeros(len(stack), rows, rank, device=device)))
            for weight in weights:
                weight.requires_grad_(True)

    def parameters(self) -> list[nn.Parameter]:
        """A and B of every stack."""
        return [*self._a, *self._b]

    @torch.no_grad()
    def gather(self) -> None:
        """Make the adapters' gradients from those of the weights, which are dropped; RuntimeError without any."""
        for stack, a, b in zip(self._stacks, self._a, self._b, strict=True):
            grads = [module.weight.grad for _, module in stack]
            if any(grad is None for grad in grads):
                raise RuntimeError("gather: a weight has no gradient; run a backward pass first")
            whole = torch.stack([grad for grad in grads if grad is not None])
            half = whole.dtype
            b.grad = self.scale * torch.bmm(whole, a.to(half).transpose(1, 2)).float()
            a.grad = self.scale * torch.bmm(b.to(half).transpose(1, 2), whole).float()
            for _, module in stack:
                module.weight.grad = None

    @torch.no_grad()
    def merge(self) -> None:
        """Write W0 + s·B·A into the model."""
        for stack, base, a, b in zip(self._stacks, self._base, self._a, self._b, strict=True):
            whole = (base.float() + self.scale * torch.bmm(b, a)).to(base.dtype)
            # of one dtype all matrices of a stack are one launch
            torch._foreach_copy_([module.weight for _, module in stack], list(whole.unbind()))

    @torch.no_grad()
    def start_from(self, folder: Path) -> float:
        """Begin with a saved adapter of any rank, cut to this one's by singular values; returns what stays.

        That is a share of the squared norm of all B·A. Raises ValueError where the file is of another model.
        """
        from safetensors.torch import load_file

        state = load_file(folder / ADAPTER)
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        scale = float(config["lora_alpha"]) / int(config["r"])
        kept = whole = 0.0
        for name, a, b in self.each():
            found = [state.get(f"{_PREFIX}{name}.lora_{side}.weight") for side in "AB"]
            if found[0] is None or found[1] is None or found[0].shape[1] != a.shape[1]:
                raise ValueError(f"{folder} has no adapter of {name} [{b.shape[0]}, {a.shape[1]}]")
            # B·A = Q_b (R_b R_aᵀ) Q_aᵀ: the singular values are those of a small matrix
            q_a, r_a = torch.linalg.qr(found[0].to(a.device, torch.float32).T)
            q_b, r_b = torch.linalg.qr(found[1].to(a.device, torch.float32))
            u, s, v = torch.linalg.svd(scale / self.scale * r_b @ r_a.T)
            rank = min(self.rank, len(s))
            root = s[:rank].sqrt()
            a.zero_()
            b.zero_()
            a[:rank] = root[:, None] * (v[:rank] @ q_a.T)
            b[:, :rank] = (q_b @ u[:, :rank]) * root
            kept, whole = kept + float((s[:rank] ** 2).sum()), whole + float((s**2).sum())
        self.merge()
        return kept / max(whole, 1e-30)

    def save(self, folder: Path, base: str = "") -> None:
        """Write the adapter as peft reads it, in bf16; the configuration, then its digests, last."""
        from peft import LoraConfig
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = {}
        for name, a, b in self.each():
            for side, tensor in (("A", a), ("B", b)):
                # without the copy a stack's views would be one shared tensor
                state[f"{_PREFIX}{name}.lora_{side}.weight"] = (
                    tensor.detach().to("cpu", torch.bfloat16).clone()
                )
        save_file(state, folder / ADAPTER, metadata={"format": "pt"})
        config = LoraConfig(
            r=self.rank,
            lora_alpha=int(self.alpha),
            lora_dropout=0.0,
            target_modules=list(LORA_TARGETS),
            bias="none",
            task_type="CAUSAL_LM",
            base_model_name_or_path=base or None,
            inference_mode=True,
        )
        config.save_pretrained(str(folder))
        put_beside(folder, (ADAPTER, ADAPTER_CONFIG))

    def each(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, A [r, i] and B [o, r] of every layer: views, to be read, or filled before `merge`."""
        for stack, a, b in zip(self._stacks, self._a, self._b, strict=True):
            for at, (name, _) in enumerate(stack):
                yield name, a[at], b[at]


class MasterWeights:
    """Full tuning in half precision: float32 copies of all weights are what the optimizer moves."""

    def __init__(self, model: nn.Module) -> None:
        # a tied head is the embedding itself: named_parameters gives it once
        self._weights = [parameter.requires_grad_(True) for _, parameter in model.named_parameters()]
        self._masters = [nn.Parameter(weight.detach().float().clone()) for weight in self._weights]

    def parameters(self) -> list[nn.Parameter]:
        """The float32 weights."""
        return self._masters

    @torch.no_grad()
    def gather(self) -> None:
        """Move the weights' gradients to their masters."""
        for weight, master in zip(self._weights, self._masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None

    @torch.no_grad()
    def merge(self) -> None:
        """Write the masters into the model."""
        torch._foreach_copy_([w.data for w in self._weights], [m.data for m in self._masters])
