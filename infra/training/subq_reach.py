"""What far text could tell a language model: how much of a text repeats what stands beyond its windows.

    python -m infra.training.subq_reach --model models/weights/subq --data build/subq-news --out reach.json

Each token of unseen sequences is put by the distance to the last place in the sequence that held it behind the same
two tokens: what copying could tell. With a model's losses beside it: what such tokens cost without reading and what
reading gains on them; what a cache of the far text's own n-grams (Grave et al., arXiv 1612.04426) would gain on top
of the model and of a cache of the near text, its shares fitted on other sequences; and whether the chunks that are
chosen hold the rare words that the chunk to come brings up, against the best and against chunks by chance.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infra.training.subq_data import Ids, SubqData
from models.subq import SubqModel
from models.subq.checkpoint import load_checkpoint, load_tokenizer
from models.subq.hindsight import overlap, rarity
from models.subq.router import Routing

EDGES = (512, 3_072)
"""Distances between buckets: what windows of 128 reach in four blocks, and windows of 512 in six."""
BUCKETS = ("near", "middle", "far", "never")
ORDERS = (3, 2, 1)
"""Tokens of context that a cache's entry must match; the longest that is found counts."""
_ROUNDS = 30
_PIECE = 2_048  # positions whose logits are held at once
_COUNTED = 1_000_000  # tokens of training that say which words are rare


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    given = _parser().parse_args(arguments)
    torch.set_num_threads(given.threads)
    model, _ = load_checkpoint(given.model, "cpu", torch.float32)
    tokenizer = load_tokenizer(given.model)
    train, test = (SubqData.load(given.data, part) for part in ("train", "test"))
    seen = tokenizer.encode(train.tokenizer.decode(train.tokens[-_COUNTED:].tolist()))
    rare = rarity(torch.from_numpy(np.bincount(seen, minlength=model.config.vocabulary)))
    stride = len(test.tokens) // given.sequences
    found = []
    for at in range(given.sequences):
        # twice the tokens are enough in whatever tokenizer the model has
        text = test.tokenizer.decode(test.tokens[at * stride : at * stride + 2 * given.length].tolist())
        found.append(sequence(model, np.array(tokenizer.encode(text)[: given.length + 1], np.int64), rare))
    summary = {
        "model": given.model.name,
        "data": given.data.name,
        "length": given.length,
        "sequences": given.sequences,
    } | together(found)
    given.out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


class Measured(NamedTuple):
    """One sequence of T tokens: nats a token with reading and without [T]; bucket of the last repetition [T];
    a near and a far cache's chance of the token [T] with the order that matched (0: none) [T]; rare words held."""

    read: Ids
    unread: Ids
    bucket: Ids
    near: tuple[Ids, Ids]
    far: tuple[Ids, Ids]
    held: dict[str, float]


def sequence(model: SubqModel, ids: Ids, rare: Tensor) -> Measured:
    """Measure ids [T + 1] of whole chunks and one token more."""
    given = torch.from_numpy(ids)
    read, routing = model_losses(model, given, True)
    near, far = cached(ids, EDGES[1])
    unread, _ = model_losses(model, given, False)
    return Measured(read, unread, repeated(ids), near, far, held(model, given, rare, routing))


@torch.no_grad()
def model_losses(model: SubqModel, ids: Tensor, read: bool) -> tuple[Ids, Routing | None]:
    """Nats of each next token [T], and what was chosen."""
    out = model(ids[None, :-1], read=read)
    hidden = out.hidden[0]
    parts = [
        F.cross_entropy(
            model.logits(hidden[at : at + _PIECE]).float(), ids[at + 1 : at + 1 + _PIECE], reduction="none"
        )
        for at in range(0, len(hidden), _PIECE)
    ]
    return torch.cat(parts).numpy(), out.routing


def repeated(ids: Ids) -> Ids:
    """Bucket of each next token [T] by the distance to the last place of the same token behind the same two."""
    last: dict[tuple[int, ...], int] = {}
    found = np.full(len(ids) - 1, len(BUCKETS) - 1, np.int64)
    for at in range(2, len(ids)):
        key = tuple(ids[at - 2 : at + 1].tolist())
        if key in last:
            found[at - 1] = np.searchsorted(EDGES, at - last[key])
        last[key] = at
    return found


def cached(ids: Ids, reach: int) -> tuple[tuple[Ids, Ids], tuple[Ids, Ids]]:
    """Near and far: each token's share among what followed the longest matching context, and that context's length.

    Near holds the last `reach` tokens before the one that is told, far all that came before those.
    """
    length = len(ids)
    shares = np.zeros((2, length - 1))
    orders = np.zeros((2, length - 1), np.int64)
    told: list[dict[int, dict[tuple[int, ...], dict[int, int]]]] = [
        {order: defaultdict(lambda: defaultdict(int)) for order in ORDERS} for _ in range(2)
    ]
    for at in range(1, length):
        leaves = at - 1 - reach  # stood among the near ones until now
        for order in ORDERS:
            if leaves >= order:
                context = tuple(ids[leaves - order : leaves].tolist())
                told[0][order][context][int(ids[leaves])] -= 1
                told[1][order][context][int(ids[leaves])] += 1
            if at - 1 >= order:
                context = tuple(ids[at - 1 - order : at - 1].tolist())
                told[0][order][context][int(ids[at - 1])] += 1
        for place in range(2):
            for order in ORDERS:
                followed = (
                    told[place][order].get(tuple(ids[at - order : at].tolist())) if at >= order else None
                )
                if followed and (total := sum(followed.values())):
                    shares[place, at - 1] = followed.get(int(ids[at]), 0) / total
                    orders[place, at - 1] = order
                    break
    return (shares[0], orders[0]), (shares[1], orders[1])


