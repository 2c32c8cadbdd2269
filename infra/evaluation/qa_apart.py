"""Questions answered from their sentences read apart: each alone, the most trusted answer given.

Works with whatever chose the sentences. Trust is a `Combination` of what the reader itself says (`margin`, `sure`,
`whole`); by default the probability that it gives its own answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.reader_decoding import greedy_answers
from models.reader_scoring import answer_losses
from models.retriever.trust import OWN_PROBABILITY, Combination, most_trusted
from pipeline.errors import UsageError
from pipeline.session.prompts import PromptForm, Sentence, giving_up_token, parse_answer, reader_prompt
from pipeline.tasks.qa import Question
from pipeline.tasks.scores import normalize_answer

KNOWN = ("margin", "sure", "whole")


@dataclass(frozen=True, slots=True)
class ApartAnswer:
    """What is answered: `text` when made to answer, `given_up` where the trusted reading gives up."""

    text: str
    given_up: bool
    prompts: tuple[tuple[int, ...], ...]
    """Every prompt that was read, as token ids."""
    said: tuple[tuple[int, ...], ...]


def trust_of(path: Path | None) -> Combination:
    """The combination in a file, or the reader's own probability; UsageError where it needs more than a reading."""
    if path is None:
        return OWN_PROBABILITY
    try:
        found = Combination.load(path)
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"--trust {path}: {error}; give a file that a policy run wrote (trust/alone.json)"
        ) from None
    if unknown := [name for name in found.names if name not in KNOWN]:
        raise UsageError(
            f"--trust {path} needs {', '.join(unknown)}, which single sentences do not have here; allowed: "
            f"{', '.join(KNOWN)} (trust/alone.json of a policy run)"
        )
    return found


def answers_apart(
    backbone: Any,
    asked: Sequence[tuple[Question, Sequence[Sentence]]],
    form: PromptForm,
    trust: Combination = OWN_PROBABILITY,
    on_progress: Callable[[int], None] | None = None,
) -> list[ApartAnswer]:
    """One answer a question, in order; a question without sentences is read alone.

    `backbone` is an `HfBackbone`. It gives up where the trusted reading does: by its first token.
    """
    prompts: list[list[int]] = []
    owner: list[int] = []
    for at, (question, sentences) in enumerate(asked):
        alone: list[tuple[Sentence, ...]] = [(sentence,) for sentence in sentences]
        for read in alone or [()]:
            prompts.append([*backbone.bos, *backbone.encode(reader_prompt(read, question.text, form))])
            owner.append(at)
    device = str(backbone.device)
    per_batch = 65536 if device.startswith("cuda") else 2048
    end, give_up = backbone.encode("\n"), giving_up_token(backbone.encode)
    said = greedy_answers(
        backbone.model, prompts, stop_id=end[0], give_up_id=give_up, may_give_up=False,
        max_new_tokens=24, tokens_per_batch=per_batch, device=device, on_batch=on_progress,
    )  # fmt: skip
    losses = answer_losses(
        backbone.model,
        [(prompt, [*answer.ids, *end]) for prompt, answer in zip(prompts, said, strict=True)],
        tokens_per_batch=per_batch,
        device=device,
    )
    inputs = {
        # as in a session: nothing for a reader that has no token for giving up
        "margin": np.array([0.0 if give_up is None else np.clip(-a.margin / 4, -4, 4) for a in said]),
        "sure": np.clip(-np.array(losses), -5, 0),
        "whole": np.clip(-np.array(losses) * np.array([len(answer.ids) + 1 for answer in said]) / 4, -5, 0),
    }
    logits = sum(weight * inputs[name] for name, weight in zip(trust.names, trust.weights, strict=True))
    logits = np.asarray(logits + trust.constant)
    found = []
    for at in range(len(asked)):
        mine = [place for place, row in enumerate(owner) if row == at]
        texts = [parse_answer(backbone.decode(said[place].ids)).text for place in mine]
        names = [normalize_answer(text) for text in texts]
        best = most_trusted(logits[mine].tolist(), [names.index(name) for name in names])[-1].at
        found.append(
            ApartAnswer(
                text=texts[best],
                given_up=said[mine[best]].margin > 0 or (give_up is None and not texts[best]),
                prompts=tuple(tuple(prompts[place]) for place in mine),
                said=tuple(said[place].ids for place in mine),
            )
        )
    return found
