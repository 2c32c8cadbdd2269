"""Runs inside the peer's environment: kvpress' presses on cases given as token ids. Imports nothing of ours.

    python kvpress_worker.py CASES.json OUT.jsonl

CASES: {model, device, threads, seconds, methods, keeps, contexts: [{name, ids, cases: [{id, asked, gold}]}]}.
OUT: a line a case, method and keep, appended context by context until `seconds` have passed: {context, tokens,
case, method, keep, exact, nats, right: [bool a token], kept: tokens left in a full layer, kept_bytes: of all full
layers, sliding_bytes}. Hooks are on full-attention layers only: on this model kvpress would compress the sliding
ones too. A press changes the cache alone, after its layer has attended, so a context is read once and every press
is handed the same layer in turn. Positions go on after the context, and masks of the question are made here, since
transformers' own assume as many keys as positions.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from kvpress import (
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from transformers import AutoModelForCausalLM, DynamicCache

PRESSES: dict[str, Any] = {
    "kvpress_snapkv": SnapKVPress,
    "kvpress_expected_attention": ExpectedAttentionPress,
    "kvpress_key_difference": KeyDiffPress,
    "kvpress_key_norm": KnormPress,
    "kvpress_window_sinks": StreamingLLMPress,
    "kvpress_tova": TOVAPress,
}
FULL = "kvpress_full"


Cell = tuple[str, float]


@contextlib.contextmanager
def pressed(model: Any, presses: dict[Cell, Any]) -> Any:
    """Gives what each press leaves of each full layer, {cell: {layer: (keys, values)}}, as layers are read."""
    decoder, hooks = model.model, []
    left: dict[Cell, dict[int, Any]] = {cell: {} for cell in presses}

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        whole = layer.keys, layer.values
        for cell, press in presses.items():
            press.forward_hook(module, args, kwargs, output)
            left[cell][module.layer_idx] = layer.keys, layer.values
            layer.keys, layer.values = whole
        return output

    for layer, kind in zip(decoder.layers, model.config.layer_types, strict=True):
        if kind == "full_attention":
            rotary = decoder.rotary_emb

            def turn(x: Any, position_ids: Any, rotary: Any = rotary) -> Any:
                return rotary(x, position_ids, layer_type="full_attention")

            object.__setattr__(layer.self_attn, "rotary_emb", turn)
            hooks.append(layer.self_attn.register_forward_hook(hook, with_kwargs=True))
    try:
        yield left
    finally:
        for each in hooks:
            each.remove()


def copied(cache: Any, left: dict[int, Any]) -> Any:
    """The cache with some layers' pairs replaced; reading into it leaves `cache` as it is."""
    found = copy.copy(cache)
    found.layers = [copy.copy(layer) for layer in cache.layers]
    for index, (keys, values) in left.items():
        found.layers[index].keys, found.layers[index].values = keys, values
    return found


def masks(model: Any, cache: Any, seen: int, steps: int) -> dict[str, torch.Tensor]:
    """Where the `steps` tokens after `seen` may look, by kind of layer, `[1, 1, steps, keys]`."""
    kinds = model.config.layer_types
    at = torch.arange(seen, seen + steps)[:, None]
    held = {kind: cache.layers[kinds.index(kind)].keys.shape[2] for kind in set(kinds)}
    own = torch.arange(seen, seen + steps) <= at
    full = torch.cat((torch.ones(steps, held["full_attention"], dtype=torch.bool), own), dim=1)
    places = torch.arange(seen - held["sliding_attention"], seen + steps)
    sliding = (places <= at) & (places > at - model.config.sliding_window)
    return {"full_attention": full[None, None], "sliding_attention": sliding[None, None]}


@torch.no_grad()
def ask(model: Any, cache: Any, seen: int, case: dict[str, Any]) -> dict[str, Any]:
    """Teacher-forced choices and nats of one gold answer; the cache is not changed."""
    tokens, device = [*case["asked"], *case["gold"][:-1]], model.device
    at = torch.arange(seen, seen + len(tokens), device=device)
    logits = (
        model(
            input_ids=torch.tensor([tokens], device=device),
            past_key_values=copied(cache, {}),
            position_ids=at[None],
            cache_position=at,
            attention_mask={
                kind: mask.to(device) for kind, mask in masks(model, cache, seen, len(tokens)).items()
            },
            logits_to_keep=len(case["gold"]),
        )
        .logits[0]
        .float()
        .cpu()
    )
    gold = torch.tensor(case["gold"])
    right = (logits.argmax(-1) == gold).tolist()
    nats = -float(logits.log_softmax(-1).gather(1, gold[:, None]).sum())
    return {"case": case["id"], "exact": float(all(right)), "nats": nats, "right": right}


def held_bytes(model: Any, cache: Any, kind: str) -> int:
    """Bytes of keys and values in the layers of a kind."""
    return sum(
        layer.keys.nbytes + layer.values.nbytes
        for layer, of in zip(cache.layers, model.config.layer_types, strict=True)
        if of == kind
    )


@torch.no_grad()
def main(source: Path, target: Path) -> None:
    """See the module's text."""
    given = json.loads(source.read_text())
    until = time.monotonic() + given["seconds"]
    torch.set_num_threads(given["threads"])
    model: Any = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    model.eval().to(given["device"])
    first = model.config.layer_types.index("full_attention")
    presses = {
        (method, keep): PRESSES[method](compression_ratio=1 - keep)
        for method in given["methods"]
        for keep in given["keeps"]
        if method != FULL
    }
    for context in given["contexts"]:
        if time.monotonic() > until:
            break
        ids = torch.tensor([context["ids"]], device=given["device"])
        cache = DynamicCache(config=model.config)
        with pressed(model, presses) as left:
            model.model(input_ids=ids, past_key_values=cache)
        if FULL in given["methods"]:
            left[FULL, 1.0] = {}
        with target.open("a") as out:
            for (method, keep), pairs in left.items():
                held = copied(cache, pairs)
                about = {
                    "context": context["name"],
                    "tokens": len(context["ids"]),
                    "method": method,
                    "keep": keep,
                    "kept": held.layers[first].keys.shape[2],
                    "kept_bytes": held_bytes(model, held, "full_attention"),
                    "sliding_bytes": held_bytes(model, held, "sliding_attention"),
                }
                for case in context["cases"]:
                    answer = ask(model, held, ids.shape[1], case)
                    out.write(json.dumps(about | answer) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
