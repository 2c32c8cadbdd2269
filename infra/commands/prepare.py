"""`dysra prepare`: what is trained on, made of texts and questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.config import load_config
from infra.console import ConfigFile, Figures, JsonFlag, Seed, progress, say, verb


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("prepare")(prepare)


@verb
def prepare(
    texts: Annotated[
        list[Path] | None, typer.Option("--texts", help="file of texts (JSON Lines, .zst too); repeatable")
    ] = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option("--questions", help="file of questions of the data folder; repeatable"),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="texts that the questions are about; default: beside them")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="folder; started again it makes what is missing")] = Path(
        "build/prepared"
    ),
    vocabulary: Annotated[int, typer.Option(help="ids of the tokenizer (BPE over bytes)")] = 32_768,
    chunk_tokens: Annotated[int, typer.Option(help="tokens of a chunk of a stream")] = 2_048,
    test_share: Annotated[float, typer.Option(help="newest share of each stream that is held out")] = 0.05,
    hard: Annotated[int, typer.Option(help="hard negatives a question, by BM25")] = 8,
    needles: Annotated[int, typer.Option(help="needles of each split by the grammar")] = 2_000,
    worlds: Annotated[
        int, typer.Option(help="simulated newswire worlds whose triples are made; one more is held out")
    ] = 0,
    limit: Annotated[int, typer.Option(help="texts and questions of a file, at most (0: all)")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="actors of Ray Data; 0: this process, without Ray")] = 2,
    seed: Seed = 0,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Make training data: tokenizer, token streams, relevance labels, triples and needles (docs/training.md).

    Example: dysra prepare --texts news.jsonl.zst --questions qa/nq_open.jsonl.zst --out build/prepared
    """
    from infra.training.prepare import PrepareConfig
    from infra.training.prepare import prepare as run

    load_config(config)
    job = PrepareConfig(
        out=out, texts=tuple(texts or ()), questions=tuple(questions or ()), corpus=corpus,
        vocabulary=vocabulary, chunk_tokens=chunk_tokens, test_share=test_share, hard=hard, needles=needles,
        worlds=worlds, limit=limit, seed=seed,
    )  # fmt: skip
    with progress("shards") as bar:

        def shown(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        figures = run(job, workers, shown)
    for part in ("tokens", "labels", "triples", "needles"):
        if part in figures:
            say(f"  {part}: {figures[part]['rows']:,} rows in {figures[part]['shards']} shards")
    say(f"Prepared in {out} ({figures['made_now']} of {figures['shards']} shards made now)")
    return figures
