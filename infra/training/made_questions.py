"""Questions made from Wikipedia sentences, to train the ranker on some ten times as many: a folder of material.

    python3 -m infra.training.made_questions questions --carried carried --reader /tmp/reader --out made
    python3 -m infra.training.made_questions candidates --carried carried --out made   # --seconds

doc2query (arXiv 1904.08375), PAQ (2102.07033), InPars (2202.05144) and GPL (2112.07577) in 250 s of one GPU: the
reader's base is tuned to ask (`made_generator`), asked for questions of sentences that no question's gold title
covers (`made_sources`), what it asks is filtered and must be answered back by the adapted reader (`made_filters`),
and gets hard negatives (`made_candidates`). Whatever is done stays under --out, and the next call passes it over:
the maker's adapter, shards of what it said, what was kept. OUT/manifest.json is written last, with all counts.
`read_made` reads the folder; `policy_pairs.texts_of` gives its texts for a pair reader.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from infra.training.made_candidates import CandidatesConfig, material_of_made
from infra.training.made_filters import Made, answered_back, sifted
from infra.training.made_generator import MakerConfig, made_of, open_maker, tune
from infra.training.made_sources import Source, draw_sources, read_carried, training_pairs
from infra.training.policy_voice import open_voice
from infra.training.reader_rows import Coder
from pipeline.errors import UsageError
from pipeline.tasks.material import Material

MAKER, SOURCES, SAID, KEPT, MANIFEST = "maker", "sources.json", "said", "kept.json", "manifest.json"
SHOWN = 20
MAKING, KEEPING = 0.75, 0.97
"""Shares of the seconds of `questions` after which no shard is begun, and none is judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeConfig:
    """How many questions are made, and which are kept."""

    sentences: int = field(default=60_000, metadata={"help": "sentences that a question is made of"})
    shard: int = field(default=6_000, metadata={"help": "sentences of a shard: what an ended run may lose"})
    least_words: int = field(default=8, metadata={"help": "words of a sentence, at least"})
    most_words: int = field(default=60, metadata={"help": "words of a sentence, at most"})
    temperature: float = field(default=0.7, metadata={"help": "of the maker's draws (0: greedy)"})
    new_tokens: int = field(default=32, metadata={"help": "tokens of answer and question, at most"})
    tokens_per_batch: int = field(default=131_072, metadata={"help": "prompt tokens of a decoded batch"})
    f1: float = field(default=0.7, metadata={"help": "F1 of the answer that the round trip wants"})
    margin: float = field(default=0.0, metadata={"help": "nats by which the reader may lean to giving up"})
    seed: int = field(default=0, metadata={"help": "of every draw"})

    def __post_init__(self) -> None:
        for name in ("sentences", "shard", "new_tokens", "tokens_per_batch", "least_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if not 0 < self.f1 <= 1:
            raise ValueError(f"f1: given {self.f1}; allowed: above 0, to 1")
        if self.most_words < self.least_words:
            raise ValueError(f"most_words: given {self.most_words}; allowed: {self.least_words} or more")


def read_made(folder: Path) -> Material:
    """The made questions with their candidates; UsageError where the folder is not whole."""
    if not (folder / MANIFEST).is_file():
        raise UsageError(
            f"{folder} is not whole: run made_questions to its end first (it goes on where it was)"
        )
    return Material.load(folder)


def make_questions(
    carried: Path, reader: Path, out: Path, config: MadeConfig, maker: MakerConfig, seconds: float, device: str
) -> int:  # fmt: skip
    """Tune the maker, make, filter and judge: OUT/kept.json. How many are kept; what is there is passed over."""
    if (out / KEPT).exists():
        return len(read_kept(out))
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    _same(out, {"made": asdict(config), "maker": asdict(maker)})
    told: dict[str, Any] = {"seconds": {}}
    coder = Coder(reader, maker.length)
    brought = read_carried(carried)
    free = brought.open_texts()
    sources = draw_sources(free, config.sentences, config.seed, config.least_words, config.most_words)
    told["open_passages"], told["sources"] = len(free), len(sources)
    told["seconds"]["sources"] = _since(began)
    _say(f"{len(sources):,} sentences of {len(free):,} passages under no gold title", began)
    if not (out / MAKER / "record.json").exists():
        pairs = training_pairs(brought)
        told["pairs"] = dict(Counter(pair.source.style for pair in pairs))
        record = tune(
            reader, coder, pairs, out / MAKER, maker, device, 0.35 * seconds, lambda what: _say(what, began)
        )
        (out / MAKER / "record.json").write_text(json.dumps(record | {"pairs_of": told["pairs"]}))
    told["maker"] = json.loads((out / MAKER / "record.json").read_text())
    _say(f"maker: {json.dumps(told['maker'])}", began)
    started = time.monotonic()
    said = _said(reader, coder, out, sources, config, maker, device, began + MAKING * seconds)
    told["written"], told["seconds"]["making"] = len(said), _since(started)
    _say(f"{len(said):,} written", began)
    started = time.monotonic()
    known = [question.text for question in brought.every]
    passed, told["filters"] = sifted(sources[: len(said)], said, known)
    _say(f"{len(passed):,} pass the plain filters: {told['filters']}", began)
    voice = open_voice(reader, device)
    kept: list[Made] = []
    failed: Counter[str] = Counter()
    judged = 0
    for at in range(0, len(passed), config.shard):
        if at and time.monotonic() > began + KEEPING * seconds:
            break
        part = passed[at : at + config.shard]
        back, why = answered_back(voice, part, config.f1, config.margin)
        kept += [each for each, good in zip(part, back, strict=True) if good]
        failed.update(why)
        judged += len(part)
    told["judged"], told["round_trip"], told["kept"] = judged, dict(failed), len(kept)
    told["kept_by_style"] = dict(Counter(each.source.style for each in kept))
    told["seconds"]["judging"] = _since(started)
    if not kept:
        raise ValueError(f"no question was kept of {len(said)}: {told['filters']}, {dict(failed)}")
    for each in random.Random(config.seed).sample(kept, min(SHOWN, len(kept))):
        _say(f"  [{each.source.style}] {each.question} -> {each.answer} ({each.source.title})", began)
    rows = [[*_parts(each.source), each.answer, each.question] for each in kept]
    _whole(out / KEPT, {"told": told, "rows": rows})
    _say(f"{len(kept):,} of {judged:,} are answered back; failed: {dict(failed)}", began)
    return len(kept)


def make_candidates(
    carried: Path, out: Path, config: CandidatesConfig, seconds: float, device: str
) -> dict[str, Any]:
    """Give the kept questions their candidates: the folder's material and its manifest, which is returned."""
    if (out / MANIFEST).exists():
        found: dict[str, Any] = json.loads((out / MANIFEST).read_text())
        return found
    began = time.monotonic()
    kept = read_kept(out)
    told = json.loads((out / KEPT).read_text())["told"]
    texts = read_carried(carried).open_texts()
    material, left = material_of_made(
        kept, texts, carried, out / "work", config, device, 0.9 * seconds, lambda what: _say(what, began)
    )
    told["left_out"], told["questions_with_candidates"] = left, len(material)
    told["candidates"] = round(float(material.tables.present.sum(1).mean()), 1)
    told["seconds"]["candidates"] = _since(began)
    # Material.save writes its manifest itself: the folder counts as whole only by that file, so it comes last
    staged = out / "staged"
    material.save(
        staged, told | {"configuration": asdict(config) | json.loads((out / "given.json").read_text())}
    )
    for path in sorted(staged.iterdir(), key=lambda path: path.name == MANIFEST):
        path.replace(out / path.name)
    staged.rmdir()
    for name in ("asked.npy", "sentences.npy"):
        (out / "work" / name).unlink(missing_ok=True)
    _say(f"{len(material):,} questions with candidates in {out}; left out: {left}", began)
    whole: dict[str, Any] = json.loads((out / MANIFEST).read_text())
    return whole


def read_kept(out: Path) -> list[Made]:
    """The questions that passed the round trip; UsageError where `questions` did not end."""
    if not (out / KEPT).is_file():
        raise UsageError(f"{out} holds no {KEPT}: run the verb questions first")
    rows = json.loads((out / KEPT).read_text())["rows"]
    return [
        Made(Source(style, text_id, title, sentence), answer, question)
        for style, text_id, title, sentence, answer, question in rows
    ]


def _said(
    reader: Path, coder: Coder, out: Path, sources: Sequence[Source], config: MadeConfig, maker: MakerConfig,
    device: str, until: float,
) -> list[str]:  # fmt: skip
    """What the maker writes of the sources, shard by shard, as far as the clock allows."""
    (out / SAID).mkdir(exist_ok=True)
    said: list[str] = []
    # the saved adapter even where it was tuned just now: an undisturbed run is the same as one that went on
    model = None
    for number, at in enumerate(range(0, len(sources), config.shard)):
        path = out / SAID / f"{number:04d}.json"
        if not path.exists():
            if number and time.monotonic() > until:
                break
            if model is None:
                model, _ = open_maker(reader, maker, device, out / MAKER)
            part = made_of(
                model, coder, sources[at : at + config.shard], seed=config.seed * 100_003 + number,
                temperature=config.temperature, new_tokens=config.new_tokens,
                tokens_per_batch=config.tokens_per_batch if device.startswith("cuda") else 4096, device=device,
            )  # fmt: skip
            _whole(path, part)
        said += json.loads(path.read_text())
    return said


def _parts(source: Source) -> list[str]:
    return [source.style, source.text_id, source.title, source.sentence]


def _same(out: Path, given: dict[str, Any]) -> None:
    """Refuse to go on with other settings than the folder was begun with."""
    path = out / "given.json"
    if not path.exists():
        _whole(path, given)
    elif (known := json.loads(path.read_text())) != given:
        other = {
            f"{group}.{name}": (known[group].get(name), value)
            for group, values in given.items()
            for name, value in values.items()
            if known[group].get(name) != value
        }
        raise UsageError(
            f"{out} was begun with other settings (known, given): {other}; give these, or another --out"
        )


def _whole(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    part.replace(path)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


def _say(what: str, began: float) -> None:
    print(f"[{time.monotonic() - began:5.1f} s] {what}", flush=True)  # noqa: T201


def _options(parser: argparse.ArgumentParser, config: type[Any]) -> None:
    known = {action.dest for action in parser._actions}
    for name, entry in config.__dataclass_fields__.items():
        if name not in known:
            parser.add_argument(
                f"--{name.replace('_', '-')}", type=type(entry.default), default=entry.default,
                help=f"{entry.metadata['help']} (default: {entry.default})",
            )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    asks, finds = verbs.add_parser("questions"), verbs.add_parser("candidates")
    for each in (asks, finds):
        each.add_argument("--carried", type=Path, required=True, help="what policy_carry --join put together")
        each.add_argument("--out", type=Path, required=True, help="where everything is kept")
        each.add_argument("--seconds", type=float, default=math.inf, help="that this verb may take")
        each.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asks.add_argument("--reader", type=Path, required=True, help="the reader's folder (reader_parts)")
    for config in (MadeConfig, MakerConfig):
        _options(asks, config)
    _options(finds, CandidatesConfig)
    given = parser.parse_args(arguments)

    def told(config: type[Any]) -> Any:
        return config(**{name: getattr(given, name) for name in config.__dataclass_fields__})

    if given.verb == "questions":
        make_questions(
            given.carried, given.reader, given.out, told(MadeConfig), told(MakerConfig), given.seconds, given.device
        )  # fmt: skip
    else:
        make_candidates(given.carried, given.out, told(CandidatesConfig), given.seconds, given.device)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
