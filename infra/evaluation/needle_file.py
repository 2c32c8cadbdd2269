"""Write a file of needles for `dysra evaluate --task needle`.

    python -m infra.evaluation.needle_file --texts FILE --length 4096 --count 50 --out FILE

`--texts`: JSON lines with `text` (.jsonl, .jsonl.zst), or a plain text. Tokens are the model's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import orjson
from tokenizers import Tokenizer

from infra.console import say
from pipeline.errors import BadData, UsageError
from pipeline.tasks.needle_grammar import SPLITS
from pipeline.tasks.needles import CountTokens, NeedleConfig, needle_cases
from pipeline.tasks.qa import read_lines

_MOST_CHARS = 40_000_000


def write(path: Path, texts: Path, config: NeedleConfig, count_tokens: CountTokens) -> int:
    """Write the cases of `config` as JSON lines and return their number; raises UsageError, BadData."""
    part = path.with_name(path.name + ".part")
    number = 0
    with part.open("wb") as file:
        for case in needle_cases(read_texts(texts), config, count_tokens):
            file.write(orjson.dumps(case.as_json(number)) + b"\n")
            number += 1
    part.rename(path)
    return number


def read_texts(path: Path) -> list[str]:
    """The texts of a file, 40 million characters at most."""
    if not path.exists():
        raise UsageError(f"--texts {path} does not exist; give JSON lines with `text`, or a plain text")
    if ".jsonl" not in path.suffixes:
        try:
            return [path.read_text(encoding="utf-8")]
        except UnicodeDecodeError as error:
            raise BadData(f"{path} is not UTF-8 text: {error}") from None
    found, chars = [], 0
    for number, row in enumerate(read_lines(path), 1):
        if not isinstance(row.get("text"), str):
            raise BadData(f"{path}, line {number}: given the keys {', '.join(row)}; a line wants `text`")
        found.append(row["text"])
        chars += len(row["text"])
        if chars > _MOST_CHARS:
            break
    return found


def counter(model: str) -> CountTokens:
    """Counts the tokens of gemma-3-270m or of a model's folder; the weights are not loaded."""
    from models.hf import gemma_gguf

    folder = gemma_gguf.prepared() if model == gemma_gguf.NAME else Path(model)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UsageError(
            f"--model {model}: no {path}; give {gemma_gguf.NAME} or a folder with tokenizer.json"
        )
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True, help="the haystack")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a context")
    parser.add_argument("--count", type=int, default=50, help="cases")
    parser.add_argument(
        "--digits", default="5,10,16,words", help="lengths of keys taken in turn; words: two words"
    )
    parser.add_argument("--distractors", type=int, default=0, help="other owners' secrets, 0 to 4")
    parser.add_argument("--split", default="held_out", choices=sorted(SPLITS), help="which wordings")
    parser.add_argument("--model", default="gemma-3-270m", help="whose tokens are counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the file written (.jsonl)")
    given = parser.parse_args(arguments)
    try:
        lengths = tuple(None if part == "words" else int(part) for part in given.digits.split(","))
        config = NeedleConfig(
            length=given.length, count=given.count, digits=lengths, distractors=given.distractors,
            split=given.split, seed=given.seed,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    number = write(given.out, given.texts, config, counter(given.model))
    say(f"{given.out}: {number} cases of {given.length} tokens")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
