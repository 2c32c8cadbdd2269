"""Structured logs: one event name plus fields, as JSON lines or as text on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure_logging(level: str = "INFO", *, json_lines: bool | None = None) -> None:
    """Send events to standard error: JSON unless it is a terminal. Call once per process."""
    if json_lines is None:
        json_lines = not sys.stderr.isatty()
    renderer: Any = structlog.processors.JSONRenderer() if json_lines else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger(**fields: Any) -> structlog.stdlib.BoundLogger:
    """A logger with `fields` (session_id, shard_id, topic, partition, offset, …) on every event."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(**fields)
    return logger
