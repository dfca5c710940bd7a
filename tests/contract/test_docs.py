"""What the documents say is what the program does: their Python runs, their command lines parse, their options exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer.main

from semcast.app.cli import app
from semcast.channels import CHANNELS
from semcast.goals import GOALS
from semcast.metrics import METRICS
from semcast.modems import MODEMS
from semcast.registry import Registry
from semcast.systems import SYSTEMS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line, text) of the fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match[1]) for match in found]


def command_lines() -> Iterator[Any]:
    for page in PAGES:
        for _, text in blocks(page, "console"):
            for line in text.replace("\\\n", " ").splitlines():
                for part in line.partition("  #")[0].split(" ; "):
                    if part.strip().startswith("semcast "):
                        yield pytest.param(part.strip(), id=f"{page.name}-{part.strip()[:60]}")


@pytest.fixture
def registries() -> Iterator[None]:
    """What a page registers is gone afterwards."""
    everything: list[Registry[Any]] = [SYSTEMS, CHANNELS, METRICS, GOALS, MODEMS]
    with ExitStack() as stack:
        for registry in everything:
            stack.callback(setattr, registry, "_items", dict(registry._items))
        yield


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run(page: Path, registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "docs"}
    for line, text in blocks(page, "python"):
        exec(compile("\n" * line + text, str(page), "exec", dont_inherit=True), names)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(example: Path, registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")


@pytest.mark.parametrize("line", list(command_lines()))
def test_command_lines_parse(line: str) -> None:
    _, *words = shlex.split(line)
    if words[0].startswith("-"):
        assert words[0] in ("--help", "--version")
        return
    assert words[0] in COMMANDS
    COMMANDS[words[0]].make_context(words[0], words[1:])


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    exist = {option for command in COMMANDS.values() for p in command.params for option in p.opts if option.startswith("--")}
    assert exist - said == set()
    assert said - exist - {"--help", "--version"} == set()
    for name in COMMANDS:
        assert re.search(rf"^## .*\b{name}\b", text, re.MULTILINE), f"docs/cli.md has no section on {name}"


def test_the_readme_lists_every_system() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first_cells = "\n".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    table = set(re.findall(r"`([a-z0-9-]+)`", first_cells))
    assert table == set(SYSTEMS)


def test_rows_are_documented() -> None:
    from semcast.studies.rows import KEYS

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    metrics = set(METRICS)
    assert [key for key in KEYS if key not in metrics and not re.search(rf"\b{key}\b", text)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)", text)
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []


def test_scenes_channels_and_conditions_in_the_docs_exist() -> None:
    from semcast.channels import make_channel
    from semcast.systems.conditions import condition_names
    from semcast.video.scenes import SCENES

    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"scene:([a-z-]+)", text)) <= set(SCENES)
    for spec in set(re.findall(r"--channel ([a-z][^\s`]*)", text)):
        make_channel(spec)
    for name in condition_names():
        assert f"`{name}`" in text
