"""The session's configuration: every wrong value is named with what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.session import SessionConfig


@pytest.mark.parametrize(
    "fields",
    [
        {"start": "yesterday"},
        {"attend": "everything"},
        {"prompt_form": "chat"},
        {"partition_by": "source"},
        {"window_articles": 0},
        {"max_article_tokens": 15},
        {"max_read_ids": 0},
        {"passages": 0},
        {"token_budget": 4_000},
        {"max_new_tokens": 500},
        {"dense_sentences": -1},
        {"snapshot_every_s": 0},
        {"search_deadline_s": -1},
        {"keep_snapshots": 0},
        {"max_resident": 0},
    ],
    ids=str,
)
def test_wrong_value_is_named(fields: dict[str, Any]) -> None:
    """The error names the field and the value given."""
    ((name, value),) = fields.items()
    with pytest.raises(ValueError, match=rf"{name} is .*{str(value).strip('-')}"):
        SessionConfig(**fields)


def test_every_field_is_explained() -> None:
    """`dysra config` has a sentence for each field."""
    assert all(field.metadata.get("help") for field in SessionConfig.__dataclass_fields__.values())
