"""Plain text of an HTML fragment, as feeds carry it: paragraphs kept, markup, scripts and styles left out."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_BLOCKS = (
    frozenset(("address", "article", "aside", "blockquote", "br", "caption", "dd", "div", "dl", "dt"))
    | frozenset(
        (
            "figcaption",
            "figure",
            "footer",
            "h1",
            "h2",
            "h3",
            "h4",
            "h5",
            "h6",
            "header",
            "hr",
            "li",
            "main",
            "nav",
        )
    )
    | frozenset(("ol", "p", "pre", "section", "table", "tr", "ul"))
)
_CELLS = frozenset(("td", "th"))
_HIDDEN = frozenset(("head", "iframe", "noscript", "object", "script", "style", "svg", "template", "title"))
_SPACES = re.compile(r"[^\S\n]+")
_LINES = re.compile(r"\s*\n\s*")


def html_to_text(markup: str) -> str:
    """The text a reader sees, one line a paragraph."""
    reader = _Reader()
    reader.feed(markup)
    reader.close()
    return _LINES.sub("\n", _SPACES.sub(" ", "".join(reader.parts))).strip()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden: list[str] = []

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """As HTML 5 reads what no section may be called: a comment up to the next bracket."""
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:
            return self.parse_bogus_comment(i)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _HIDDEN:
            self._hidden.append(tag)
        self._separate(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._separate(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            # What was left open inside it ends with it.
            del self._hidden[self._hidden.index(tag) :]
        self._separate(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            # A line break in the markup is white space; only tags break lines.
            self.parts.append(data.replace("\n", " "))

    def _separate(self, tag: str) -> None:
        if tag in _BLOCKS:
            self.parts.append("\n")
        elif tag in _CELLS:
            self.parts.append(" ")
