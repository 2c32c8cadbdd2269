"""What `tests/interpreted.py` leaves out of Triton's interpreter changes no result and outlives no launch."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from models.kernels.landmark_topk import landmark_topk
from tests.interpreted import PatchedOnce, make_fast, numpy_dtype

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "1",
    reason="Triton's interpreter is off",
)


def search() -> tuple[torch.Tensor, torch.Tensor]:
    """A kernel that calls device functions, which call others."""
    make = torch.Generator().manual_seed(1)
    queries, landmarks = torch.randn(2, 1, 16, generator=make), torch.randn(40, 16, generator=make)
    return landmark_topk(queries, landmarks, 4, implementation="fused")


@pytest.fixture
def interpreter() -> Any:
    """Triton's module, imported and once used."""
    search()
    from triton.runtime import interpreter

    make_fast()
    return interpreter


def test_the_language_is_patched_once_a_launch_and_is_itself_again_after_it(
    interpreter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Device functions patch nothing that their launch has patched; the second launch patches anew."""
    from triton import language

    names = {language: ("load", "dot", "sum", "arange"), language.tensor: ("__add__", "__str__", "to")}
    before = [getattr(owner, name) for owner, own in names.items() for name in own]
    patch, run = interpreter._patch_lang._patch, interpreter.GridExecutor.__call__
    patched: list[Any] = []
    launched: list[Any] = []

    def patching(fn: Any) -> Any:
        patched.append(fn)
        return patch(fn)

    def launching(self: Any, *args: Any, **named: Any) -> Any:
        launched.append(self.fn)
        return run(self, *args, **named)

    monkeypatch.setattr(interpreter, "_patch_lang", PatchedOnce(patching))
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launching)
    search()
    search()
    assert launched
    assert set(launched) <= set(patched)
    assert len(patched) <= 2 * len(launched)  # `triton.language` by the kernel, `.core` by its first sum
    assert [getattr(owner, name) for owner, own in names.items() for name in own] == before


def test_a_kernel_finds_the_same_bits_with_and_without(
    interpreter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Triton's own interpreter runs it, overflow sanitised and all."""
    fast = search()
    builder = interpreter.interpreter_builder
    given = interpreter._patch_lang
    assert isinstance(given, PatchedOnce) and not builder.options.sanitize_overflow
    monkeypatch.setattr(interpreter, "_patch_lang", given._patch)
    monkeypatch.setattr(builder, "options", interpreter.InterpreterOptions())
    assert builder.options.sanitize_overflow
    from triton import language

    for made in (language.block_type, language.tensor):
        monkeypatch.setattr(made, "__init__", made.__init__.__wrapped__)
    monkeypatch.setattr(interpreter, "_get_np_dtype", interpreter._get_np_dtype.__wrapped__)
    plain = search()
    assert all(torch.equal(a, b) for a, b in zip(fast, plain, strict=True))


def test_blocks_and_tensors_are_what_the_language_makes(interpreter: Any) -> None:
    """Their shapes, names, elements and numbers, for a second of a kind as for the first."""
    from triton import language as tl

    for kind in (tl.float32, tl.int1, tl.pointer_type(tl.float16)):
        for shape in ([4, 8], [tl.constexpr(4), 8], tl.tuple([4, 8]), [8, 4]):
            plain = tl.block_type.__new__(tl.block_type)
            tl.block_type.__init__.__wrapped__(plain, kind, shape)
            for block in (tl.block_type(kind, shape), tl.block_type(kind, shape)):
                assert block == plain and str(block) == str(plain) and block.numel == plain.numel
                own, other = tl.tensor(None, block), tl.tensor.__new__(tl.tensor)
                tl.tensor.__init__.__wrapped__(other, None, block)
                assert own.shape == other.shape and own.numel == other.numel
                assert (own.type, own.dtype, vars(own).keys()) == (
                    other.type,
                    other.dtype,
                    vars(other).keys(),
                )


def test_types_are_numpys_as_the_interpreter_names_them(interpreter: Any) -> None:
    """Scalars, pointers and blocks of both."""
    from triton import language as tl

    find = getattr(interpreter._get_np_dtype, "__wrapped__", interpreter._get_np_dtype)
    kinds = [tl.float32, tl.bfloat16, tl.int1, tl.pointer_type(tl.float16)]
    blocks = [tl.block_type(kind, [4]) for kind in kinds]
    found = numpy_dtype(find)
    assert [found(kind) for kind in (*kinds, *blocks) * 2] == [find(kind) for kind in (*kinds, *blocks) * 2]
