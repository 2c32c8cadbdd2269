"""Readings as token ids of a reader's cut vocabulary, and the two readers that make hard ones on a GPU host."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.hf.cut import VOCABULARY
from models.retriever.pair_reader import CONFIG, SHIPPED_PAIR_READER, WEIGHTS, PairModel, PairReader
from pipeline.prepare.near_misses import Misleading
from pipeline.session.prompts import GIVEN_UP, Sentence, parse_answer, reader_prompt

STOP = "\n"
PARTS = ("training", "dev", "judged")
LONGEST_JUDGED = 6000


class Coder:
    """Texts to ids of the cut vocabulary, and back. `longest`: tokens of a training or dev row, at most."""

    def __init__(self, reader: Path, longest: int = 768) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(reader / "tokenizer.json"))
        self.vocabulary = np.load(reader / VOCABULARY).astype(np.int64)
        self._new_id = np.full(self._tokenizer.get_vocab_size(), -1, np.int64)
        self._new_id[self.vocabulary] = np.arange(len(self.vocabulary))
        self.longest = longest
        self._known: dict[str, int] = {}
        self._spelled: dict[int, list[int]] = {}
        self.give_up, self.stop = self._one(GIVEN_UP), self._one(STOP)

    def count(self, text: str) -> int:
        """Tokens of a text, without <bos>."""
        if text not in self._known:
            self._known[text] = len(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return self._known[text]

    def prompt(self, sentences: Sequence[Sentence], question: str) -> list[int]:
        """The reader's prompt; empty where the vocabulary lacks a token."""
        return self.cut(self._tokenizer.encode(reader_prompt(sentences, question)).ids)

    def target(self, text: str) -> list[int]:
        """An answer with its line end; empty where the vocabulary lacks a token."""
        return self.cut(self._tokenizer.encode(text + STOP, add_special_tokens=False).ids)

    def example(self) -> list[int]:
        """The worked example that stands before the prompt of an untuned reader."""
        whole = reader_prompt([], "x", form="base").removesuffix(reader_prompt([], "x"))
        return self.cut(self._tokenizer.encode(whole, add_special_tokens=False).ids)

    def cut(self, ids: Sequence[int]) -> list[int]:
        """Gemma's ids as those of the cut vocabulary, a rare token spelled in shorter ones; empty where none do."""
        made: list[int] = self._new_id[np.asarray(ids, np.int64)].tolist()
        if -1 not in made:
            return made
        spelled = [[new] if new >= 0 else self._spell(old) for old, new in zip(ids, made, strict=True)]
        return [] if not all(spelled) else [at for part in spelled for at in part]

    def text(self, ids: Sequence[int]) -> str:
        """What ids of the cut vocabulary say."""
        said: str = self._tokenizer.decode(self.vocabulary[np.asarray(ids, np.int64)].tolist())
        return said

    def _spell(self, token: int) -> list[int]:
        """The longest tokens that are kept of a token's text, else its bytes; empty where these are not kept."""
        if token in self._spelled:
            return self._spelled[token]
        text, at = self._tokenizer.id_to_token(token) or "", 0
        made: list[int] = []
        while at < len(text):
            for end in range(len(text), at, -1):
                found = self._kept(text[at:end])
                if found is not None:
                    made.append(found)
                    at = end
                    break
            else:
                pieces = [self._kept(f"<0x{byte:02X}>") for byte in text[at].replace("▁", " ").encode()]
                if None in pieces:
                    made = []
                    break
                made += [piece for piece in pieces if piece is not None]
                at += 1
        self._spelled[token] = made
        return made

    def _kept(self, text: str) -> int | None:
        known = self._tokenizer.token_to_id(text)
        return int(self._new_id[known]) if known is not None and self._new_id[known] >= 0 else None

    def _one(self, text: str) -> int:
        return int(self._new_id[self._tokenizer.encode(text, add_special_tokens=False).ids[0]])


