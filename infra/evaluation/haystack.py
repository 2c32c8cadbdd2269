"""A long text, encoded once: landmarks to search, keys and values to read, and patches where needles change it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.subq import SubqModel
from models.subq.copying import Copied
from models.subq.index import LandmarkIndex, build_index
from models.subq.router import NEVER, Routing

Ids = np.ndarray[Any, np.dtype[Any]]
Written = Sequence[tuple[int, tuple[int, ...]]]
_LONGEST_NEEDLE = 128  # tokens
_SEGMENT = 65_536


class Patches(NamedTuple):
    """What the needles of R trials change: chunks [R, E], landmarks [R, E, D], keys, values [R, E, C, 2, g, d].

    Of a model that copies the keys of tokens [R, E, C, d] and their ids [R, E, C] too."""

    chunks: Tensor
    landmarks: Tensor
    kv: Tensor
    copied: Tensor | None = None
    ids: Tensor | None = None


class Haystack:
    """ids: token ids, a whole number of chunks. Landmarks float16 [n, D], keys and values in the model's dtype.

    Of a model that copies a key a token more [n, C, d], and the ids on the device [n, C] (int32)."""

    def __init__(self, model: SubqModel, ids: Ids, segment: int = _SEGMENT) -> None:
        config = model.config
        if len(ids) % config.chunk or not len(ids):
            raise ValueError(
                f"ids: given {len(ids)} tokens; allowed: a whole number of chunks of {config.chunk}"
            )
        self.model, self.ids, self.device = model, ids, model.device
        self.num_chunks = len(ids) // config.chunk
        dtype = model.embedding.weight.dtype
        self.landmarks = torch.empty(
            self.num_chunks, config.landmark_dim, dtype=torch.float16, device=self.device
        )
        self.kv = torch.empty(
            self.num_chunks,
            config.chunk,
            2,
            config.kv_heads,
            config.head_dim,
            dtype=dtype,
            device=self.device,
        )
        self.copied = self.tokens = None
        if model.copier is not None:
            shape = (self.num_chunks, config.chunk)
            self.copied = torch.empty(*shape, config.head_dim, dtype=dtype, device=self.device)
            self.tokens = torch.from_numpy(ids.astype(np.int32)).view(shape).to(self.device)
        reach = (config.reach(upper=False) or 0) + config.lookbehind
        self._before = -(-reach // config.chunk)
        # the chunk before a needle's changes too where it looks ahead
        self.patch_lead = 1 if config.lookahead else 0
        # a needle may begin at any token of its chunk
        self.patch_chunks = -(-(reach + _LONGEST_NEEDLE + config.chunk) // config.chunk) + self.patch_lead
        self._encode(segment)
        self._index: LandmarkIndex | None = None

    def search_by(self, index: str, probes: int) -> None:
        """From here on the whole text is searched by that index (SubqConfig.index); patched texts never are."""
        self._index = None
        if index == "flat":  # the search below, which knows patches
            return
        self._index = build_index(index, self.landmarks.shape[1], probes, self.landmarks.dtype, self.device)
        self._index.add(self.landmarks)

    @property
    def kv_bytes_a_chunk(self) -> int:
        """Bytes of one chunk's keys and values, those that a copying head asks among them."""
        return self.kv[0].nbytes + (0 if self.copied is None else self.copied[0].nbytes)

    @property
    def ids_bytes_a_chunk(self) -> int:
        """Bytes of one chunk's token ids, where a head copies them; 0 where none does."""
        return 0 if self.tokens is None else self.tokens[0].nbytes

    @torch.no_grad()
    def _encode(self, segment: int) -> None:
        """The lower half over segments, the state and what chunks see beside them carried on."""
        config, states = self.model.config, None
        size, ahead, behind = config.chunk, config.lookahead, config.lookbehind
        segment = max(size, segment // size * size)
        open_, before, done = (
            None,
            0,
            0,
        )  # hidden states not done with, of which so many are only looked back to
        for start in range(0, len(self.ids), segment):
            piece = torch.from_numpy(self.ids[start : start + segment].astype(np.int64)).to(self.device)
            hidden, states = self.model.lower(piece[None], states)
            joined = hidden if open_ is None else torch.cat((open_, hidden), 1)
            last = start + segment >= len(self.ids)
            whole = max(0, joined.shape[1] - before - (0 if last else ahead)) // size
            end = before + whole * size
            codes = self.model.encode(joined[:, : end + ahead], before)
            at = slice(done, done + whole)
            self.landmarks[at] = codes.landmarks[0].to(torch.float16)
            self.kv[at] = torch.stack((codes.keys[0], codes.values[0]), 2).to(self.kv.dtype)
            if self.copied is not None and self.model.copier is not None:
                keys = self.model.copier.keys(joined[0, before:end])
                self.copied[at] = keys.view(whole, size, -1).to(self.copied.dtype)
            done, kept = done + whole, max(0, end - behind)
            open_, before = joined[:, kept:], end - kept

    @torch.no_grad()
    def patched(self, trials: Sequence[Written]) -> Patches:
        """Chunks that the needles of each trial change, encoded with them. All trials have equally many needles."""
        size, span = self.model.config.chunk, self.patch_chunks
        wide, ahead = self._before + span, self.model.config.lookahead
        texts, starts = [], []
        for needles in trials:
            for at, needle in needles:
                if len(needle) > _LONGEST_NEEDLE:
                    raise ValueError(f"a needle has {len(needle)} tokens; allowed: {_LONGEST_NEEDLE} at most")
                first = max(0, at // size - self.patch_lead)
                begin = max(0, first - self._before)
                text = np.zeros(wide * size + ahead, np.int64)
                known = self.ids[begin * size : (begin + wide) * size + ahead]
                text[: len(known)] = known
                text[at - begin * size : at - begin * size + len(needle)] = needle
                texts.append(text)
                starts.append((first, first - begin))
        landmarks, kv, copied = [], [], []
        for at in range(0, len(texts), 16):
            hidden, _ = self.model.lower(torch.from_numpy(np.stack(texts[at : at + 16])).to(self.device))
            codes = self.model.encode(hidden)
            both = torch.stack((codes.keys, codes.values), 3)
            for row, (_, skip) in enumerate(starts[at : at + 16]):
                landmarks.append(codes.landmarks[row, skip : skip + span].to(torch.float16))
                kv.append(both[row, skip : skip + span].to(self.kv.dtype))
                if self.model.copier is not None:
                    keys = self.model.copier.keys(hidden[row, skip * size : (skip + span) * size])
                    copied.append(keys.view(span, size, -1).to(self.kv.dtype))
        count = len(trials)
        chunks = torch.tensor([first for first, _ in starts], device=self.device)[:, None]
        chunks = chunks + torch.arange(span, device=self.device)
        found = Patches(
            chunks.view(count, -1),
            torch.stack(landmarks).view(count, -1, self.landmarks.shape[1]),
            torch.stack(kv).view(count, -1, *self.kv.shape[1:]),
        )
        if not copied:
            return found
        written = [
            text[skip * size : (skip + span) * size] for text, (_, skip) in zip(texts, starts, strict=True)
        ]
        return found._replace(
            copied=torch.stack(copied).view(count, -1, size, copied[0].shape[-1]),
            ids=torch.from_numpy(np.stack(written).astype(np.int32)).to(self.device).view(count, -1, size),
        )

    def search(
        self, queries: Tensor, first: int, chunks: int, newest: Tensor, k: int, patches: Patches | None
    ) -> tuple[Tensor, Tensor]:
        """The k best of chunks first … first + chunks - 1 for queries [R, U, D]: (scores, chunks) [R, U, k].

        newest [U]: last chunk that is offered, counted from `first`. Patched landmarks stand in for the text's own.
        """
        if self._index is not None and patches is None and (first, chunks) == (0, self.num_chunks):
            flat, limits = queries.flatten(0, 1), newest.expand(queries.shape[:2]).flatten()
            # a tree gathers what it scores, so only some queries are asked at once
            parts = [
                self._index.search(part.float(), k, limit)
                for part, limit in zip(flat.split(256), limits.split(256), strict=True)  # type: ignore[no-untyped-call]
            ]
            values, at = (torch.cat(each).view(*queries.shape[:2], -1) for each in zip(*parts, strict=True))
            return values, at.masked_fill(values == NEVER, -1)
        rows = self.landmarks[first : first + chunks]
        place = torch.arange(chunks, device=self.device)
        offered = place <= newest[:, None]
        best, found = [], []
        for row in range(len(queries)):
            scores = _products(queries[row], rows).masked_fill(~offered, NEVER)
            if patches is not None:
                inside = patches.chunks[row] - first
                real = (inside >= 0) & (inside < chunks)
                new = _products(queries[row], patches.landmarks[row])
                new = new.masked_fill(~(real & (inside <= newest[:, None])), NEVER)
                scores[:, inside[real]] = new[:, real]
            values, indices = scores.topk(min(k, chunks), -1)
            best.append(values)
            found.append((indices + first).masked_fill(values == NEVER, -1))
        return torch.stack(best), torch.stack(found)

    def gather(self, indices: Tensor, patches: Patches | None) -> tuple[Tensor, Tensor]:
        """Keys and values [R * U * k, C, g, d] of chunks [R, U, k] (-1: anything)."""
        kv = self.kv[indices.flatten().clamp_min(0)].view(*indices.shape, *self.kv.shape[1:])
        if patches is not None:
            for at in range(len(indices)):
                same = indices[at, :, :, None] == patches.chunks[at]  # [U, k, E]
                changed, which = same.any(-1), same.int().argmax(-1)
                kv[at][changed] = patches.kv[at][which[changed]]
        flat = kv.flatten(0, 2)
        return flat[:, :, 0], flat[:, :, 1]

    def copies(self, routing: Routing, row: int, patches: Patches | None) -> Copied | None:
        """What blocks of a chunk's tokens may copy of what trial `row` chose for them: its routing [U, k]."""
        if self.copied is None or self.tokens is None:
            return None
        chosen = routing.indices.clamp_min(0).flatten()
        keys, own = self.copied[chosen], self.tokens[chosen]
        later = self.tokens[(chosen + 1).clamp_max(self.num_chunks - 1), 0]
        if patches is not None and patches.copied is not None and patches.ids is not None:
            same = chosen[:, None] == patches.chunks[row]
            changed, which = same.any(-1), same.int().argmax(-1)
            keys[changed], own[changed] = (
                patches.copied[row][which[changed]],
                patches.ids[row][which[changed]],
            )
            # a needle may begin where the next chunk does
            same = chosen[:, None] + 1 == patches.chunks[row]
            changed, which = same.any(-1), same.int().argmax(-1)
            later[changed] = patches.ids[row][which[changed], 0]
        later = later.masked_fill(chosen + 1 >= self.num_chunks, -1)
        followed = torch.cat((own[:, 1:], later[:, None]), 1).long()
        slots = torch.arange(len(chosen), device=self.device).view(1, *routing.indices.shape)
        slots = slots.masked_fill(routing.indices < 0, -1)
        return Copied(keys, followed, slots, routing.weights[None], self.model.config.chunk)


def _products(queries: Tensor, rows: Tensor) -> Tensor:
    """Dot products in float32 of queries rounded to the rows' float16."""
    if rows.is_cuda:
        return torch.mm(queries.to(rows.dtype), rows.T, out_dtype=torch.float32)
    return queries.to(rows.dtype).float() @ rows.float().T
