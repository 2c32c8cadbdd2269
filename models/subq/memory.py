"""A stream's chunks: landmarks to search, and keys and values to read, kept where a budget of bytes allows.

Keys and values of a full segment of chunks live on the device as they are; beyond `device_bytes` the oldest move to
(pinned) host memory, as they are or in 8 bits; beyond `host_bytes` they are dropped and encoded again from their
token ids when they are chosen. Of a model that copies there is one key a token more, beside the readers' keys.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.subq.config import SubqConfig
from models.subq.index import LandmarkIndex, build_index

Reencode = Callable[[Tensor], tuple[Tensor, ...]]
SEGMENT = 64
PLACES = ("device", "host", "ids")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """Where a stream keeps its chunks."""

    device_bytes: int = field(
        default=1 << 60, metadata={"help": "keys and values kept on the model's device, at most"}
    )
    host_bytes: int = field(
        default=1 << 60, metadata={"help": "keys and values kept in host memory, at most"}
    )
    compressed: bool = field(
        default=True, metadata={"help": "in host memory: 8 bits a number instead of 16 or 32"}
    )
    most_chunks: int = field(
        default=0,
        metadata={
            "help": "chunks that stay findable, oldest leave first (0: all): with it the bytes of a stream are "
            "bounded; 128 or more"
        },
    )
    landmark_dtype: str = field(default="float16", metadata={"help": "float16 or float32"})
    reencode_tokens: int = field(
        default=0,
        metadata={
            "help": "tokens read again before a chunk that was dropped (0: all that can matter, exact)"
        },
    )

    def __post_init__(self) -> None:
        for name in ("device_bytes", "host_bytes", "reencode_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 0 or more")
        if isinstance(self.most_chunks, bool) or not (
            self.most_chunks == 0 or self.most_chunks >= 2 * SEGMENT
        ):
            raise ValueError(
                f"most_chunks: given {self.most_chunks}; allowed: 0 (all), or {2 * SEGMENT} and more"
            )
        if self.landmark_dtype not in ("float16", "float32"):
            raise ValueError(f"landmark_dtype: given {self.landmark_dtype!r}; allowed: float16, float32")


@dataclass(slots=True)
class _Segment:
    """Rows of up to SEGMENT chunks [n, C, P, d] (see ChunkMemory.rows), or in 8 bits with scales [n, C, P, 1]."""

    place: str
    kv: Tensor | None
    scales: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in (self.kv, self.scales) if each is not None)

    def read(self, rows: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        assert self.kv is not None
        picked = self.kv[rows.to(self.kv.device)].to(device, non_blocking=True)
        if self.scales is None:
            return picked.to(dtype)
        return (picked.float() * self.scales[rows.to(self.scales.device)].to(device)).to(dtype)


class ChunkMemory:
    """Chunks are appended and never change; see MemoryConfig for where they live and how many.

    Chunks are known by their number in the stream for ever; `first` is the oldest that is still held.
    """

    def __init__(
        self, model: SubqConfig, config: MemoryConfig, device: torch.device, reencode: Reencode | None = None
    ) -> None:
        """`reencode(chunks [m])` gives what was dropped again: keys, values [m, C, g, d]; where the model copies,
        its head's keys [m, C, d] too."""
        if config.most_chunks and config.most_chunks < 2 * model.top_k:
            raise ValueError(
                f"most_chunks: given {config.most_chunks} for a model that reads {model.top_k} chunks at once; "
                f"allowed: {2 * model.top_k} or more"
            )
        if reencode is None and config.host_bytes < 1 << 60:
            raise ValueError(
                f"host_bytes: given {config.host_bytes}, but this model's chunks cannot be encoded again"
            )
        self.model, self.config, self.device = model, config, device
        self.index = self._new_index()
        self.first = 0
        self._ids_first = 0
        self._reencode = reencode
        self._segments: list[_Segment] = []
        self._ids: list[Tensor] = []
        self._dtype = torch.float32

    def __len__(self) -> int:
        """Chunks that were ever appended."""
        return self.first + len(self.index)

    def _new_index(self) -> LandmarkIndex:
        dtype = getattr(torch, self.config.landmark_dtype)
        return build_index(self.model.index, self.model.landmark_dim, self.model.probes, dtype, self.device)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes by place: landmarks (and their index), keys and values on the device and on the host (those of a
        copying head among them), token ids."""
        found = {
            "landmarks": self.index.nbytes,
            "device": 0,
            "host": 0,
            "ids": sum(i.nbytes for i in self._ids),
        }
        for segment in self._segments:
            if segment.place != "ids":
                found[segment.place] += segment.nbytes
        return found

    def append(
        self, landmarks: Tensor, keys: Tensor, values: Tensor, ids: Tensor, copied: Tensor | None = None
    ) -> None:
        """Next chunks: landmarks [n, R], keys and values [n, C, g, d], token ids [n, C]; where the model copies the
        copying head's keys [n, C, d]."""
        if (copied is not None) != self.model.copies:
            raise ValueError(
                f"copied: given {'none' if copied is None else 'keys'}, model with copies {self.model.copies}; "
                "allowed: keys for a model that copies, and for no other"
            )
        self._dtype = keys.dtype
        kv = _packed(keys, values, copied)
        at = len(self)
        self._add_ids(ids)
        self.index.add(landmarks)
        while len(kv):
            room = SEGMENT - at % SEGMENT
            part, kv = kv[:room], kv[room:]
            if at % SEGMENT == 0:
                self._segments.append(_Segment("device", part.clone()))
            else:
                last = self._segments[-1]
                assert last.kv is not None
                # a new object: forks of this memory hold on to the old one
                self._segments[-1] = _Segment("device", torch.cat((last.kv, part)))
            at += len(part)
        self._settle()

    def search(self, queries: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """The top_k chunks of each query [Q, R] that are not newer than limits [Q]: (scores, chunks) [Q, top_k]."""
        if not len(self.index):
            shape = (len(queries), self.model.top_k)
            return queries.new_full(shape, float("-inf")), torch.full(shape, -1, device=queries.device)
        scores, found = self.index.search(queries, self.model.top_k, (limits - self.first).clamp_min(-1))
        return scores, torch.where(found >= 0, found + self.first, found)

    def fetch(self, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [m, C, g, d] of chunks [m] on the model's device, from wherever they are."""
        return self.split(self.rows(chunks))[:2]

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values [m, C, g, d] and, where the model copies, the copying head's keys [m, C, d] of `rows`."""
        groups = self.model.kv_heads
        copied = rows[:, :, -1] if self.model.copies else None
        return rows[:, :, :groups], rows[:, :, groups : 2 * groups], copied

    def rows(self, chunks: Tensor) -> Tensor:
        """All that is kept of the tokens of chunks [m], from wherever it is, on the model's device [m, C, P, d].

        P is twice the key heads, and one more where the model copies. ValueError for a chunk that is gone."""
        out = torch.empty(len(chunks), *self._row_shape, dtype=self._dtype, device=self.device)
        wanted = chunks.cpu() - self.first
        if len(wanted) and int(wanted.min()) < 0:
            raise ValueError(
                f"chunk {int(chunks.min())} is gone; the memory holds {self.first} to {len(self) - 1}"
            )
        dropped = torch.tensor(
            [self._segments[int(c) // SEGMENT].place == "ids" for c in wanted], dtype=torch.bool
        )
        for at in torch.unique(wanted[~dropped] // SEGMENT).tolist():
            rows = torch.nonzero((wanted // SEGMENT == at) & ~dropped)[:, 0]
            out[rows.to(self.device)] = self._segments[at].read(
                wanted[rows] % SEGMENT, self.device, self._dtype
            )
        if dropped.any():
            assert self._reencode is not None
            again = self._reencode(wanted[dropped] + self.first)
            out[dropped.to(self.device)] = _packed(*again).to(self._dtype)
        return out

    def token_ids(self, chunks: Tensor) -> Tensor:
        """Token ids [m, C] (int32, on the host) of chunks [m] that are held."""
        wanted, begin = chunks.cpu() - self._ids_first, 0
        out = torch.full((len(wanted), self.model.chunk), -1, dtype=torch.int32)
        for part in self._ids:
            inside = (wanted >= begin) & (wanted < begin + len(part))
            out[inside] = part[wanted[inside] - begin]
            begin += len(part)
        return out

    @property
    def ids_first(self) -> int:
        """The chunk that `ids` begins with: older than `first` by what a chunk needs to be encoded again."""
        return self._ids_first

    def ids(self) -> Tensor:
        """Token ids of chunks `ids_first` and later [n, C]."""
        if len(self._ids) > 1:
            self._ids = [torch.cat(self._ids)]
        return self._ids[0] if self._ids else torch.empty(0, self.model.chunk, dtype=torch.int32)

    def fork(self, reencode: Reencode | None) -> ChunkMemory:
        """A memory that goes on by itself: nothing that is appended to one is seen by the other."""
        twin = copy.copy(self)
        twin._segments, twin._ids, twin._reencode = list(self._segments), list(self._ids), reencode
        twin.index = copy.deepcopy(self.index)
        return twin

    def all_rows(self) -> Tensor:
        """The rows of all chunks that are held, brought back from wherever they are: for snapshots."""
        if not len(self.index):
            return torch.empty(0, *self._row_shape, dtype=self._dtype, device=self.device)
        numbers = torch.arange(self.first, len(self))
        return torch.cat([self.rows(part) for part in numbers.split(SEGMENT)])  # type: ignore[no-untyped-call]

    @property
    def _row_shape(self) -> tuple[int, int, int]:
        config = self.model
        return config.chunk, 2 * config.kv_heads + config.copies, config.head_dim

    def _add_ids(self, ids: Tensor) -> None:
        """Put ids behind the others, in parts that double: a token id is moved O(log n) times and found in as many
        looks. A part never changes, so that forks may hold on to it."""
        self._ids.append(ids.to("cpu", torch.int32))
        while len(self._ids) > 1 and len(self._ids[-1]) >= len(self._ids[-2]):
            self._ids[-2:] = [torch.cat(self._ids[-2:])]

    def start_at(self, first: int, ids_first: int, older_ids: Tensor) -> None:
        """Make an empty memory go on at chunk `first`, as one that has evicted what was before."""
        assert not len(self) and first % SEGMENT == 0
        self.first, self._ids_first = first, ids_first
        if len(older_ids):
            self._add_ids(older_ids)

    def _evict(self) -> None:
        """Drop the oldest segments, a quarter of what is allowed at a time: the index is built again each time."""
        held, most = len(self.index), self.config.most_chunks
        if not most or held <= most:
            return
        keep = most - max(SEGMENT, most // 4)
        gone = -(-(held - keep) // SEGMENT)
        landmarks = self.index.landmarks()[gone * SEGMENT :]
        self.index = self._new_index()
        self.index.add(landmarks)
        del self._segments[:gone]
        self.first += gone * SEGMENT
        ids, kept_from = self.ids(), max(0, self.first - SEGMENT)
        self._ids = [ids[kept_from - self._ids_first :].clone()]
        self._ids_first = kept_from

    def _settle(self) -> None:
        """Evict what is too old, and move the oldest full segments down until every place is within its budget."""
        self._evict()
        self._demote("device", self.config.device_bytes, self._to_host)
        self._demote("host", self.config.host_bytes, lambda segment: _Segment("ids", None))

    def _demote(self, place: str, budget: int, move: Callable[[_Segment], _Segment]) -> None:
        here = [at for at, segment in enumerate(self._segments) if segment.place == place]
        used = sum(self._segments[at].nbytes for at in here)
        for at in here:
            segment = self._segments[at]
            if used <= budget or segment.kv is None or len(segment.kv) < SEGMENT:
                break
            used -= segment.nbytes
            self._segments[at] = move(segment)

    def _to_host(self, segment: _Segment) -> _Segment:
        assert segment.kv is not None
        if not self.config.compressed:
            return _Segment("host", _on_host(segment.kv))
        scales = segment.kv.float().abs().amax(-1, keepdim=True).clamp_min(1e-8) / 127.0
        rounded = torch.round(segment.kv.float() / scales).to(torch.int8)
        return _Segment("host", _on_host(rounded), _on_host(scales.half()))


def _packed(keys: Tensor, values: Tensor, copied: Tensor | None = None) -> Tensor:
    """Keys and values [m, C, g, d], and keys to copy by [m, C, d], as rows [m, C, P, d]."""
    parts = [keys, values] if copied is None else [keys, values, copied[:, :, None].to(keys.dtype)]
    return torch.cat(parts, 2)


def _on_host(x: Tensor) -> Tensor:
    host = x.cpu() if not x.is_cuda else x.to("cpu", non_blocking=False)
    return host.pin_memory() if x.is_cuda else host
