"""Wrong use of every verb: the exit code that DESIGN names, one line that says what to change, one JSON object."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import typer

from infra.cli import app, build
from infra.console import JsonFlag, run_command, verb

DEAD = ("--bootstrap-servers", "127.0.0.1:1")
DEAD_URL = ("--url", "http://127.0.0.1:1")
USAGE, UNREACHABLE = 2, 3

WRONG = [
    (("no-such-verb",), USAGE, "no-such-verb"),
    (("newswire", "--no-such-option"), USAGE, "--no-such-option"),
    (("newswire", "--articles", "-5"), USAGE, "1 or more"),
    (("newswire", "--articles", "10", "--out", "{tmp}/absent/x.jsonl"), USAGE, "no folder"),
    (("newswire", "--articles", "10", "--topic", "news", *DEAD), UNREACHABLE, "127.0.0.1:1"),
    (("kafka", "up", "--port", "70000"), USAGE, "65535"),
    (("kafka", "status", "--dir", "{tmp}/absent"), UNREACHABLE, "dysra kafka up"),
    (("replay", "{tmp}/absent.jsonl"), USAGE, "absent.jsonl"),
    (("replay", "{tmp}/one.jsonl", *DEAD), UNREACHABLE, "dysra kafka up"),
    (("feed",), USAGE, "urls"),
    (("feed", "news.example"), USAGE, "http"),
    (("feed", "http://127.0.0.1:1/rss", "--once", *DEAD), UNREACHABLE, "127.0.0.1:1"),
    (("ingest", "--config", "{tmp}/absent.yaml"), USAGE, "absent.yaml"),
    (("ingest", "--config", "{tmp}/wrong.yaml"), USAGE, "kafka.bogus"),
    (("ingest", "--shards", "0"), USAGE, "at least 1"),
    (("ingest", "--embedder", "no-such-model", *DEAD), USAGE, "minilm"),
    (("ingest", "--until-idle", "0"), USAGE, "above 0"),
    (("ingest", "--embedder", "static", "--store", "{tmp}/store", *DEAD), UNREACHABLE, "127.0.0.1:1"),
    (("serve", "--port", "99999"), USAGE, "65535"),
    (("serve", "--store", "{tmp}/store"), USAGE, "--keys"),
    (("ask", "stream"), USAGE, "question"),
    (("ask", "stream", ""), USAGE, "question"),
    (("ask", "stream", "Who?", "--as-of", "yesterday"), USAGE, "2024-05-31"),
    (("ask", "stream", "Who?", *DEAD_URL), UNREACHABLE, "dysra serve"),
    (("summarize", "stream", "--since", "2024-13-01"), USAGE, "2024-05-31"),
    (("summarize", "stream", *DEAD_URL), UNREACHABLE, "dysra serve"),
    (("store", "status", "--store", "{tmp}/absent"), USAGE, "holds no store"),
    (("store", "compact", "--store", "{tmp}/absent"), USAGE, "holds no store"),
    (("dlq", "list", *DEAD), UNREACHABLE, "127.0.0.1:1"),
    (("dlq", "replay", *DEAD), USAGE, "--all"),
    (("dlq", "replay", "--all", *DEAD), UNREACHABLE, "127.0.0.1:1"),
    (("config", "no-such-section"), USAGE, "kafka"),
    (("config", "--config", "{tmp}/wrong.yaml"), USAGE, "kafka.bogus"),
    (("demo", "--articles", "0"), USAGE, "40"),
    (("demo", "--news", "{tmp}/absent.jsonl"), USAGE, "does not exist"),
    (("evaluate", "--task", "qa", "--method", "bm25", "--data", "{tmp}/absent"), USAGE, "does not exist"),
    (("bench", "no-such-bench"), USAGE, "retrieval"),
]


@pytest.fixture(scope="module", autouse=True)
def _verbs() -> None:
    build()


@pytest.mark.parametrize(("arguments", "exit_code", "words"), WRONG, ids=lambda value: str(value)[:50])
def test_wrong_use_is_told_with_its_exit_code(
    arguments: tuple[str, ...],
    exit_code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Standard error says what was wrong and what to do; the last line of standard output says the same as JSON."""
    (tmp_path / "wrong.yaml").write_text("kafka:\n  bogus: 3\n", encoding="utf-8")
    (tmp_path / "one.jsonl").write_text(
        '{"id":"1","published":"2024-01-01T00:00:00Z","source":"s","title":"t","text":"x","topics":[]}\n',
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYSRA_KAFKA_CONNECT_TIMEOUT_S", "0.2")
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert run_command(app, [*given, "--json"]) == exit_code
    printed = capsys.readouterr()
    told = json.loads(printed.out.strip().splitlines()[-1])
    assert told["exit_code"] == exit_code
    assert words in told["error"]
    assert printed.err.strip()


def test_a_full_disk_is_an_outage_and_another_fault_of_the_system_is_not_hidden(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 3 with the file's name; what no disk says keeps its traceback."""

    @verb
    def writes(json_output: JsonFlag = False, *, number: int = errno.ENOSPC) -> None:
        raise OSError(number, os.strerror(number), "out.jsonl")

    with pytest.raises(typer.Exit) as ended:
        writes()
    assert ended.value.exit_code == UNREACHABLE
    assert "the disk cannot be used out.jsonl: No space left on device" in capsys.readouterr().err
    with pytest.raises(OSError, match="Invalid argument"):
        writes(number=errno.EINVAL)