@torch.no_grad()
def held(model: SubqModel, ids: Tensor, rare: Tensor, routing: Routing | None = None) -> dict[str, float]:
    """Nats of rare words that the chunk to come brings up and one chunk holds: best chosen, best of all, by chance.

    By chance: the expected best of as many chunks drawn evenly from those on offer. Means over chunks that have
    more on offer than they may read, and anything to find. routing: what the model chose, where that is known.
    """
    config = model.config
    routing = routing or model(ids[None, :-1]).routing
    if routing is None:
        return {}
    wanted = overlap(ids[None, :-1], rare.to(ids.device), config.chunk, config.near)[0].cpu()
    indices = routing.indices[0].cpu()  # with what is read beside them
    chosen = wanted.gather(1, indices.clamp_min(0)).masked_fill(indices < 0, 0.0).amax(1)
    rows: list[tuple[float, float, float]] = []
    for chunk in range(config.near + config.top_k, len(wanted)):
        offered = wanted[chunk, : chunk - config.near + 1].sort(descending=True).values
        if offered[0] <= 0:
            continue
        left = torch.arange(len(offered), dtype=torch.float64)
        share = config.top_k / len(offered)
        chance = float((offered * share * (1 - share) ** left).sum())
        rows.append((float(chosen[chunk]), float(offered[0]), chance))
    if not rows:
        return {}
    names = ("chosen", "best", "by_chance")
    return dict(zip(names, np.mean(rows, 0).tolist(), strict=True)) | {"chunks": float(len(rows))}


def rare_words(model: SubqModel, test: Ids, device: str, sequences: int = 4) -> dict[str, float]:
    """`held` over sequences of the trained length, spread evenly over unseen token ids; what is rare is theirs."""
    length = model.config.context_tokens
    rare = rarity(torch.from_numpy(np.bincount(test.astype(np.int64), minlength=model.config.vocabulary)))
    stride = (len(test) - length - 1) // sequences
    rows = [
        held(model, torch.from_numpy(test[at * stride :][: length + 1].astype(np.int64)).to(device), rare)
        for at in range(sequences)
    ]
    told = [row for row in rows if row]
    return {key: round(float(np.mean([row[key] for row in told])), 3) for key in (told or [{}])[0]}


def together(found: Sequence[Measured]) -> dict[str, Any]:
    """Means over all sequences: by bucket, of the caches, of what chosen chunks hold."""
    read, unread, bucket = (
        np.concatenate([getattr(row, name) for row in found]) for name in Measured._fields[:3]
    )
    by_bucket = {}
    for number, name in enumerate(BUCKETS):
        of = bucket == number
        if of.any():
            by_bucket[name] = {
                "share": round(float(of.mean()), 4),
                "unread": round(float(unread[of].mean()), 3),
                "gain_of_reading": round(float((unread - read)[of].mean()), 4),
                "part_of_all_nats": round(float(unread[of].sum() / unread.sum()), 4),
            }
    told = [row.held for row in found if row.held]
    words = {key: round(float(np.mean([row[key] for row in told])), 3) for key in (told or [{}])[0]}
    return {
        "unread": round(float(unread.mean()), 4), "gain_of_reading": round(float((unread - read).mean()), 4),
        "by_last_repetition": by_bucket, "cache": cache_gains(found), "rare_words_held": words,
    }  # fmt: skip


def cache_gains(found: Sequence[Measured]) -> dict[str, float]:
    """Nats that a near cache gains over the model without reading, a far one over both; fitted on the others."""
    gains: list[tuple[float, float, int]] = []
    for at, row in enumerate(found):
        others = [each for number, each in enumerate(found) if number != at] or [row]
        nats = [_mixed(row, others, parts) for parts in ((0,), (0, 1))]
        gains.append(
            (float((row.unread - nats[0]).mean()), float((nats[0] - nats[1]).mean()), len(row.unread))
        )
    weights = [count for _, _, count in gains]
    return {
        name: round(float(np.average([gain[at] for gain in gains], weights=weights)), 4)
        for at, name in enumerate(("near", "far_beside_near"))
    }


def _mixed(row: Measured, fitted_on: Sequence[Measured], parts: tuple[int, ...]) -> Ids:
    """Nats of a mixture of the model and caches, with shares by what both caches matched."""
    classes = _classes(row)
    chances = _chances(row, parts)
    of = np.concatenate([_classes(each) for each in fitted_on])
    seen = np.concatenate([_chances(each, parts) for each in fitted_on], 1)
    out = row.unread.astype(np.float64).copy()
    for each in np.unique(classes):
        own, theirs = classes == each, of == each
        shares = np.full(len(chances), 1 / len(chances))
        if theirs.sum() < 20:  # too few to fit: the model alone
            continue
        for _ in range(_ROUNDS):
            parts_of = shares[:, None] * seen[:, theirs]
            shares = (parts_of / parts_of.sum(0)).mean(1)
        out[own] = -np.log(shares @ chances[:, own])
    return out


def _classes(row: Measured) -> Ids:
    found: Ids = row.near[1] * (len(ORDERS) + 1) + row.far[1]
    return found


def _chances(row: Measured, parts: tuple[int, ...]) -> Ids:
    caches = (row.near[0], row.far[0])
    return np.stack([np.exp(-row.unread.astype(np.float64)), *(caches[at] for at in parts)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint with its tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="a folder of infra.training.subq_pack")
    parser.add_argument("--out", type=Path, required=True, help="JSON written at the end")
    parser.add_argument("--sequences", type=int, default=4, help="unseen sequences, spread evenly")
    parser.add_argument("--length", type=int, default=16_384, help="tokens a sequence, whole chunks")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    return parser


if __name__ == "__main__":
    main()
