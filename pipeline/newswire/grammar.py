"""Sentence forms: `{slot}`, `{slot.s}` for the short name, `[one|other]` for a choice, nested at will.

A form knows which slots every one of its expansions contains; that is how the simulator knows which facts
a written sentence tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.newswire.values import Value

Node = Any  # str, _Slot or _Choice; a union here costs the renderer its speed under strict typing


class _Slot:
    __slots__ = ("name", "short")

    def __init__(self, text: str) -> None:
        name, _, modifier = text.partition(".")
        if modifier not in ("", "s"):
            raise AssertionError(f"unknown modifier in slot {{{text}}}")
        self.name, self.short = name, bool(modifier)


class _Choice:
    __slots__ = ("branches", "size")

    def __init__(self, branches: list[list[Node]]) -> None:
        self.branches, self.size = branches, len(branches)


class Form:
    """One sentence form. `slots` are named by every expansion, short names excluded; `named` by some."""

    __slots__ = ("named", "nodes", "slots", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.nodes, end = _parse(source, 0, top=True)
        if end != len(source):
            raise AssertionError(f"unbalanced brackets in form: {source}")
        self.slots = frozenset(_certain(self.nodes))
        self.named = frozenset(_possible(self.nodes))

    def render(self, slots: Mapping[str, Any], register: int, random: Callable[[], float]) -> str:
        """One expansion, its first letter a capital."""
        out: list[str] = []
        _render(self.nodes, slots, register, random, out)
        text = " ".join("".join(out).split()).replace(" ,", ",").replace(" .", ".")
        return text[0] + text[1].upper() + text[2:] if text[0] in "“(" else text[0].upper() + text[1:]


def forms(text: str) -> tuple[Form, ...]:
    """The forms of a block: each begins with `- ` at the start of a line and may run over several lines."""
    found = []
    for block in ("\n" + text.strip("\n")).split("\n- ")[1:]:
        found.append(Form(" ".join(block.split())))
    return tuple(found)


def sections(text: str) -> dict[str, tuple[Form, ...]]:
    """The named blocks of a text: `# name` lines head each block of forms."""
    found: dict[str, tuple[Form, ...]] = {}
    for block in ("\n" + text.strip("\n")).split("\n# ")[1:]:
        name, _, body = block.partition("\n")
        if name.strip() in found:
            raise AssertionError(f"section {name} appears twice")
        found[name.strip()] = forms(body)
    return found


def _parse(source: str, start: int, *, top: bool) -> tuple[list[Node], int]:
    nodes: list[Node] = []
    literal = ""
    at = start
    while at < len(source):
        character = source[at]
        if character in "|]" and not top:
            break
        if character == "{":
            end = source.index("}", at)
            nodes += [literal, _Slot(source[at + 1 : end])] if literal else [_Slot(source[at + 1 : end])]
            literal, at = "", end + 1
        elif character == "[":
            branches = []
            at += 1
            while True:
                branch, at = _parse(source, at, top=False)
                branches.append(branch)
                if at >= len(source):
                    raise AssertionError(f"unclosed choice in form: {source}")
                at += 1
                if source[at - 1] == "]":
                    break
            nodes += [literal, _Choice(branches)] if literal else [_Choice(branches)]
            literal = ""
        else:
            literal += character
            at += 1
    if literal:
        nodes.append(literal)
    return nodes, at


def _render(
    nodes: list[Node], slots: Mapping[str, Any], register: int, random: Callable[[], float], out: list[str]
) -> None:
    for node in nodes:
        kind = node.__class__
        if kind is str:
            out.append(node)
        elif kind is _Slot:
            value = slots[node.name]
            if value.__class__ is Value:
                out.append(value.short if node.short else value.shown[register])
            else:
                out.append(value)
        else:
            _render(node.branches[int(random() * node.size)], slots, register, random, out)


def _certain(nodes: list[Node]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, _Slot) and not node.short:
            found.add(node.name)
        elif isinstance(node, _Choice):
            found |= set.intersection(*(_certain(branch) for branch in node.branches))
    return found


def _possible(nodes: list[Node]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, _Slot):
            found.add(node.name)
        elif isinstance(node, _Choice):
            found = found.union(*(_possible(branch) for branch in node.branches))
    return found
