"""The embedder: requests of many callers in batches of like length, questions first."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from actors.embedder import MicroBatcher


class LengthEmbedder:
    """Embeds a text as its length; notes each batch, and waits for `gate` before each."""

    identity, dim, max_tokens, batch_texts = "length", 1, 100, 4

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Semaphore(1_000)
        self.entered = threading.Event()

    def encode(self, texts: Sequence[str]) -> Any:
        self.entered.set()
        assert self.gate.acquire(timeout=10)
        self.batches.append(list(texts))
        return np.asarray([[len(text)] for text in texts], dtype=np.float32)


@pytest.fixture
def batcher() -> Any:
    """A batcher over the embedder of lengths."""
    made = MicroBatcher(LengthEmbedder())  # type: ignore[arg-type]
    yield made
    made.close()


def _embedder(batcher: MicroBatcher) -> LengthEmbedder:
    return batcher._embedder  # type: ignore[return-value]


def test_concurrent_requests_each_get_their_own_vectors(batcher: MicroBatcher) -> None:
    """Whatever batches form, every caller gets its rows in its order."""
    results: dict[int, list[float]] = {}

    def ask(number: int) -> None:
        texts = ["x" * (number + step) for step in (9, 1, 5)]
        results[number] = batcher.encode(texts)[:, 0].tolist()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert results == {n: [n + 9, n + 1, n + 5] for n in range(20)}


def test_batches_hold_texts_of_like_length(batcher: MicroBatcher) -> None:
    """A window of waiting texts is sorted by length before it is cut into batches."""
    embedder = _embedder(batcher)
    embedder.gate = threading.Semaphore(0)
    lengths = [1, 50, 2, 60, 3, 70, 4, 80]
    thread = threading.Thread(target=lambda: batcher.encode(["x" * length for length in lengths]))
    thread.start()
    embedder.gate.release(2)
    thread.join(timeout=10)
    assert [sorted(map(len, batch)) for batch in embedder.batches] == [[50, 60, 70, 80], [1, 2, 3, 4]]


def test_nothing_is_embedded_for_a_caller_who_waits_no_longer(
    batcher: MicroBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told after its time, and what it left behind costs nobody anything."""
    monkeypatch.setattr("actors.embedder._REQUEST_LIMIT_S", 0.1)
    embedder = _embedder(batcher)
    embedder.gate = threading.Semaphore(0)
    for texts in (["first"], ["left"] * 12):
        with pytest.raises(TimeoutError):
            batcher.encode(texts)
        assert embedder.entered.wait(timeout=10)
    monkeypatch.setattr("actors.embedder._REQUEST_LIMIT_S", 10.0)
    embedder.gate.release(1_000)
    assert batcher.encode(["next"])[0, 0] == 4
    assert embedder.batches == [["first"], ["next"]]


def test_question_overtakes_waiting_articles(batcher: MicroBatcher) -> None:
    """An urgent request is embedded after the batch at hand, not after all that wait."""
    embedder = _embedder(batcher)
    embedder.gate = threading.Semaphore(0)
    slow = threading.Thread(target=lambda: batcher.encode(["article"] * 12))
    slow.start()
    assert embedder.entered.wait(timeout=10)
    urgent = threading.Thread(target=lambda: batcher.encode(["question"], urgent=True))
    urgent.start()
    deadline = time.monotonic() + 10
    while not batcher._urgent and time.monotonic() < deadline:
        time.sleep(0.01)
    embedder.gate.release(4)
    slow.join(timeout=10)
    urgent.join(timeout=10)
    assert ["question"] in embedder.batches
    assert embedder.batches.index(["question"]) == 1


def test_embedder_error_reaches_every_caller_of_its_batch() -> None:
    """A failure is the caller's to see, and the batcher goes on."""

    class Failing(LengthEmbedder):
        def encode(self, texts: Sequence[str]) -> Any:
            if "bad" in texts:
                raise RuntimeError("out of memory")
            return super().encode(texts)

    batcher = MicroBatcher(Failing())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="out of memory"):
        batcher.encode(["bad"])
    assert batcher.encode(["fine"]).tolist() == [[4.0]]
    batcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.encode(["late"])
