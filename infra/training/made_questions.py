"""Questions made from Wikipedia sentences, to train the ranker on some ten times as many: a folder of material.

    python3 -m infra.training.made_questions questions --carried carried --reader /tmp/reader --out made
    python3 -m infra.training.made_questions candidates --carried carried --out made   # --seconds

doc2query (arXiv 1904.08375), PAQ (2102.07033), InPars (2202.05144) and GPL (2112.07577) in 250 s of one GPU: the
reader's base is tuned to ask (`made_generator`), asked for questions of sentences that no question's gold title
covers (`made_sources`) and of links of two (`made_hops`), what it asks is filtered and must be answered back by
the adapted reader (`made_filters`), and gets hard negatives (`made_candidates`). Whatever is done stays under
--out, and the next call passes it over: the maker's adapter, shards (`made_shards`), what was kept.
OUT/manifest.json is written last, with all counts. On several devices: `questions --part 0/4` to `3/4`, one process
each, then `gather`.
`read_made` reads the folder; `policy_pairs.texts_of` gives its texts for a pair reader.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from infra.training.made_candidates import CandidatesConfig, material_of_made
from infra.training.made_filters import Made
from infra.training.made_generator import MakerConfig, tune
from infra.training.made_hops import draw_links, two_hop_pairs
from infra.training.made_shards import SHARDS, Asker, gathered, made_of_row, path_of, planned, row_of
from infra.training.made_sources import draw_sources, read_carried, training_pairs
from infra.training.reader_rows import Coder
from pipeline.errors import UsageError
from pipeline.tasks.material import Material

MAKER, KEPT, MANIFEST = "maker", "kept.json", "manifest.json"
SHOWN = 20
MAKING = 0.92
"""Share of the seconds of `questions` after which no shard is begun."""
TUNING = 0.45
"""Share of them in which the maker must be tuned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeConfig:
    """How many questions are made, and which are kept."""

    sentences: int = field(default=60_000, metadata={"help": "sentences that a question is made of"})
    two_hop: int = field(
        default=20_000, metadata={"help": "links of two sentences that are asked of (0: none)"}
    )
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
        if self.two_hop < 0:
            raise ValueError(f"two_hop: given {self.two_hop}; allowed: 0 or more")
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
    carried: Path, reader: Path, out: Path, config: MadeConfig, maker: MakerConfig, seconds: float, device: str,
    part: tuple[int, int] = (0, 1),
) -> int:  # fmt: skip
    """Tune the maker, make, filter and judge: OUT/kept.json. How many are kept; what is there is passed over.

    As `part` (i, n) every n-th shard is made and nothing gathered (then: 0); part 0 tunes, the others wait for it.
    """
    if (out / KEPT).exists():
        return len(read_kept(out))
    turn, turns = part
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    (out / SHARDS).mkdir(exist_ok=True)
    _same(out, {"made": asdict(config), "maker": asdict(maker)})
    coder = Coder(reader, maker.length)
    brought = read_carried(carried)
    record = out / MAKER / "record.json"
    if turn == 0 and not record.exists():
        pairs = [*training_pairs(brought), *(two_hop_pairs(brought) if config.two_hop else ())]
        tuned = tune(
            reader, coder, pairs, out / MAKER, maker, device, 0.35 * seconds, lambda what: _say(what, began)
        )
        _whole(record, tuned | {"pairs_of": dict(Counter(pair.source.style for pair in pairs))})
    free = brought.open_texts()
    sources = draw_sources(free, config.sentences, config.seed, config.least_words, config.most_words)
    links = (
        draw_links(free, config.two_hop, config.seed, config.least_words, config.most_words)
        if config.two_hop
        else []
    )
    shards = planned(sources, links, config.shard)
    drawn = {"open_passages": len(free), "sources": len(sources), "links": len(links), "planned": len(shards)}
    _say(f"drawn: {json.dumps(drawn)}", began)
    while not record.exists():
        if time.monotonic() > began + min(TUNING * seconds, 600.0):
            raise TimeoutError(f"{record} is not there: part 0 tunes the maker; look at its log")
        time.sleep(0.2)
    _say(f"maker: {record.read_text()}", began)
    known = [question.text for question in brought.every]
    asker = Asker(reader, coder, out / MAKER, maker, device)
    for done, shard in enumerate(shards[turn::turns]):
        if path_of(out, shard).exists():
            continue
        if done and time.monotonic() > began + MAKING * seconds:
            _say(f"ended by the clock before shard {shard.number} of {len(shards)}", began)
            break
        told = asker(shard, config, known)
        _whole(path_of(out, shard), told)
        _say(f"shard {shard.number} of {len(shards)}: {len(told['rows'])} of {told['written']} kept", began)
    if turns > 1:
        _whole(out / f"drawn-{turn}.json", drawn | {"seconds": _since(began)})
        return 0
    return gather(out, drawn | {"seconds": {"questions": _since(began)}}, config.seed)


