"""What a decoding step searches: queries, landmarks, and the pool of pages that the landmarks stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.kernels.landmark_topk.codes import Codes


@dataclass(frozen=True, slots=True)
class Search:
    """Landmarks of a pool of raw chunks: landmark i stands for page i, and the best of each row are attended to.

    queries [B, E]; landmarks [N, E] shared by all rows, or [B, N, E] (float16, bfloat16 or float32).
    keys, values [P, C, Hkv, D] with P >= N (keys before rotary embedding); place int32 [B, K]: the rotary place of
    the first token of the best chunk, of the second best, …; K of them are attended to.
    length int32 [B] or None: only the first length[b] landmarks count, less the newest `exclude_newest`.
    page_lengths int32 [P] or None: how many of a page's C tokens are valid.
    codes or None: of landmarks that all rows share. Where that is faster (few rows and many landmarks: `plan_for`
    says where) a step reads these first and scores the best 16 (or 2 K if more) of each span again, so a landmark
    that its code hides behind so many others of its span is passed over. Other steps, and the reference, read the
    landmarks alone.
    """

    queries: torch.Tensor
    landmarks: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    place: torch.Tensor
    length: torch.Tensor | None = None
    exclude_newest: int = 0
    page_lengths: torch.Tensor | None = None
    codes: Codes | None = None

    def __post_init__(self) -> None:
        if (
            self.queries.ndim != 2
            or self.landmarks.ndim not in (2, 3)
            or self.queries.shape[1] != self.landmarks.shape[-1]
        ):
            raise ValueError(
                f"queries are {tuple(self.queries.shape)}, landmarks {tuple(self.landmarks.shape)}; give [B, E] "
                "and [N, E] or [B, N, E] with the same E"
            )
        if (
            self.place.dtype != torch.int32
            or self.place.ndim != 2
            or self.place.shape[0] != self.queries.shape[0]
        ):
            raise ValueError(
                f"place is {self.place.dtype} {tuple(self.place.shape)}; give int32 [{self.queries.shape[0]}, K]"
            )
        if self.keys.ndim != 4 or self.keys.shape[0] < self.landmarks.shape[-2]:
            raise ValueError(
                f"keys are {tuple(self.keys.shape)}; {self.landmarks.shape[-2]} landmarks need as many pages "
                "[P, C, Hkv, D] or more"
            )
        if self.codes is not None and not self.codes.fit(self.landmarks):
            raise ValueError(
                f"codes are {tuple(self.codes.words.shape)} of {self.codes.bits} bits, landmarks "
                f"{tuple(self.landmarks.shape)}; give codes of these landmarks [N, E] (`encode_landmarks`)"
            )
