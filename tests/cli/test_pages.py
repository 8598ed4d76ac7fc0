"""docs/cli.md is what the commands say; the glossary has every room."""

from __future__ import annotations

import re
from pathlib import Path

import typer
from typer.core import TyperGroup

from dure.cli.docs import page
from dure.cli.main import app

ROOT = Path(__file__).parents[2]


def verbs(group: TyperGroup, prefix: str) -> dict[str, list[str]]:
    """Command line -> its options."""
    found: dict[str, list[str]] = {}
    for name, command in group.commands.items():
        path = f"{prefix} {name}"
        if isinstance(command, TyperGroup):
            found |= verbs(command, path)
        else:
            found[path] = [opt for param in command.params if param.param_type_name == "option" for opt in param.opts]
    return found


def test_the_page_is_as_generated() -> None:
    written = (ROOT / "docs/cli.md").read_text("utf-8")
    assert written == page(), "run: python -m dure.cli.docs > docs/cli.md"


def test_every_verb_and_option_is_on_the_page() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    known = verbs(group, "dure")
    text = (ROOT / "docs/cli.md").read_text("utf-8")
    sections = dict(re.findall(r"^## `([^`]+)`\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert set(known) <= set(sections)
    for verb, options in known.items():
        for option in options:
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", sections[verb]), f"{verb} {option}"
    wanted = "up chips models deploy undeploy chat submit ps logs why stop report"
    assert {f"dure {verb}" for verb in wanted.split()} <= set(known)


def test_the_page_says_the_exit_codes_and_the_environment() -> None:
    text = (ROOT / "docs/cli.md").read_text("utf-8")
    assert all(word in text for word in ("DURE_URL", "DURE_KEY", "DURE_HOME", "130", "2 wrong usage"))


def test_the_glossary_has_every_room_in_two_languages() -> None:
    table = (ROOT / "ARCHITECTURE.md").read_text("utf-8").split("## Rooms")[1].split("\n## ")[0]
    firsts = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    rooms = re.findall(r"`(\w+)`", " ".join(firsts))
    lines = (ROOT / "docs/glossary.md").read_text("utf-8").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| ") and "| 한국어 |" not in line]
    terms = [[cell.strip() for cell in row] for row in rows]
    assert len(rooms) > 8 and set(rooms) <= {term[0] for term in terms}
    for english, korean, meaning in terms:
        assert english and re.search("[가-힣]", korean) and len(meaning) > 10, english
    names = [term[0].lower() for term in terms]
    assert len(names) == len(set(names)), "each term once"
