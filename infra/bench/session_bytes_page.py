"""Ratios and page of a run of session_bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infra.training.kept_page import keep_as


def ratios(result: dict[str, Any], last: int) -> dict[str, float]:
    """`session_bytes_16m_over_16k` (only when `last` tokens were read) and `eviction_share_of_decode`."""
    found: dict[str, float] = {}
    rows = result["rows"]
    if rows and rows[-1]["tokens"] >= last:
        found["session_bytes_16m_over_16k"] = rows[-1]["cache_bytes"] / rows[0]["cache_bytes"]
        found["session_bytes_16m_over_created"] = rows[-1]["cache_bytes"] / result["created_bytes"]
        if "decode_ms" in rows[0]:
            found["decode_ms_16m_over_16k"] = round(rows[-1]["decode_ms"] / rows[0]["decode_ms"], 4)
    if "eviction_ms" in result:
        # an eviction serves as many decoded tokens as it makes room for
        each, session = result["eviction_ms"] / result["evict_block"], result["session"]
        found["eviction_share_of_decode"] = round(each / session.get("captured_ms", session["decode_ms"]), 4)
        if "captured_ms" in session:
            found["eviction_share_of_decode_eager"] = round(each / session["decode_ms"], 4)
            found["captured_over_eager_decode_ms"] = round(session["captured_ms"] / session["decode_ms"], 4)
            if "fused_ms" in session:
                found["fused_over_captured_decode_ms"] = round(
                    session["fused_ms"] / session["captured_ms"], 4
                )
            between = session["captured_with_evictions_ms"] - session["captured_ms"]
            # the latents and the ring are laid out anew after an eviction: counted too
            found["between_steps_share_of_decode"] = round(between / session["captured_with_evictions_ms"], 4)
    return found


def write(result: dict[str, Any], out: Path, last: int) -> None:
    """Keep the result as OUT.json and OUT.md, with its ratios; `last` is what counts as 16M tokens."""
    result["ratios"] = ratios(result, last)
    out.parent.mkdir(parents=True, exist_ok=True)
    keep_as(out, result, page(result))


def page(result: dict[str, Any]) -> str:
    """The result for a person."""
    lines = [
        f"# A session's cache over many tokens, {result['device']}",
        "",
        f"Model `{result['model']}`, torch {result['torch']}, commit {result['commit']}. Cache: "
        + ", ".join(f"{name} {value}" for name, value in result["cache"].items())
        + f". Bytes at creation: {result['created_bytes']:,}.",
        f"Read: {result.get('fed', 'a text that repeats')}. Bytes are every tensor of the cache; decoding reads "
        "each token into the cache.",
        "",
        "| tokens read | cache bytes | device bytes allocated | tokens read a second | ms a decoded token | "
        "captured | captured, with evictions | fused latents | fused, with evictions |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['tokens']:,} | {row['cache_bytes']:,} | {row.get('device_bytes', '-')} | "
        f"{row.get('read_tokens_per_s', '-')} | {row.get('decode_ms', '-')} | {row.get('captured_ms', '-')} | "
        f"{row.get('captured_with_evictions_ms', '-')} | {row.get('fused_ms', '-')} | "
        f"{row.get('fused_with_evictions_ms', '-')} |"
        for row in result["rows"]
    ]
    if "eviction_ms" in result:
        lines += [
            "",
            f"With the session's own steps: {result['session']['decode_ms']} ms a token without an eviction "
            f"({result['session'].get('captured_ms', 'not')} captured), an "
            f"eviction in all full-attention layers {result['eviction_ms']} ms for {result['evict_block']} tokens "
            f"(its factors begun a block ahead; {result['eviction_unforeseen_ms']} ms where they are not).",
        ]
    lines += ["", *(f"* `{name}`: {value}" for name, value in result["ratios"].items())]
    return "\n".join(lines) + "\n"
