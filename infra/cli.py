"""The command line `dysra`: one module under infra/commands for each family of verbs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

# Ray turns token authentication on by itself for local clusters; an operator's own setting wins.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer

from infra.console import run_command
from pipeline.log import configure_logging

FAMILIES = (
    "kafka",
    "newswire",
    "sources",
    "ingest",
    "store",
    "serve",
    "operate",
    "evaluate",
    "train",
    "prepare",
    "backbone",
    "cotrain",
    "bench",
    "demo",
)

app = typer.Typer(
    name="dysra",
    help="A live news memory for language models: Kafka in, a searchable store, sessions, cited answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def build() -> typer.Typer:
    """The application with every family of verbs registered."""
    if app.registered_commands:  # built before, in this process
        return app
    for family in FAMILIES:
        if importlib.util.find_spec(f"infra.commands.{family}") is not None:
            importlib.import_module(f"infra.commands.{family}").register(app)
    return app


def main() -> None:
    """Entry point of the console script."""
    configure_logging(os.environ.get("DYSRA_LOG", "WARNING"))
    sys.exit(run_command(build(), sys.argv[1:]))


if __name__ == "__main__":
    main()
