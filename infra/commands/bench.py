"""`dysra bench`: speed and memory as ratios against peers that run in the same process on the same machine."""

from __future__ import annotations

import datetime
import importlib.util
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import orjson
import typer

from infra import bench as benches
from infra.config import load_config
from infra.console import ConfigFile, JsonFlag, say, verb
from pipeline.errors import DependencyUnreachable, UsageError

_TOLD = 8
_READ: dict[Any, Callable[[str], Any]] = {
    bool: lambda text: text.lower() in ("1", "true", "yes"),
    int: int,
    float: float,
    str: str,
}


def register(app: typer.Typer) -> None:
    """Add the family's verbs to the command line."""
    app.command("bench")(bench)


@verb
def bench(
    name: Annotated[str, typer.Argument(help="which benchmark; none lists them")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for the result (JSON and a Markdown page)")
    ] = None,
    records: Annotated[
        int | None, typer.Option("--records", help="records of the benches that publish (hostile: 1,000,000)")
    ] = None,
    articles: Annotated[
        int | None, typer.Option("--articles", help="articles of ingest, search and soak (soak: 720,000)")
    ] = None,
    faults: Annotated[int | None, typer.Option("--faults", help="faults: how many are injected")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="draws what a bench draws")] = None,
    kinds: Annotated[
        str | None, typer.Option("--kinds", help="faults: kinds or places, comma separated; none: all")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="faults, hostile: stop after so long with what was done")
    ] = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="faults, hostile: folder of a run that can be gone on with")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="faults: go on after the results that are in --work")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="another argument of the bench, as name=value (a,b,c: several values); may be repeated",
        ),
    ] = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> dict[str, Any]:
    """Measure one part against its peers and print the ratios; without a name, list what can be measured."""
    load_config(config)
    available = benches.available()
    if not name:
        for key, entry in available.items():
            say(f"{key:18} {'GPU' if entry.needs_cuda else '   '}  {entry.about}")
        return {"benches": list(available)}
    if name not in available:
        raise UsageError(f"no benchmark is named {name!r}; there are: {', '.join(available)}")
    if available[name].needs_cuda:
        _require_cuda(name)
    module = benches.load(name)
    given = {
        key: value
        for key, value in {
            "records": records,
            "articles": articles,
            "faults": faults,
            "seed": seed,
            "kinds": kinds,
            "minutes": minutes,
            "work": None if work is None else str(work),
            "resume": resume or None,
        }.items()
        if value is not None
    }
    arguments = _arguments(name, module.run, given, settings or [])
    if "report" in inspect.signature(module.run).parameters:
        arguments["report"] = _told  # rows of a long bench are seen as they come
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # hours later is too late to hear that it cannot be
    result: dict[str, Any] = module.run(**arguments)
    page = benches.page(result)
    say(page)
    if out is not None:
        device = re.sub(r"[^a-z0-9]+", "-", str(result["device"]).lower()).strip("-")
        stem = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}_{name}_{device}"
        (out / f"{stem}.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
        (out / f"{stem}.md").write_text(page, encoding="utf-8")
        say(f"kept as {out / stem}.json and .md")
    return result


def _arguments(
    name: str, run: Callable[..., Any], given: dict[str, Any], settings: list[str]
) -> dict[str, Any]:
    """What `run` is called with; UsageError for an argument that this bench does not take."""
    every = inspect.signature(run, eval_str=True).parameters
    known = {key: value for key, value in every.items() if not _is_object(value.annotation)}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: give it as name=value")
        given[key.replace("-", "_")] = value
    for key, value in given.items():
        if key not in known:
            raise UsageError(f"bench {name} takes no {key}; it takes: {', '.join(known) or 'nothing'}")
        kind = known[key].annotation
        each = get_args(kind)[0] if get_origin(kind) is Sequence else None
        if isinstance(value, str) and (kind in _READ or each in _READ):
            try:
                given[key] = _READ[kind](value) if each is None else [*map(_READ[each], value.split(","))]
            except ValueError:
                wanted = "a number is needed" if each is None else "numbers with commas between are needed"
                raise UsageError(f"bench {name}: {key} is {value!r}; {wanted}") from None
    return given


def _is_object(kind: Any) -> bool:
    """Whether an argument takes a configuration or a function, which no text on the command line stands for."""
    found = [each for each in get_args(kind) or (kind,) if each is not type(None)]
    if get_origin(kind) is Callable:
        return True
    return all(is_dataclass(each) or get_origin(each) is Callable for each in found)


def _told(row: dict[str, Any]) -> None:
    """One line of a row's first figures."""
    say("  " + ", ".join(f"{key} {value}" for key, value in list(row.items())[:_TOLD]))


def _require_cuda(name: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise DependencyUnreachable(
            f"bench {name} times GPU kernels and this machine has no CUDA device; run it on a host with an NVIDIA "
            "GPU (`ray job submit … -- dysra bench " + name + "`), or run the kernels' CPU tests here: "
            "pytest tests/models/kernels"
        )
    if importlib.util.find_spec("triton") is None:
        raise DependencyUnreachable(f"bench {name} needs Triton, which is not installed: pip install triton")
