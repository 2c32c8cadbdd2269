"""`dysra doctor`, `dysra config`, `dysra status`: what an operator asks before and while it runs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from infra.config import SECTIONS, load_config
from infra.console import ConfigFile, Figures, JsonFlag, say, verb
from pipeline.errors import DependencyUnreachable, UsageError

_MARKS = {"ok": "[green]ok      [/]", "missing": "[red]missing [/]", "optional": "[yellow]optional[/]"}


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(doctor)
    app.command("config")(show_config)
    app.command()(status)


@verb
def doctor(config: ConfigFile = None, json_output: JsonFlag = False) -> Figures:
    """What this machine has, what it lacks, and how to get it. Ends with 3 if something needed is missing."""
    from infra.doctor import as_rows, run_checks

    checks = run_checks(load_config(config).kafka.bootstrap_servers)
    for check in checks:
        say(f"{_MARKS[check.state]} {check.name + ':':14} {escape(check.found)}")
        if check.state != "ok":
            say(f"{'':10}[dim]{escape(check.remedy)}[/]")
    missing = [check.name for check in checks if check.state == "missing"]
    if missing:
        error = DependencyUnreachable(f"missing: {', '.join(missing)}; the list above says how to get it")
        error.figures = {"checks": as_rows(checks), "ready": False}  # type: ignore[attr-defined]
        raise error
    say("Ready: `dysra demo` runs the whole main job here.")
    return {"checks": as_rows(checks), "ready": True}


@verb
def show_config(
    section: Annotated[str | None, typer.Argument(help="one section only")] = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """The effective configuration: every field, its value, where it was set, and what it means."""
    if section is not None and section not in SECTIONS:
        raise UsageError(f"no section '{section}'; allowed: {', '.join(SECTIONS)}")
    rows = load_config(config).rows(section)
    last = ""
    for row in rows:
        if row["section"] != last:
            last = row["section"]
            say(f"\n[bold]\\[{last}][/]")
        origin = "" if row["origin"] == "default" else f" [cyan]({escape(row['origin'])})[/]"
        say(f"  {row['field']} = {escape(repr(row['value']))}{origin}  [dim]{escape(row['help'])}[/]")
    return {"fields": rows}


@verb
def status(
    url: Annotated[str, typer.Option(help="where `dysra serve` answers")] = "http://127.0.0.1:8000",
    key: Annotated[str | None, typer.Option(envvar="DYSRA_API_KEY", help="API key for the sessions")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: the one running here")] = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """One look at a running system: lag, shards, sessions, models, last commit."""
    from infra.status import look

    figures = look(load_config(config), url=url, key=key, address=address)
    for name, part in figures.items():
        say(f"[bold]{name}[/]: {escape(part['summary'])}")
        for line in part.get("lines", []):
            say(f"  {escape(line)}")
    return figures