def gather(out: Path, drawn: dict[str, Any], seed: int = 0) -> int:
    """Put together what shards there are: OUT/kept.json. How many are kept; ValueError where none is."""
    if (out / KEPT).exists():
        return len(read_kept(out))
    began = time.monotonic()
    kept, told = gathered(out)
    told |= drawn | {"maker": json.loads((out / MAKER / "record.json").read_text())}
    if not kept:
        raise ValueError(
            f"no question was kept of {told['written']}: {told['filters']}, {told['round_trip']}"
        )
    chance = random.Random(seed)
    for hops in (False, True):
        some = [each for each in kept if bool(each.source.via) == hops]
        for each in chance.sample(some, min(SHOWN, len(some))):
            by = " + ".join(source.title for source in (*each.source.via, each.source))
            _say(f"  [{each.source.style}] {each.question} -> {each.answer} ({by})", began)
    _whole(out / KEPT, {"told": told, "rows": [row_of(each) for each in kept]})
    _say(f"{len(kept):,} kept of {told['judged']:,} judged: {json.dumps(told['by_style'])}", began)
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
    return [made_of_row(row) for row in json.loads((out / KEPT).read_text())["rows"]]


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
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    part.replace(path)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


def _say(what: str, began: float) -> None:
    print(f"[{time.monotonic() - began:5.1f} s] {what}", flush=True)  # noqa: T201


def _part(given: str) -> tuple[int, int]:
    """ "i/n" as numbers."""
    turn, _, turns = given.partition("/")
    if not (turn.isdecimal() and turns.isdecimal() and int(turn) < int(turns)):
        raise argparse.ArgumentTypeError(f"given {given}; allowed: 0/1, 0/2, 1/2, ...")
    return int(turn), int(turns)


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
    asks, puts, finds = (verbs.add_parser(name) for name in ("questions", "gather", "candidates"))
    puts.add_argument("--out", type=Path, required=True, help="where everything is kept")
    for each in (asks, finds):
        each.add_argument("--carried", type=Path, required=True, help="what policy_carry --join put together")
        each.add_argument("--out", type=Path, required=True, help="where everything is kept")
        each.add_argument("--seconds", type=float, default=math.inf, help="that this verb may take")
        each.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asks.add_argument("--reader", type=Path, required=True, help="the reader's folder (reader_parts)")
    asks.add_argument("--part", type=_part, default=(0, 1), help="i/n: every n-th shard alone, then gather")
    for config in (MadeConfig, MakerConfig):
        _options(asks, config)
    _options(finds, CandidatesConfig)
    given = parser.parse_args(arguments)

    def told(config: type[Any]) -> Any:
        return config(**{name: getattr(given, name) for name in config.__dataclass_fields__})

    if given.verb == "questions":
        make_questions(
            given.carried, given.reader, given.out, told(MadeConfig), told(MakerConfig), given.seconds,
            given.device, given.part,
        )  # fmt: skip
    elif given.verb == "gather":
        parts = [json.loads(path.read_text()) for path in sorted(given.out.glob("drawn-*.json"))]
        drawn = parts[0] if parts else {}
        gather(given.out, drawn | {"seconds": {"parts": [part["seconds"] for part in parts]}})
    else:
        make_candidates(given.carried, given.out, told(CandidatesConfig), given.seconds, given.device)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
