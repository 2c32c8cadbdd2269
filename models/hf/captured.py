"""One decoded token as one CUDA graph: what 1,775 launches from Python cost is paid once, when it is captured.

`DecodeStep` is the step itself, in fixed shapes (models/hf/static_memory.py); without a graph it runs the same
operations one by one, on any device. `CapturedSteps` keeps a backbone's steps and lends each to one answer at a
time; where a model cannot be captured it says so once, and answers are decoded the plain way. With `fused_latents`
(models/hf/config.py) a step reads latents as factors (models/hf/static_factors.py); where that cannot be, it says
why once and unpacks them as without the switch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
import torch
from torch import Tensor

from models.cache.factors import factors_of
from models.cache.full_layer import RotatingLayer
from models.cache.layers import ViewLayer
from models.cache.rotating import CacheView, RotatingCompressiveCache
from models.hf.norms import FusedNorm
from models.hf.static_factors import Shapes, not_covered, shape_of, shapes_of
from models.hf.static_memory import StaticMemory, rounded, slots_of

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone

LEAST_TOKENS = 3  # fewer are decoded sooner the plain way
MOST_STEPS = 6  # graphs kept; each holds buffers of some megabytes
MOST_CHANGES = 3  # a model whose weights go on being replaced (training) is not captured again

_log = structlog.get_logger()


class StepKey(NamedTuple):
    """What must be equal for a step to serve again."""

    rows: int
    slots: tuple[tuple[int | None, int], ...]
    places: int
    recorded: int
    shapes: Shapes | None


class DecodeStep:
    """Decodes one token of `B` rows, greedily unless `token` is set between steps."""

    def __init__(self, backbone: HfBackbone, memory: StaticMemory, *, capture: bool) -> None:
        """Raises RuntimeError where `capture` is wanted and the model cannot be captured."""
        self.memory, self._model = memory, backbone.model
        rows, device = memory.num_rows, backbone.device
        self.token = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.best = torch.zeros(rows, dtype=torch.int64, device=device)
        self.logits = torch.zeros(rows, backbone.vocabulary, dtype=backbone.dtype, device=device)
        self._places = torch.zeros_like(self.token)
        # a mask of four dimensions is handed on as it is; our attention does not look at it
        self._mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        self._graph: Any = None
        if capture:
            self._capture(device)

    @property
    def captured(self) -> bool:
        """Whether a step is one graph launch."""
        return self._graph is not None

    @torch.no_grad()
    def run(self) -> None:
        """Read `token` and leave `logits`, the likeliest next ids in `best`, and these in `token`."""
        if self._graph is None:
            self._work()
        else:
            self._graph.replay()

    def after(self, token: int) -> Tensor:
        """Logits `[1, vocabulary]` after one more token of a single row; overwritten by the next step."""
        self.token.fill_(token)
        self.run()
        return self.logits

    def _work(self) -> None:
        memory = self.memory
        memory.prepare()
        logits = self._model(
            input_ids=self.token,
            attention_mask=self._mask,
            position_ids=self._places,
            past_key_values=memory,
            use_cache=True,
            memory=memory,
            logits_to_keep=1,
        ).logits[:, -1]
        self.logits.copy_(logits)
        self.best.copy_(logits.argmax(-1))
        self.token.copy_(self.best[:, None])
        memory.step.add_(1)

    @torch.no_grad()
    def _capture(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):  # libraries choose their kernels and take their memory now
                    self._work()
            torch.cuda.current_stream().wait_stream(side)
            self.memory.step.zero_()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._work()
        self._graph = graph


class CapturedSteps:
    """The steps of one backbone, lent to one answer at a time."""

    def __init__(
        self, backbone: HfBackbone, *, enabled: bool, capture: bool = True, fused_latents: bool = False
    ) -> None:
        """Without `capture` steps are of fixed shape and run one operation after another, as on a CPU."""
        self._backbone, self.enabled, self._capture = backbone, enabled, capture
        self.fused_latents = fused_latents
        self._free: list[tuple[StepKey, DecodeStep]] = []
        self._lock = threading.Lock()
        self._weights: tuple[Any, ...] = ()
        self._changes = 0

    def view_of(self, cache: RotatingCompressiveCache, room: int) -> CacheView:
        """`cache.view(room)`, with the latents beside it as factors where steps read them so."""
        view = cache.view(room)
        if self.enabled and self.shapes([cache]) is not None:
            for layer, held in zip(view.views, cache.stored, strict=True):
                if isinstance(held, RotatingLayer):
                    layer.factors = factors_of(held)
        return view

    def shapes(self, caches: Sequence[RotatingCompressiveCache]) -> Shapes | None:
        """The shapes of the latents that a step for these caches reads as factors; None where it unpacks them."""
        if not self.fused_latents or (self._backbone.device.type == "cuda" and not self.enabled):
            return None
        found = shapes_of(caches[0].stored, (layer for cache in caches[1:] for layer in cache.stored))
        if not found:
            return None
        text_config = self._backbone.model.config.get_text_config(decoder=True)
        softcap = getattr(text_config, "attn_logit_softcapping", None)
        reason = not_covered(self._backbone.specs, found, softcap)
        if reason is not None:
            self._unpack_from_now_on(reason)
        return None if reason is not None else found

    def _unpack_from_now_on(self, reason: str) -> None:
        self.fused_latents = False
        _log.warning(
            "latents_not_fused",
            model=self._backbone.identity,
            reason=reason[:300],
            note="decoding unpacks latents, as without backbone.fused_latents",
        )

    @contextmanager
    def lent(self, view: CacheView, room: int) -> Iterator[DecodeStep | None]:
        """A step whose memory holds the view, with `room` tokens more; None where the plain way is to be taken."""
        key, step = None, None
        if self.enabled and room >= LEAST_TOKENS and all(type(layer) is ViewLayer for layer in view.views):
            for shapes in self._ways(view):
                slots = slots_of(view.views, room, factored=shapes is not None)
                key = StepKey(1, tuple(sorted(slots.items(), key=str)), _places(view.views, room), 0, shapes)
                step = self._take(key)
                if step is not None:
                    step.memory.lay_view(0, view)
                    break
        try:
            yield step
        finally:
            if step is not None and key is not None:
                self.give_back(key, step)

    def _ways(self, view: CacheView) -> list[Shapes | None]:
        """How a view's latents may be read, best first."""
        shapes = tuple((layer.spec.index, shape_of(layer.factors)) for layer in view.views if layer.factors)
        return [shapes, None] if self.fused_latents and shapes else [None]

    def open(
        self,
        rows: int,
        slots: dict[int | None, int],
        places: int,
        recorded: int,
        shapes: Shapes | None = None,
    ) -> tuple[StepKey, DecodeStep | None]:
        """A step of these shapes, or None, and the key by which it is given back."""
        key = StepKey(rows, tuple(sorted(slots.items(), key=str)), places, recorded, shapes)
        return key, self._take(key) if self.enabled else None

    def give_back(self, key: StepKey, step: DecodeStep) -> None:
        """Let the step serve the next answer of its shape; the longest unused one goes if there are many."""
        with self._lock:
            self._free.append((key, step))
            del self._free[:-MOST_STEPS]

    def _take(self, key: StepKey) -> DecodeStep | None:
        with self._lock:
            self._forget_changed()
            if not self.enabled or (key.shapes is not None and not self.fused_latents):
                return None
            for at, (known, step) in enumerate(self._free):
                if known == key:
                    del self._free[at]
                    return step
            try:  # under the lock: two captures at once would disturb each other
                rows, slots, places, recorded, shapes = key
                memory = StaticMemory(self._backbone.specs, rows, dict(slots), places, recorded, shapes)
                return DecodeStep(self._backbone, memory, capture=self._capture)
            except torch.OutOfMemoryError:
                return None  # this answer is decoded the plain way, and the next may fit
            except Exception as error:
                if key.shapes is not None:  # Triton's own errors have no kind in common
                    self._unpack_from_now_on(f"{type(error).__name__}: {error}")
                    return None
                if not isinstance(error, (RuntimeError, ValueError, TypeError, NotImplementedError)):
                    raise
                self.enabled = False
                _log.warning(
                    "decoding_not_captured",
                    model=self._backbone.identity,
                    error=f"{type(error).__name__}: {error}"[:300],
                    note="answers are decoded one operation after another",
                )
                return None

    def _forget_changed(self) -> None:
        """A graph reads the weights where they were: forget all where one has moved, or a norm was trained."""
        now = _state(self._backbone.model)
        if now == self._weights:
            return
        if self._weights:
            self._free.clear()
            self._changes += 1
            if self._changes > MOST_CHANGES:
                self.enabled = False
                _log.info("decoding_not_captured", note="the model's weights go on changing")
        self._weights = now


def _places(layers: Sequence[Any], room: int) -> int:
    return rounded(max(layer._next_place for layer in layers) + room + 1)


def _state(model: Any) -> tuple[Any, ...]:
    pointers = tuple(weight.data_ptr() for weight in model.parameters())
    norms = tuple(
        module.weight._version
        for module in model.modules()
        if isinstance(vars(module).get("forward"), FusedNorm)
    )
    return (pointers, norms, getattr(model.config, "_attn_implementation", None))
