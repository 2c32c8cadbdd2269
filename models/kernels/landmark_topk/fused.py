"""Launches the landmark search.

One query scans all landmarks, each split keeping its k best, which are then merged. Many queries first take each
block's best score with matrix products, then scan only the k blocks whose best scores are highest.
"""

from __future__ import annotations

import torch

from models.kernels.dependent import dependent
from models.kernels.dispatch import interpreting, last_contiguous
from models.kernels.landmark_topk.coded import coded_scan_kernel
from models.kernels.landmark_topk.codes import Codes
from models.kernels.landmark_topk.kernel import maxima_kernel, merge_kernel, scan_kernel

_MERGE_WIDTH = 4096
_SPLITS = 512  # about four programs on each processor of a large card
_KEPT = 16  # of a span's landmarks, best by code, that are scored again, and at least twice k
_CODED_TILE = 4096  # words of codes read at a time
_BLOCK = 128  # landmarks that many queries share one best score for


def landmark_topk_fused(
    queries: torch.Tensor,
    landmarks: torch.Tensor,
    k: int,
    *,
    length: torch.Tensor | None,
    exclude_newest: int,
    two_steps: bool | None = None,
    early: bool = False,
    chained: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `landmark_topk_naive`, scores kept in registers; `two_steps` overrides the choice of the way.

    `early`: what is launched next knows that it waits for what is found alone. `chained`: launches overlap in long
    searches of many queries too.
    """
    queries = queries.to(landmarks.dtype).contiguous()
    search = Spans(queries, last_contiguous(landmarks), k, length, exclude_newest, chained)
    if queries.shape[1] > 4 if two_steps is None else two_steps:
        _, blocks = search.merge(search.maxima(early), search.k)
        return search.merge(search.scan(search.block, blocks), k)
    return search.merge(search.scan(search.span(), None, early=early), k)


class Spans:
    """One call: its inputs and the launches that read them."""

    def __init__(
        self,
        queries: torch.Tensor,
        landmarks: torch.Tensor,
        k: int,
        length: torch.Tensor | None,
        exclude_newest: int,
        chained: bool = False,
    ) -> None:
        self.queries, self.landmarks = queries, landmarks
        self.length, self.exclude_newest = length, exclude_newest
        self.batch, self.num_queries, self.dim = queries.shape
        self.num_landmarks = landmarks.shape[-2]
        # overlapping launches were measured to help short searches and to slow long ones of many queries
        short = chained or self.num_queries <= 4 or self.num_landmarks <= 65_536
        self.launch = dependent(queries) if short else {"PDL": False}
        self.k = k
        self.width = _power(max(k, 2))
        self.block = max(_BLOCK, self.width)
        self.strides = (landmarks.stride(0) if landmarks.ndim == 3 else 0, landmarks.stride(-2))
        self.block_d = _power(max(self.dim, 16))
        self.block_n = max(8, 8192 // self.block_d // (2 if landmarks.element_size() == 4 else 1))

    def span(self) -> int:
        """Landmarks of one split: as many splits as fill the card, at least k landmarks, at most 2,048."""
        wanted = _power(-(-self.num_landmarks * self.batch * self.num_queries // _SPLITS))
        return max(self.block_n, self.width, min(wanted, 2048))

    def scan(
        self,
        span: int,
        blocks: torch.Tensor | None,
        splits: int | None = None,
        early: bool = False,
        ranked: bool = False,
    ) -> torch.Tensor:
        """Candidates [B, Q, splits, width] of consecutive spans, or of the blocks [B, Q, n] of `span` landmarks.

        More `splits` than there are spans get no candidates. `early`: the next kernel on the device knows that it
        waits for these candidates alone. `ranked`: sorted by comparing all of a span (up to 128) with all.
        """
        if splits is None:
            splits = -(-self.num_landmarks // span) if blocks is None else blocks.shape[2]
        part = self._candidates(splits, self.width)
        block_n = min(self.block_n, span)
        scan_kernel[(splits, self.num_queries, self.batch)](
            self.queries,
            self.landmarks,
            self.length if self.length is not None else part,
            blocks if blocks is not None else part,
            part,
            self.num_queries,
            self.num_landmarks,
            self.exclude_newest,
            self.dim,
            *self.strides,
            K=self.width,
            STEPS=span // block_n,
            BLOCK_N=block_n,
            BLOCK_D=self.block_d,
            LENGTHS=self.length is not None,
            CHOSEN=blocks is not None,
            EARLY=early,
            RANKED=ranked,
            num_warps=4,
            **self.launch,
        )
        return part

    def coded_scan(
        self,
        codes: Codes,
        span: int,
        splits: int,
        early: bool = False,
        *,
        kept: int | None = None,
        stages: int = 3,
    ) -> torch.Tensor:
        """As `scan` for one query a row over landmarks that all share, those of a span chosen by their codes first.

        `kept` of a span are scored again, a power of two from k up to the span (None: at least _KEPT and 2 k).
        """
        part = self._candidates(splits, self.width)
        words = codes.words.shape[1]
        block_n = min(max(8, _CODED_TILE // words), span)
        coded_scan_kernel[(splits, self.batch)](
            self.queries,
            self.landmarks,
            codes.words,
            codes.scale,
            self.length if self.length is not None else part,
            part,
            self.num_landmarks,
            self.exclude_newest,
            self.dim,
            self.strides[1],
            K=self.width,
            KEEP=min(span, kept or max(_KEPT, 2 * self.width)),
            STEPS=span // block_n,
            BLOCK_N=block_n,
            BLOCK_D=self.block_d,
            WORDS=words,
            BITS=codes.bits,
            STAGES=stages,
            LENGTHS=self.length is not None,
            EARLY=early,
            ASM=not interpreting(),
            # where a lane holds one dimension, a product fused into the first exchanged sum leaves lanes with
            # scores of different last bits, and two candidates with one rank: one is lost, a place not written
            enable_fp_fusion=False,
            num_warps=4,
            **self.launch,
        )
        return part

    def maxima(self, early: bool = False) -> torch.Tensor:
        """Each block's best score as candidates [B, Q, lists, width], filled up with none; `early` as in `scan`."""
        blocks = -(-self.num_landmarks // self.block)
        lists = -(-blocks // self.width)
        part = self._candidates(lists, self.width)
        if lists * self.width > blocks:
            part.view(self.batch, self.num_queries, -1)[..., blocks:] = -(2**63)
        block_q = min(64, _power(max(self.num_queries, 16)))
        maxima_kernel[(blocks, -(-self.num_queries // block_q), self.batch)](
            self.queries,
            self.landmarks,
            self.length if self.length is not None else part,
            part,
            self.num_queries,
            self.num_landmarks,
            self.exclude_newest,
            self.dim,
            lists * self.width,
            *self.strides,
            BLOCK_Q=block_q,
            BLOCK_N=self.block,
            BLOCK_D=min(self.block_d, 32 if self.landmarks.element_size() == 4 else 64),
            LENGTHS=self.length is not None,
            PRECISION="ieee",
            EARLY=early,
            num_warps=4,
            num_stages=3,
            **self.launch,
        )
        return part

    def merge(self, part: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best candidates of each query, unpacked, in as many rounds as they need."""
        scores = torch.empty((self.batch, self.num_queries, k), dtype=torch.float32, device=part.device)
        index = torch.empty((self.batch, self.num_queries, k), dtype=torch.int32, device=part.device)
        while True:
            lists = part.shape[2]
            fan_in = min(_MERGE_WIDTH // self.width, _power(lists))
            groups = -(-lists // fan_in)
            merged = self._candidates(groups, self.width) if groups > 1 else part
            merge_kernel[(groups, self.batch * self.num_queries)](
                part,
                merged,
                scores,
                index,
                lists,
                k,
                K=self.width,
                FAN_IN=fan_in,
                LAST=groups == 1,
                num_warps=8 if fan_in * self.width > 1024 else 4,
                **self.launch,
            )
            if groups == 1:
                return scores, index
            part = merged

    def _candidates(self, lists: int, width: int) -> torch.Tensor:
        shape = (self.batch, self.num_queries, lists, width)
        return torch.empty(shape, dtype=torch.int64, device=self.queries.device)


def _power(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << max(size - 1, 0).bit_length()
