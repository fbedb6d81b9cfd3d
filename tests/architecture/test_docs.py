"""The docs say what the code does: generated pages are up to date, links lead somewhere, commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgeops.cli import root

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as a process of its own makes them: click remembers what commands that ran here were asked."""
    folder = tmp_path_factory.mktemp("reference")
    subprocess.run([sys.executable, ROOT / "docs" / "generate.py", folder], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("page", ["errors.md", "topics.md", "commands.md", "agent-states.md"])
def test_generated_page_is_up_to_date(page: str, generated: Path):
    """`make docs` writes it."""
    assert (ROOT / "docs" / "reference" / page).read_text() == (generated / page).read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def commands_in(text: str) -> list[list[str]]:
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    lines += re.findall(r"`(edgeops [^`]+)`", text)
    return [shlex.split(line, comments=True) for line in lines if line.startswith("edgeops ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_in_the_docs_exists_with_its_options(page: Path):
    for words in commands_in(page.read_text()):
        command: click.Command = root
        context = click.Context(root, info_name="edgeops")
        rest = words[1:]
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            found = command.get_command(context, re.split(r"[|,]", rest[0])[0])
            assert found is not None, " ".join(words)
            command, rest = found, rest[1:]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.split("=")[0] for word in rest if word.startswith("-")} - {"--help", "--version"}
        assert used <= known, f"{' '.join(words)}: no {used - known}"


def test_the_look_at_commands_can_fail():
    """Negative control: a command that does not exist is seen as one, and is not there."""
    words = commands_in("`edgeops no-such-command --x`")[0]
    assert words[1:] == ["no-such-command", "--x"]
    assert root.get_command(click.Context(root), words[1]) is None


def test_every_test_that_the_docs_name_exists():
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^\s*(?:async )?def (test_\w+)\(", sources, re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)(?:\[[\w ]+\])?`", page.read_text())}
    assert len(named) > 100
    assert named - there == set()
