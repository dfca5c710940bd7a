"""What is asked of the C library must not matter where it is another one."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from semcast import machine


def test_the_allocator_is_asked_where_it_is_glibc() -> None:
    """In a process of its own, since a setting cannot be taken back."""
    code = (
        "from semcast import machine as m; assert m.keep_freed_memory() == m.return_freed_memory() == (m._glibc() is not None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    machine._glibc.cache_clear()
    try:
        assert not machine.keep_freed_memory()
        assert not machine.return_freed_memory()
    finally:
        machine._glibc.cache_clear()


@pytest.mark.parametrize(
    ("units", "there"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)]
)
def test_bf16_is_for_processors_that_have_it(units: dict[str, bool], there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert machine.has_bf16() is there
