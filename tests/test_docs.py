"""The documentation tells of everything that there is: verbs, sections, metrics."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from actors.metrics import METRICS
from infra.cli import build
from infra.config import SECTIONS

ROOT = Path(__file__).resolve().parents[1]
OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
VERBS = sorted(get_command(build()).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", VERBS)
def test_verb_is_documented(verb: str) -> None:
    """A verb that the handbook does not name is found by nobody."""
    assert f"`{verb}`" in OPERATING


@pytest.mark.parametrize("section", SECTIONS)
def test_configuration_section_is_documented(section: str) -> None:
    """Each section of the configuration is in the handbook."""
    assert f"`[{section}]`" in OPERATING


@pytest.mark.parametrize("name", METRICS)
def test_metric_is_documented_with_its_meaning(name: str) -> None:
    """The table of metrics is that of the code."""
    metric = METRICS[name]
    row = f"| `ray_dysra_{name}` | {metric.kind} | {metric.help} | {', '.join(metric.tags) or '-'} |"
    assert row in OPERATING


@pytest.mark.parametrize("verb", VERBS)
def test_verb_takes_config_and_json(verb: str) -> None:
    """Every verb (and every verb of a group) can be configured and read by a machine, and explains itself."""
    command = get_command(build()).commands[verb]  # type: ignore[attr-defined]
    for each in getattr(command, "commands", {"": command}).values():
        options = {option for parameter in each.params for option in parameter.opts}
        assert {"--config", "--json"} <= options, each.name
        assert each.help


@pytest.mark.parametrize(
    "path",
    [
        *sorted(ROOT.glob("*.md")),
        *(
            path
            for folder in ("docs", "infra/bench/results", "models/weights")
            for path in sorted((ROOT / folder).rglob("*.md"))
        ),
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    """A relative link points at a file that exists."""
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    broken = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert broken == []


def test_the_index_of_the_log_leads_to_its_sections() -> None:
    """Every entry is a section's own, and every section up to the index' newest has one."""
    text = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    index, _, sections = text.partition("\n\n## ")
    heads = re.findall(r"^## (.+)$", f"## {sections}", re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).lower() for head in heads]
    anchors = [re.sub(r"[^\w\- ]", "", head).replace(" ", "-") for head in plain]
    named = re.findall(r"\]\(#([^)]+)\)", index)
    assert set(named) <= set(anchors)
    newest = max(anchors.index(name) for name in named)
    assert set(anchors[: newest + 1]) <= set(named)
