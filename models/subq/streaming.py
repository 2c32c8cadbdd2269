"""Reading a stream of any length and answering at any moment, with the logits of one pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from models.subq.copying import Copied
from models.subq.layers import rms
from models.subq.memory import ChunkMemory, MemoryConfig
from models.subq.model import BlockState, SubqModel
from models.subq.retrieval_attention import Chosen
from models.subq.router import limits, weigh, with_neighbours

_PIECE = 4_096  # tokens computed at once
_TOLD = 1_024  # tokens whose logits are computed at once


class SubqStream:
    """State after what was read: block states, the open chunk, and the memory of whole chunks.

    Reading costs the lower half only: the upper half is computed when logits are asked for, over the tokens that
    it can see (all of them where an upper mixer remembers without end). The chunk grid begins at token 0; `ask`
    begins a new grid of queries at the question's end.
    """

    def __init__(self, model: SubqModel, memory: MemoryConfig | None = None) -> None:
        self.model, self.config = model, model.config
        self.memory_config = memory or MemoryConfig()
        self.seen = 0
        exact = self.config.reach(upper=False)
        self._again = self.memory_config.reencode_tokens or exact
        if self._again is None and self.memory_config.host_bytes < 1 << 60:
            raise ValueError(
                f"host_bytes: given {self.memory_config.host_bytes} with mixers {self.config.lower_mixers}; chunks "
                "of a mixer that remembers without end cannot be encoded again exactly: give reencode_tokens or "
                "leave host_bytes out"
            )
        self.memory = ChunkMemory(
            self.config, self.memory_config, model.device, self._reencode if self._again is not None else None
        )
        self._upper_reach = self.config.reach(upper=True) if self.config.upper_blocks else 0
        self._lower: list[BlockState] | None = None
        self._upper: list[BlockState] | None = None
        self._recent: Tensor | None = None  # lower half of the last tokens, as many as an open chunk needs
        self._recent_ids: list[int] = []
        self._waiting: Tensor | None = None  # lower half of tokens that the upper half has not seen
        self._anchor = 0  # where the grid of queries begins
        self._queries: dict[int, Tensor] = {}  # by the position that they ask for

    # -- reading ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def read(self, ids: Tensor) -> None:
        """Read token ids [T]; nothing is computed that no later token needs."""
        for piece in ids.to(self.model.device).split(_PIECE):  # type: ignore[no-untyped-call]
            self._read(piece)
            if self._upper_reach is None:  # nothing may be left out
                self._flush()

    @torch.no_grad()
    def logits(self, ids: Tensor, keep: int | None = None) -> Tensor:
        """Read ids [T]; the logits [keep or T, vocabulary] after each of the last `keep` of them.

        Of a model that copies they are logarithms of chances (SubqModel.next_logits).
        """
        wanted = len(ids) if keep is None else keep
        out = []
        left = len(ids)
        for piece in ids.to(self.model.device).split(_PIECE):  # type: ignore[no-untyped-call]
            self._read(piece)
            left -= len(piece)
            inside = min(len(piece), max(0, wanted - left))
            if inside:
                out.append(self._told(inside))
        return torch.cat(out) if out else torch.empty(0, self.config.vocabulary, device=self.model.device)

    def ask(self, ids: Tensor) -> Tensor:
        """Read a question; logits [vocabulary] of the answer's first token.

        The last 64 tokens before its last one ask, wherever they stand on the grid; its last token already reads
        what they found. As in training, where a question ends on the first token of a chunk.
        """
        if len(ids) < 1:
            raise ValueError("the question is empty; give at least one token id")
        self.read(ids[:-1])
        self.anchor()
        return self.logits(ids[-1:])[-1]

    @torch.no_grad()
    def anchor(self) -> None:
        """Begin the grid of queries here: the last tokens ask at once, and then once a chunk's length."""
        size = self.config.chunk
        if self.config.retrieval != "chunk" or self.seen % size == self._anchor % size:
            return
        self._flush()
        self._anchor = self.seen
        if self._recent is not None and self._recent.shape[1] >= size and self.model.encoder is not None:
            self._queries = {self.seen: self.model.encode(self._recent[:, -size:]).queries[0, 0]}

    def fork(self) -> SubqStream:
        """A stream that goes on by itself from here; what it reads is not seen by this one."""
        twin = copy.copy(self)
        twin._queries, twin._recent_ids = dict(self._queries), list(self._recent_ids)
        twin.memory = self.memory.fork(twin._reencode if self._again is not None else None)
        return twin

    @property
    def state_bytes(self) -> int:
        """Bytes of everything but the memory of chunks: constant once the stream exceeds the model's reach."""
        tensors = [each for each in (self._recent, self._waiting) if each is not None]
        for state in [*(self._lower or []), *(self._upper or [])]:
            tensors += [state.inputs, *state.mixer]
        return sum(each.nbytes for each in [*tensors, *self._queries.values()])

    # -- inside -----------------------------------------------------------------------------------------------

    def _read(self, ids: Tensor) -> None:
        if not len(ids):
            return
        hidden, self._lower = self.model.lower(ids[None], self._lower)
        start, self.seen = self.seen, self.seen + len(ids)
        self._waiting = hidden if self._waiting is None else torch.cat((self._waiting, hidden), 1)
        if self.model.encoder is None:
            self._trim()
            return
        size = self.config.chunk
        joined = hidden if self._recent is None else torch.cat((self._recent, hidden), 1)
        first = start - (joined.shape[1] - len(ids))  # the stream's position of joined[:, 0]
        self._recent_ids += ids.tolist()
        begin = len(self.memory) * size
        ahead, behind = self.config.lookahead, self.config.lookbehind
        # a chunk is kept when all that it looks ahead to is there; it is offered later (SubqConfig.near)
        whole = max(0, self.seen - begin - ahead) // size
        if whole:
            before = min(behind, begin - first)
            end = begin + whole * size + ahead
            codes = self.model.encode(joined[:, begin - before - first : end - first], before)
            taken = torch.tensor(self._recent_ids[: whole * size]).view(whole, size)
            del self._recent_ids[: whole * size]
            told_by = None
            if self.model.copier is not None:
                own = joined[0, begin - first : begin - first + whole * size]
                told_by = self.model.copier.keys(own).unflatten(0, (whole, size))  # type: ignore[no-untyped-call]
            self.memory.append(codes.landmarks[0], codes.keys[0], codes.values[0], taken, told_by)
            if self._anchor % size == 0 and not ahead:
                self._queries |= {begin + (at + 1) * size: codes.queries[0, at] for at in range(whole)}
        if self.config.retrieval == "chunk" and (ahead or self._anchor % size):
            self._ask_apart(joined, first, start)
        # all that an open chunk needs, on the grid or off it
        self._recent = joined[:, -min(joined.shape[1], max(2 * size, size + ahead + behind)) :]
        self._trim()

    def _ask_apart(self, joined: Tensor, first: int, start: int) -> None:
        """Queries at the positions of the grid of queries that were reached by this segment: where that grid is
        not the chunks', or where a chunk asks before it has seen what it looks ahead to."""
        size = self.config.chunk
        passed = (start - self._anchor) // size + 1
        ends = range(self._anchor + passed * size, self.seen + 1, size)
        spans = [joined[:, end - size - first : end - first] for end in ends if end - size >= first]
        if spans:
            queries = self.model.encode(torch.cat(spans, 1)).queries[0]
            self._queries |= dict(zip((e for e in ends if e - size >= first), queries, strict=True))

    def _trim(self) -> None:
        """Drop waiting tokens that no later logits can depend on."""
        assert self._waiting is not None
        if self._upper_reach is not None and self._waiting.shape[1] > 2 * self._upper_reach + _PIECE:
            self._waiting = self._waiting[:, -(self._upper_reach + _PIECE) :]
            self._upper = None  # zeros before what is left: out of reach of every token still to come
        oldest = self.seen - (self._waiting.shape[1] if self._waiting is not None else 0) - self.config.chunk
        self._queries = {at: query for at, query in self._queries.items() if at >= oldest}

    def _flush(self) -> None:
        """Run the upper half over what waits."""
        for _ in self._pieces():
            pass

    def _told(self, count: int) -> Tensor:
        """Run the upper half over what waits; logits of its last `count` tokens [count, vocabulary]."""
        assert self._waiting is not None
        unasked, found = self._waiting.shape[1] - count, []
        for hidden, copied in self._pieces():
            length = hidden.shape[1]
            # chances of a whole piece at once would be several times its logits
            for begin in range(min(unasked, length), length, _TOLD):
                end = min(length, begin + _TOLD)
                asked = None if copied is None else copied.part(begin, end)
                found.append(self.model.next_logits(hidden[:, begin:end], asked)[0])
            unasked = max(0, unasked - length)
        return torch.cat(found)

    def _pieces(self) -> Iterator[tuple[Tensor, Copied | None]]:
        """What waits after the upper half, piece by piece: normalised [1, T, D], and what its tokens may copy."""
        if self._waiting is None or not self._waiting.shape[1]:
            return
        hidden, self._waiting = self._waiting, None
        if self.model.encoder is None:
            yield rms(hidden), None
            return
        start = self.seen - hidden.shape[1]
        for piece in hidden.split(_PIECE, 1):  # type: ignore[no-untyped-call]
            chosen, copied = self._choose(piece, start)
            mixed, self._upper = self.model.upper(piece, chosen, self._upper)
            yield mixed, copied
            start += piece.shape[1]

    def _choose(self, hidden: Tensor, start: int) -> tuple[Chosen | None, Copied | None]:
        """What tokens start … start + T - 1 read, and what they may copy."""
        config, size = self.config, self.config.chunk
        end = start + hidden.shape[1]
        device = hidden.device
        if config.retrieval == "token":
            assert self.model.encoder is not None
            queries = self.model.encoder.token_queries(hidden)[0]
            newest = limits(torch.arange(start, end, device=device) // size, config.near)
            unit, lead = 1, 0
        else:
            begin = start - (start - self._anchor) % size
            places = list(range(begin, end, size))
            zero = torch.zeros(config.landmark_dim, device=device)
            queries = torch.stack([self._queries.get(at, zero) for at in places])
            newest = limits(torch.tensor([at // size for at in places], device=device), config.near)
            known = torch.tensor([at in self._queries for at in places], device=device)
            newest = newest.masked_fill(~known, -1)
            unit, lead = size, start - begin
        scores, found = self.memory.search(queries, newest.clamp_min(-1))
        past = (newest + 1).clamp_min(0)
        routing = weigh(scores, found, past, config, self.model.scale)
        routing = with_neighbours(routing, config, (newest + 1)[:, None])
        wanted, inverse = torch.unique(routing.indices, return_inverse=True)
        if wanted[-1] < 0:
            return None, None
        known = wanted[wanted >= 0]
        rows = self.memory.rows(known).to(hidden.dtype)
        keys, values, told_by = self.memory.split(rows)
        read = Chosen(
            keys, values, (inverse - int((wanted < 0).any()))[None], routing.weights[None], unit, lead
        )
        if told_by is None:
            return read, None
        return read, Copied(told_by, self._followed(known), read.indices, read.weights, unit, lead)

    def _followed(self, chunks: Tensor) -> Tensor:
        """The token after each token of chunks [m, C]; after a chunk's last the next one's first, kept or open."""
        own, later = self.memory.token_ids(chunks), self.memory.token_ids(chunks + 1)[:, :1]
        if self._recent_ids:
            later[chunks.cpu() + 1 == len(self.memory)] = self._recent_ids[0]
        return torch.cat((own[:, 1:], later), 1).to(chunks.device, torch.long)

    def _reencode(self, chunks: Tensor) -> tuple[Tensor, ...]:
        """What is kept of chunks [m] from their token ids, after as many tokens as can matter: keys, values, and
        where the model copies what tokens are found by."""
        size = self.config.chunk
        assert self._again is not None
        before = -(-(self._again + self.config.lookbehind) // size)
        oldest = self.memory.ids_first
        # what the newest chunk looks ahead to is still open
        ids = torch.cat((self.memory.ids().flatten(), torch.tensor(self._recent_ids, dtype=torch.int32)))
        wide = (before + 1) * size + self.config.lookahead
        keys, values, copied = [], [], []
        for part in chunks.split(8):  # type: ignore[no-untyped-call]
            start = (part - before).clamp_min(oldest)
            places = (start[:, None] - oldest) * size + torch.arange(wide)
            text = ids[places.clamp_max(len(ids) - 1)].to(self.model.device, torch.long)
            hidden, _ = self.model.lower(text)
            codes = self.model.encode(hidden)
            at = torch.arange(len(part), device=hidden.device)
            place = (part - start).to(hidden.device)
            keys.append(codes.keys[at, place])
            values.append(codes.values[at, place])
            if self.model.copier is not None:
                own = place[:, None] * size + torch.arange(size, device=hidden.device)
                copied.append(self.model.copier.keys(hidden[at[:, None], own]))
        return tuple(torch.cat(each) for each in (keys, values, copied) if each)
