"""Sessions: one stream's history in a cache of constant size, and answers that cite their sources.

No Ray and, on import, no torch: `actors/session_host.py` is the shell that serves them.
"""

from pipeline.session.config import SessionConfig
from pipeline.session.prompts import parse_answer, reader_prompt

__all__ = ["SessionConfig", "parse_answer", "reader_prompt"]
