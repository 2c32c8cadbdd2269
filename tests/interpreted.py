"""A pytest plugin: Triton's interpreter without its own waste (Triton 3.6; half of a kernel's seconds there).

What a kernel computes is not touched: left out are work that is thrown away and work that is done again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, wraps
from inspect import ismodule
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _interpreter_made_fast() -> None:
    """From the first test on that finds the interpreter imported; nothing is imported for it before."""
    make_fast()


def make_fast() -> None:
    """Change the interpreter that is imported, once."""
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None or isinstance(interpreter._patch_lang, PatchedOnce):
        return
    interpreter._patch_lang = PatchedOnce(interpreter._patch_lang)  # type: ignore[attr-defined]
    interpreter._get_np_dtype = numpy_dtype(interpreter._get_np_dtype)  # type: ignore[attr-defined]
    language = sys.modules["triton.language"]
    language.block_type.__init__ = blocks_once(language.block_type.__init__, language.dtype)
    language.tensor.__init__ = shapes_once(language.tensor.__init__)
    builder = interpreter.interpreter_builder
    # Every sum of integers is made again in 64 bits, and what that finds is then dropped unless `debug` is on.
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)


class PatchedOnce:
    """Stands in for `_patch_lang(fn)`: the language is patched at a launch, not at a device function's call."""

    def __init__(self, patch: Callable[[Any], Any]) -> None:
        self._patch = patch
        self._patched: frozenset[str] = frozenset()

    def __call__(self, fn: Any) -> Any:
        """The scope whose `restore` ends the launch; None where all that `fn` sees is patched already."""
        seen = _language_of(fn)
        if seen <= self._patched:
            return None  # a device function's call drops it
        scope = self._patch(fn)
        if not self._patched:
            scope.restore = self._ended(scope.restore)
        self._patched |= seen
        return scope

    def _ended(self, restore: Callable[[], None]) -> Callable[[], None]:
        def ended() -> None:
            self._patched = frozenset()
            restore()

        return ended


@cache
def _language_of(fn: Any) -> frozenset[str]:
    """Which modules of Triton's language a function's own module has at hand."""
    modules = {value.__name__ for value in fn.__globals__.values() if ismodule(value)}
    return frozenset(modules & {"triton.language", "triton.language.core"})


def numpy_dtype(find: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`find(type)`, which builds its table of all types at each call, asked once for each type of an element."""
    from triton.language import block_type, pointer_type

    known = cache(find)
    pointer = find(pointer_type(sys.modules["triton.language"].int8))

    @wraps(find)
    def found(kind: Any) -> Any:
        element = kind.element_ty if isinstance(kind, block_type) else kind
        return pointer if isinstance(element, pointer_type) else known(element)

    return found


def blocks_once(make: Callable[..., None], scalar: Any) -> Callable[..., None]:
    """`block_type.__init__`, whose checks and name are those of the first block of these numbers in this shape."""
    known: dict[Any, dict[str, Any]] = {}

    @wraps(make)
    def made(self: Any, element_ty: Any, shape: Any) -> None:
        if type(element_ty) is not scalar:  # pointers to one type are several objects
            make(self, element_ty, shape)
            return
        key = (element_ty.name, *shape)
        if key not in known:
            make(self, element_ty, shape)
            known[key] = dict(self.__dict__)
        self.__dict__.update(known[key])

    return made


def shapes_once(make: Callable[..., None]) -> Callable[..., None]:
    """`tensor.__init__`, whose shape and number of elements follow from the type: made once for each type."""
    known: dict[str, dict[str, Any]] = {}

    @wraps(make)
    def made(self: Any, handle: Any, type: Any) -> None:
        name = type.name if type.is_block() else ""
        if name not in known:
            make(self, handle, type)
            known[name] = {field: getattr(self, field) for field in ("shape", "numel")}
        self.__dict__.update(known[name], handle=handle, type=type, dtype=type.scalar)

    return made
