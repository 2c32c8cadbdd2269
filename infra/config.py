"""One validated configuration: a file's sections, environment variables and flags over the defaults.

Each section is the frozen dataclass of the part that owns it; the meaning of a field is its
`metadata["help"]`. Order, weakest first: default, recipe, file, environment (DYSRA_<SECTION>_<FIELD>), flag.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
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
    """The effective configuration; `origin["section.field"]` says where each value was set."""

    values: dict[str, Any]
    origin: dict[str, str]

    def __getattr__(self, section: str) -> Any:
        try:
            return self.__dict__["values"][section]
        except KeyError:
            raise AttributeError(section) from None

    def override(self, section: str, *, origin: str = "flag", **fields: Any) -> Config:
        """This configuration with some fields of a section replaced; None leaves a field as it is."""
        given = {name: value for name, value in fields.items() if value is not None}
        if not given:
            return self
        current = {f.name: getattr(self.values[section], f.name) for f in dataclasses.fields(self.values[section])}
        values = {**self.values, section: _validate(section, {**current, **given})}
        origins = {**self.origin, **{f"{section}.{name}": origin for name in given}}
        return Config(values, origins)

    def rows(self) -> list[dict[str, Any]]:
        """One row a field: section, field, value, origin, help."""
        rows = []
        for section, value in self.values.items():
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
            raise UsageError(f"{path}: unknown section '{name}'{_suggest(name, SECTIONS)}; see `dysra config`")
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for section in SECTIONS:
        if importlib.util.find_spec(SECTIONS[section].split(":")[0]) is None:
            continue
        fields = given.get(section) or {}
        if not isinstance(fields, dict):
            raise UsageError(f"{path}: section '{section}' must hold fields, not {fields!r}")
        names = {field.name: field for field in dataclasses.fields(section_class(section))}
        for name in fields:
            if name not in names:
                raise UsageError(
                    f"{path}: unknown field '{section}.{name}'{_suggest(name, names)}; see `dysra config`"
                )
            origin[f"{section}.{name}"] = str(path)
        fields = dict(fields)
        for name in names:
            variable = f"DYSRA_{section}_{name}".upper()
            if variable in environ:
                fields[name] = environ[variable]
                origin[f"{section}.{name}"] = variable
        values[section] = _validate(section, fields)
    return Config(values, origin)


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
        where = ".".join([section, *(str(part) for part in first["loc"])])
        raise UsageError(f"configuration field {where}: given {first['input']!r}; {first['msg']}") from None


def _suggest(name: str, allowed: Any) -> str:
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f", did you mean '{close[0]}'?" if close else f"; allowed: {', '.join(allowed)}"


def _shown(field: dataclasses.Field[Any], value: Any) -> Any:
    secret = field.metadata.get("secret") and value
    return "********" if secret else value
