"""Registry, errors, and what importing the package costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from semcast import errors
from semcast.errors import ContractError, InputError, SemcastError, UnknownNameError
from semcast.registry import Registry


def make() -> Registry[object]:
    registry: Registry[object] = Registry("thing")
    registry.add("pi", "math:pi")
    return registry


def test_lazy_entries_resolve_once() -> None:
    import math

    registry = make()
    assert registry.get("pi") is math.pi
    assert "pi" in registry
    assert len(registry) == 1


def test_decorator_registers_the_object_itself() -> None:
    registry = make()

    @registry.register("one")
    def one() -> int:
        return 1

    assert registry.get("one") is one
    assert list(registry) == ["one", "pi"]


def test_a_name_is_registered_once() -> None:
    registry = make()
    with pytest.raises(ValueError, match="'pi' is registered twice"):
        registry.add("pi", "math:tau")
    with pytest.raises(ValueError, match="twice"):
        registry.register("pi")(3)


def test_unknown_names_offer_the_nearest_or_all() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown thing 'pj'; did you mean 'pi'\?"):
        make().get("pj")
    with pytest.raises(UnknownNameError, match="unknown thing 'zzzz'; known: pi"):
        make().get("zzzz")


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    drawn = errors.__doc__ or ""
    classes = {name for name, item in vars(errors).items() if isinstance(item, type) and issubclass(item, SemcastError)}
    assert classes == {word for word in drawn.replace("─", " ").split() if word.endswith("Error")}
    assert not issubclass(ContractError, InputError)


@pytest.mark.parametrize("module", ["semcast", "semcast.systems", "semcast.channels", "semcast.modems", "semcast.metrics"])
def test_registries_are_light(module: str) -> None:
    """Asking for names must not import torch: that is most of the time that --help would take."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
