"""One validated configuration: a file's sections, environment variables and flags over the defaults.

Each section is the frozen dataclass of the part that owns it; the meaning of a field is its
`metadata["help"]`. Order, weakest first: default, recipe, file, environment (DYSRA_<SECTION>_<FIELD>), flag.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import UsageError

SECTIONS: dict[str, str] = {
    "kafka": "pipeline.kafka:KafkaConfig",
    "articles": "pipeline.article:ArticleLimits",
    "embedder": "models.embed:EmbedderConfig",
    "chunks": "pipeline.chunker:ChunkConfig",
    "duplicates": "pipeline.near_duplicates:NearDuplicateConfig",
    "ingest": "actors.ingest_config:IngestConfig",
    "store": "pipeline.store:StoreConfig",
    "search": "pipeline.store:SearchConfig",
    "backbone": "models.hf:HfConfig",
    "cache": "models.cache:CacheConfig",
    "session": "pipeline.session:SessionConfig",
    "serve": "actors.serve_config:ServeConfig",
    "tracking": "infra.tracking:TrackingConfig",
}


@dataclasses.dataclass
class Config:
    """The effective configuration; `origin["section.field"]` says where each value was set.

    Sections that nothing sets are made when they are first asked for, so that a verb does not import the
    parts it has no use for.
    """

    values: dict[str, Any]
    origin: dict[str, str]

    def section(self, name: str) -> Any:
        """The section's dataclass."""
        if name not in self.values:
            self.values[name] = _validate(name, {})
        return self.values[name]

    def __getattr__(self, name: str) -> Any:
        if name not in SECTIONS:
            raise AttributeError(name)
        return self.section(name)

    def override(self, section: str, *, origin: str = "flag", **fields: Any) -> Config:
        """This configuration with some fields of a section replaced; None leaves a field as it is."""
        given = {name: value for name, value in fields.items() if value is not None}
        if not given:
            return self
        old = self.section(section)
        current = {f.name: getattr(old, f.name) for f in dataclasses.fields(old)}
        values = {**self.values, section: _validate(section, {**current, **given})}
        origins = {**self.origin, **{f"{section}.{name}": origin for name in given}}
        return Config(values, origins)

    def rows(self, only: str | None = None) -> list[dict[str, Any]]:
        """One row a field of every section (or of one): section, field, value, origin, help."""
        rows = []
        for section in SECTIONS if only is None else [only]:
            value = self.section(section)
            for field in dataclasses.fields(value):
                rows.append(
                    {
                        "section": section,
                        "field": field.name,
                        "value": _shown(field, getattr(value, field.name)),
                        "origin": self.origin.get(f"{section}.{field.name}", "default"),
                        "help": field.metadata.get("help", ""),
                    }
                )
        return rows


def load_config(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """The effective configuration; raises UsageError that names the section and field at fault."""
    environ = os.environ if environ is None else environ
    given = _read(path) if path is not None else {}
    for name in given:
        if name not in SECTIONS:
            raise UsageError(
                f"{path}: unknown section '{name}'{_suggest(name, SECTIONS)}; see `dysra config`"
            )
    config = Config({}, {})
    for section in SECTIONS:
        prefix = f"DYSRA_{section}_".upper()
        variables = [name for name in environ if name.startswith(prefix)]
        if section not in given and not variables:
            continue
        fields = dict(_fields_of(section, given.get(section) or {}, path))
        config.origin.update({f"{section}.{name}": str(path) for name in fields})
        names = {field.name for field in dataclasses.fields(section_class(section))}
        for variable in variables:
            name = variable[len(prefix) :].lower()
            if name in names:
                fields[name] = environ[variable]
                config.origin[f"{section}.{name}"] = variable
        config.values[section] = _validate(section, fields)
    return config


def _fields_of(section: str, fields: Any, path: Path | None) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise UsageError(f"{path}: section '{section}' must hold fields, not {fields!r}")
    names = sorted(field.name for field in dataclasses.fields(section_class(section)))
    for name in fields:
        if name not in names:
            raise UsageError(
                f"{path}: unknown field '{section}.{name}'{_suggest(name, names)}; see `dysra config`"
            )
    return fields


def section_class(section: str) -> type[Any]:
    """The dataclass that owns a section."""
    module, name = SECTIONS[section].split(":")
    cls: type[Any] = getattr(importlib.import_module(module), name)
    return cls


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UsageError(f"configuration file {path} does not exist")
    text = path.read_text(encoding="utf-8")
    try:
        value = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be parsed: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{path} must hold sections ({', '.join(SECTIONS)})")
    return value


def _validate(section: str, fields: dict[str, Any]) -> Any:
    try:
        return TypeAdapter(section_class(section)).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        if (
            first["type"] == "value_error"
        ):  # the owner's own check, which names field, value and what is allowed
            raise UsageError(f"configuration section {section}: {first['ctx']['error']}") from None
        where = ".".join([section, *(str(part) for part in first["loc"])])
        raise UsageError(f"configuration field {where}: given {first['input']!r}; {first['msg']}") from None


def _suggest(name: str, allowed: Any) -> str:
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f", did you mean '{close[0]}'?" if close else f"; allowed: {', '.join(allowed)}"


def _shown(field: dataclasses.Field[Any], value: Any) -> Any:
    secret = field.metadata.get("secret") and value
    return "********" if secret else value