@dataclass(slots=True)
class Rows:
    """Token ids of readings of one part or of all, and whose they are."""

    tokens: list[npt.NDArray[np.int32]] = field(default_factory=list)
    answer_starts: list[int] = field(default_factory=list)
    avoid: list[tuple[int, int]] = field(default_factory=list)
    about: list[tuple[str, str, str, str, bool, tuple[str, ...], int]] = field(default_factory=list)
    """(part, question id, set, kind of context, whether it tells, golds, tokens of the context) of each."""
    dropped: int = 0

    @classmethod
    def of(cls, coder: Coder, found: Iterable[Misleading], part: str) -> Rows:
        """The rows of readings; those too long, or with a token that the vocabulary lacks, are only counted."""
        rows = cls()
        longest = LONGEST_JUDGED if part == "judged" else coder.longest
        for each in found:
            triple = each.triple
            prompt, target = coder.prompt(triple.sentences, triple.question), coder.target(triple.target)
            if part != "training":
                target = target or [coder.stop]  # it is judged by its golds: the ids of a target are not used
            if not prompt or not target or len(prompt) + len(target) > longest:
                rows.dropped += 1
                continue
            wrong = coder.target(f" {each.avoid}") if each.avoid else []
            rows.tokens.append(np.array(prompt + target, np.int32))
            rows.answer_starts.append(len(prompt))
            rows.avoid.append(first_difference(target, wrong))
            golds = () if part == "training" else triple.answers
            size = 0 if part == "training" else len(prompt) - len(coder.prompt((), triple.question))
            rows.about.append(
                (part, triple.question_id, triple.dataset, triple.kind, triple.tells, golds, size)
            )
        return rows

    @classmethod
    def merge(cls, parts: Sequence[Rows]) -> Rows:
        """All rows, in their order."""
        whole = cls()
        for part in parts:
            whole.tokens += part.tokens
            whole.answer_starts += part.answer_starts
            whole.avoid += part.avoid
            whole.about += part.about
            whole.dropped += part.dropped
        return whole

    def counts(self) -> dict[str, int]:
        """Rows of each part."""
        return dict(Counter(about[0] for about in self.about))

    def save(self, out: Path, coder: Coder) -> None:
        """Write `<part>.npz` and, but for training, `<part>.json`; names.json last."""
        names: dict[str, Any] = {
            "vocab_size": len(coder.vocabulary),
            "give_up": coder.give_up,
            "stop": coder.stop,
            "example": coder.example(),
            "dropped": self.dropped,
        }
        for part in PARTS:
            chosen = [at for at, about in enumerate(self.about) if about[0] == part]
            labels: dict[str, int] = {}
            own = [self.about[at] for at in chosen]
            codes = [labels.setdefault(f"{about[2]}/{about[3]}", len(labels)) for about in own]
            names[part] = list(labels)
            np.savez(
                out / f"{part}.npz",
                tokens=np.concatenate([self.tokens[at] for at in chosen] or [np.zeros(0, np.int32)]),
                lengths=np.array([len(self.tokens[at]) for at in chosen], np.int64),
                answer_starts=np.array([self.answer_starts[at] for at in chosen], np.int64),
                avoid=np.array([self.avoid[at] for at in chosen], np.int64).reshape(-1, 2),
                codes=np.array(codes, np.int64),
                tells=np.array([about[4] for about in own], bool),
                held_out=np.zeros(len(own), bool),
            )
            if part != "training":
                (out / f"{part}.json").write_text(json.dumps([about[1:] for about in own]))
        (out / "names.json").write_text(json.dumps(names))


def first_difference(right: Sequence[int], wrong: Sequence[int]) -> tuple[int, int]:
    """(place in the answer, token) where a wrong answer leaves the right one; (-1, -1) where it does not."""
    for place, (ours, theirs) in enumerate(zip(right, wrong, strict=False)):
        if ours != theirs:
            return place, theirs
    return -1, -1


def load_pair_reader_with(minilm: Path, device: str) -> PairReader:
    """The shipped pair reader with the words of a carried MiniLM in half precision: scores agree to about 0.01."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    words = "bert.embeddings.word_embeddings.weight"
    model = PairModel(json.loads((SHIPPED_PAIR_READER / CONFIG).read_text())["model"])
    packed = load_file(SHIPPED_PAIR_READER / WEIGHTS)
    state = {
        name: tensor.float() * packed[f"{name}:scale"] if f"{name}:scale" in packed else tensor.float()
        for name, tensor in packed.items()
        if not name.endswith(":scale")
    }
    if words not in state:
        carried = load_file(minilm / "model.safetensors")
        state[words] = next(t for name, t in carried.items() if words.endswith(name)).float()
    model.load_state_dict(state)
    return PairReader(model, Tokenizer.from_file(str(minilm / "tokenizer.json")), device)


def distractor_answers(
    reader: Path, prompts: Sequence[Sequence[int]], coder: Coder, device: str
) -> list[str]:
    """What the shipped reader says of each prompt when it must answer; empty for an empty prompt."""
    from infra.training.reader_gpu import load_base
    from models.reader_decoding import greedy_answers
    from models.reader_lowrank import LowRank
    from models.shipped import READER_LORA

    asked = [at for at, prompt in enumerate(prompts) if prompt]
    said = [""] * len(prompts)
    if not asked:
        return said
    on_gpu = device.startswith("cuda")
    model = load_base(reader, torch.bfloat16 if on_gpu else torch.float32).to(device)
    LowRank(model, rank=32, alpha=64).start_from(READER_LORA)
    answers = greedy_answers(
        model,
        [prompts[at] for at in asked],
        stop_id=coder.stop,
        give_up_id=coder.give_up,
        may_give_up=False,
        max_new_tokens=10,
        tokens_per_batch=262144 if on_gpu else 4096,
        device=device,
    )
    for at, answer in zip(asked, answers, strict=True):
        said[at] = parse_answer(coder.text(answer.ids)).text
    return said
