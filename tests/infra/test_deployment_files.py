"""The files that an operator deploys: in form, complete, and built from today's code."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from actors.metrics import METRICS
from infra.dashboards import FOLDER, grafana, rendered

K8S = FOLDER.parent / "k8s"


@pytest.mark.parametrize("name", ["grafana.json", "alerts.yaml"])
def test_committed_file_is_what_the_code_builds(name: str) -> None:
    """The dashboard and the alerts are those of the declared metrics: run `python -m infra.dashboards`."""
    assert (FOLDER / name).read_text(encoding="utf-8") == rendered()[name]


def test_every_metric_has_a_panel() -> None:
    """No metric is exported that nobody can see."""
    titles = [panel["title"] for panel in grafana()["panels"]]
    assert titles == list(METRICS)


def test_alerts_ask_for_metrics_that_exist() -> None:
    """An alert on a renamed metric would never fire."""
    import re

    expressions = " ".join(
        rule["expr"] for rule in yaml.safe_load(rendered()["alerts.yaml"])["groups"][0]["rules"]
    )
    named = {re.sub(r"_bucket$", "", name) for name in re.findall(r"ray_dysra_(\w+)", expressions)}
    assert named <= set(METRICS)


@pytest.mark.parametrize("path", sorted(K8S.glob("*.yaml")), ids=lambda path: path.name)
def test_deployment_file_parses(path: Path) -> None:
    """Each file is YAML with the keys of its kind."""
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    kinds = ({"apiVersion", "kind", "metadata", "spec"}, {"services"}, {"applications"})
    assert any(keys <= set(value) for keys in kinds)
