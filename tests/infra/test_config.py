"""Configuration: every wrong field is named, every value knows where it was set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from infra.config import SECTIONS, load_config, section_class
from pipeline.errors import UsageError


def _file(folder: Path, text: str, name: str = "dysra.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    """The nearest setting wins, and the origin says which it was."""
    path = _file(tmp_path, '[kafka]\ntopic = "from-file"\npartitions = 2\ngroup_id = "from-file"\n')
    config = load_config(path, {"DYSRA_KAFKA_PARTITIONS": "3", "DYSRA_KAFKA_GROUP_ID": "from-env"})
    config = config.override("kafka", group_id="from-flag", topic=None)
    assert (config.kafka.topic, config.kafka.partitions, config.kafka.group_id) == (
        "from-file",
        3,
        "from-flag",
    )
    assert config.origin == {
        "kafka.topic": str(path),
        "kafka.partitions": "DYSRA_KAFKA_PARTITIONS",
        "kafka.group_id": "flag",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[kafka]\ntopik = 1\n", "unknown field 'kafka.topik', did you mean 'topic'"),
        ("[kafak]\ntopic = 1\n", "unknown section 'kafak', did you mean 'kafka'"),
        ("[kafka]\npartitions = 0\n", "configuration section kafka: partitions is 0; it must be at least 1"),
        ('[kafka]\npartitions = "many"\n', "configuration field kafka.partitions: given 'many'"),
        ("kafka = 3\n", "section 'kafka' must hold fields"),
        ("[kafka\n", "cannot be parsed"),
    ],
    ids=["field", "section", "value", "type", "not-a-table", "not-toml"],
)
def test_wrong_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    """A wrong file is refused with the section, the field and what is allowed."""
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        load_config(_file(tmp_path, text), {})


def test_yaml_file_is_read_like_toml(tmp_path: Path) -> None:
    """Both forms of the file mean the same."""
    assert load_config(_file(tmp_path, "kafka: {topic: t}\n", "dysra.yaml"), {}).kafka.topic == "t"


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    """A file that does not exist is not an empty one."""
    with pytest.raises(UsageError, match="does not exist"):
        load_config(tmp_path / "none.toml", {})


def test_secrets_are_not_shown() -> None:
    """`dysra config` never prints a password."""
    settings = {
        "DYSRA_KAFKA_SASL_PASSWORD": "hunter2",
        "DYSRA_KAFKA_SASL_USERNAME": "u",
        "DYSRA_KAFKA_SASL_MECHANISM": "PLAIN",
    }
    shown = {row["field"]: row["value"] for row in load_config(None, settings).rows("kafka")}
    assert shown["sasl_password"] == "********"
    assert shown["sasl_username"] == "u"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_has_a_meaning(section: str) -> None:
    """Each field of each section says in one phrase what it is."""
    silent = [f.name for f in dataclasses.fields(section_class(section)) if not f.metadata.get("help")]
    assert silent == []


@pytest.mark.parametrize("section", SECTIONS)
def test_defaults_are_valid(section: str) -> None:
    """The defaults of each section pass its own checks."""
    assert load_config(None, {}).section(section) is not None
