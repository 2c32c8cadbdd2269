"""All that the serving side is told: the configurations of its parts, from an effective configuration or YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from actors.serve_config import ServeConfig
from models.cache import CacheConfig
from models.embed import EmbedderConfig
from models.hf import HfConfig
from pipeline.article import ArticleLimits
from pipeline.errors import UsageError
from pipeline.kafka import KafkaConfig
from pipeline.session import SessionConfig
from pipeline.store import SearchConfig, StoreConfig

LIVE_SECTIONS = ("session", "cache", "backbone", "articles")
"""Sections that a Serve user_config may change while sessions run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """One section a part; `dysra config` explains each field."""

    kafka: KafkaConfig = field(default_factory=KafkaConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    articles: ArticleLimits = field(default_factory=ArticleLimits)
    backbone: HfConfig = field(default_factory=HfConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    session: SessionConfig = field(default_factory=SessionConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)

    @classmethod
    def from_config(cls, config: Any) -> ServeSettings:
        """The settings of an effective configuration (one attribute a section)."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(cls)})

    def changed(self, sections: Mapping[str, Any]) -> ServeSettings:
        """These settings with some fields changed, as a Serve user_config holds them; UsageError names a wrong one.

        Only what running sessions can take over may change: LIVE_SECTIONS.
        """
        fixed = sorted(set(sections) - set(LIVE_SECTIONS))
        if fixed:
            raise UsageError(
                f"user_config cannot change section {fixed[0]!r} of running sessions (it can: "
                f"{', '.join(LIVE_SECTIONS)}); deploy the application anew for that"
            )
        given = {name: {**asdict(getattr(self, name)), **(values or {})} for name, values in sections.items()}
        made = ServeSettings.from_sections(given)
        return replace(self, **{name: getattr(made, name) for name in given})

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any]) -> ServeSettings:
        """The settings of plain mappings, as a Serve YAML holds them; UsageError names a wrong field."""
        known = {f.name: f.default_factory for f in fields(cls)}
        unknown = set(sections) - set(known)
        if unknown:
            raise UsageError(f"unknown section {sorted(unknown)[0]!r}; allowed: {', '.join(known)}")
        built = {}
        for name, values in sections.items():
            section: Any = known[name]
            try:
                built[name] = TypeAdapter(section).validate_python(values or {})
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join([name, *(str(part) for part in first["loc"])])
                raise UsageError(f"{where}: given {first['input']!r}; {first['msg']}") from None
            wrong = set(values or {}) - {f.name for f in fields(section)}
            if wrong:
                raise UsageError(f"unknown field '{name}.{sorted(wrong)[0]}'; see `dysra config`")
        return cls(**built)
