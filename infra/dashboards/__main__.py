"""Writes the dashboard and the alerts anew: `python -m infra.dashboards`."""

from infra.dashboards import FOLDER, rendered

for name, content in rendered().items():
    (FOLDER / name).write_text(content, encoding="utf-8")
