"""The page of infra.training.subq_choices: what each choice of the backbone costs and gives."""

from __future__ import annotations

from typing import Any


def page(summary: dict[str, Any]) -> str:
    """A line for each choice: size, seconds, nats a token with reading and without, keys by length."""
    runs = summary["runs"]
    lines = [f"# The backbone's choices side by side, {summary['device']}", ""]
    if not runs:
        return "\n".join([*lines, "No choice has been judged yet."]) + "\n"
    lengths = [row["length"] for row in runs[0]["rows"]]
    lines += [
        f"{runs[0]['tokens']:,} tokens in {runs[0]['steps']} updates on the same batches, seed {runs[0]['seed']}; "
        f"{summary['jobs']} at a time on the device, so that seconds compare only roughly. Keys: "
        f"{runs[0]['rows'][0]['n']} of known wording in one text (5 and 16 digits), exact match / every gold chunk "
        "read, %. Nats a token of unseen text, a quarter of context left out.", "",
        "| choice | parameters | seconds | GB | nats | without reading | "
        + " | ".join(f"{n:,}" for n in lengths) + " |",
        "|" + " --- |" * (6 + len(lengths)),
    ]  # fmt: skip
    for run in runs:
        keys = " | ".join(f"{row['exact']} / {row['recall']}" for row in run["rows"])
        lines.append(
            f"| {run['choice']} | {run['parameters']:,} | {run['train_seconds']} | {run['peak_bytes'] / 1e9:.1f} "
            f"| {run['language']['with_retrieval']} | {run['language']['without']} | {keys} |"
        )
    return "\n".join(lines) + "\n"
