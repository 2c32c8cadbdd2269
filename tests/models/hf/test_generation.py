"""Sampling and stop texts, without a model."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.backbone import Sampling
from models.hf.generation import Sampler, StopTexts


def _decode(ids: Iterable[int]) -> str:
    return "".join(map(chr, ids))


def _run(text: str, stops: list[str]) -> tuple[str, bool]:
    """What leaves when `text` comes one letter at a time."""
    stopper, out = StopTexts(_decode, stops), []
    for letter in text:
        free, stopped = stopper.push(ord(letter))
        out += free
        if stopped:
            return _decode(out), True
    return _decode(out + stopper.flush()), False


@given(text=st.text("ab\n", max_size=30), stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_output_ends_before_the_first_stop_text(text: str, stops: list[str]) -> None:
    """Exactly the text before the stop text that is complete first; all of it when there is none."""
    ends = [(text.find(s) + len(s), s) for s in stops if s in text]
    expected = text
    if ends:
        end = min(e for e, _ in ends)
        expected = text[: min(text[:end].find(s) for _, s in ends if s in text[:end])]
    assert _run(text, stops) == (expected, bool(ends))


def test_ids_are_held_only_while_they_may_begin_a_stop_text() -> None:
    """A reader of the stream sees every letter that cannot belong to a stop text at once."""
    stopper = StopTexts(_decode, ["\n\nQ:"])
    assert stopper.push(ord("a")) == ([ord("a")], False)
    assert stopper.push(ord("\n")) == ([], False)
    assert stopper.push(ord("\n")) == ([], False)
    assert stopper.push(ord("b")) == ([ord("\n"), ord("\n"), ord("b")], False)


def test_empty_stop_text_is_refused() -> None:
    """It would stop everything."""
    with pytest.raises(ValueError, match="stop text is empty"):
        StopTexts(_decode, ["x", ""])


def test_greedy_takes_the_likeliest_that_is_not_suppressed() -> None:
    """Suppressed ids are never chosen, and the caller's logits stay as they are."""
    logits = torch.tensor([0.0, 3.0, 2.0])
    assert Sampler(Sampling()).next(logits) == 1
    assert Sampler(Sampling()).next(logits, suppress=[1]) == 2
    assert logits.tolist() == [0.0, 3.0, 2.0]


def test_the_same_seed_draws_the_same_ids_and_nobody_else_s() -> None:
    """A generator of its own: torch's global one neither matters nor moves."""
    logits, sampling = torch.randn(50), Sampling(temperature=1.0, seed=5)
    state = torch.get_rng_state()
    first = [Sampler(sampling).next(logits) for _ in range(3)]
    assert len(set(first)) == 1
    sampler, again = Sampler(sampling), Sampler(sampling)
    assert [sampler.next(logits) for _ in range(20)] == [again.next(logits) for _ in range(20)]
    assert torch.equal(state, torch.get_rng_state())


def test_top_p_draws_only_from_the_likeliest() -> None:
    """With shares .6 .3 .1, top-p .5 leaves one id and .7 leaves two; frequencies follow the shares."""
    logits = torch.tensor([0.6, 0.3, 0.1]).log()

    def drawn(top_p: float) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, top_p=top_p))
        return [sampler.next(logits) for _ in range(300)]

    assert set(drawn(0.5)) == {0}
    assert set(drawn(0.7)) == {0, 1}
    everything = drawn(1.0)
    assert set(everything) == {0, 1, 2} and 120 < everything.count(0) < 240


@pytest.mark.parametrize("fields", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_sampling_is_refused(fields: dict[str, float]) -> None:
    """The error names the field and its value."""
    with pytest.raises(ValueError, match=f"sampling.{next(iter(fields))} is {next(iter(fields.values()))}"):
        Sampling(**fields)  # type: ignore[arg-type]
