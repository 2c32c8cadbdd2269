"""Which pair reader a policy's columns were made by: noted in the policy, checked before it chooses.

Every pair reader makes six columns, so another one would fit and mislead. A policy that ships with its own notes
the digests of its configurations; each of these names the digests of its weights and, over a decoder, its base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.digests import digests_of
from models.retriever.pair_reader import BERT, COMBINED, CONFIG, DECODER

PINS = "pair_reader_files"
"""Where a policy's `about` holds them; policies without it go unchecked."""


def pins_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each configuration of a pair reader's folder, by path within it."""
    places = sorted(path.parent for path in folder.rglob(CONFIG))
    return {
        (place / CONFIG).relative_to(folder).as_posix(): digests_of(place, [CONFIG])[CONFIG]
        for place in places
    }


def check_pins(about: Mapping[str, Any], folder: Path | None, policy: Path | None = None) -> None:
    """ValueError where the pair reader in `folder` is not the one that the policy of `about` was trained with.

    `policy`: the policy's own folder, for the message.
    """
    noted = about.get(PINS)
    if noted is None:
        return
    found = {} if folder is None else pins_of(folder)
    if found != noted:
        wrong = sorted(name for name in {*found, *noted} if found.get(name) != noted.get(name))
        raise ValueError(
            f"pair_reader: {folder} is not the one that {policy or 'this policy'} was trained with "
            f"({'; '.join(_told(name, found, noted) for name in wrong)}): copy the policy's folder again, its "
            "pair-reader with it"
        )


def _told(name: str, found: Mapping[str, str], noted: Mapping[str, str]) -> str:
    """A configuration's digest as it is and as the policy notes it."""
    given, wanted = (str(of[name])[:12] if name in of else "absent" for of in (found, noted))
    return f"{name} is {given}, trained with {wanted}"


def reads_by_decoder(folder: Path) -> bool:
    """Whether a decoder reads in this pair reader: dear on a CPU. False where its configuration cannot be read."""
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    kind = told.get("kind", BERT) if isinstance(told, dict) else BERT
    return kind == DECODER or (kind == COMBINED and DECODER in told.get("parts", (DECODER,)))
