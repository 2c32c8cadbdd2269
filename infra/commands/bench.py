"""`dysra bench`: speed and memory as ratios against peers that run in the same process on the same machine."""

from __future__ import annotations

import datetime
import importlib.util
import re
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from infra import bench as benches
from infra.config import load_config
from infra.console import ConfigFile, JsonFlag, say, verb
from pipeline.errors import DependencyUnreachable, UsageError


def register(app: typer.Typer) -> None:
    """Add the family's verbs to the command line."""
    app.command("bench")(bench)


@verb
def bench(
    name: Annotated[str, typer.Argument(help="which benchmark; none lists them")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for the result (JSON and a Markdown page)")
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
    result: dict[str, Any] = benches.load(name).run()
    page = benches.page(result)
    say(page)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        device = re.sub(r"[^a-z0-9]+", "-", str(result["device"]).lower()).strip("-")
        stem = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}_{name}_{device}"
        (out / f"{stem}.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
        (out / f"{stem}.md").write_text(page, encoding="utf-8")
        say(f"kept as {out / stem}.json and .md")
    return result


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
