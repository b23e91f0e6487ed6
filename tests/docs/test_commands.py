"""Every medfed command that a document prints is one that medfed takes, and the other way round."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from rich.text import Text
from typer.core import TyperGroup

from medfed.cli import app

ROOT = Path(__file__).parents[2]
GUIDES = [
    ROOT / "README.md",
    ROOT / "examples" / "plugins" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
]
_CONTINUED = re.compile(r"\\\n\s*")


def printed(guide: Path) -> list[list[str]]:
    """Return the words of each line of a block that is a command of medfed's, without `medfed`."""
    text = _CONTINUED.sub(" ", guide.read_text(encoding="utf-8"))
    found, fenced = [], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if not fenced and not line.startswith("    "):
            continue
        for command in line.partition(" #")[0].split("&&"):
            if re.match(r"\s*medfed [a-z]", command):
                found.append(shlex.split(command)[1:])
    return found


def walk(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield every command below `command` that does something, with its words."""
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            yield from walk(inner, (*path, name))
    else:
        yield path, command


COMMANDS = dict(walk(typer.main.get_command(app)))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_commands_of_a_document_are_taken(guide: Path) -> None:
    for words in printed(guide):
        [path] = [path for path in COMMANDS if tuple(words[: len(path)]) == path]
        # Refuses options that are not there, and arguments that are missing or too many.
        COMMANDS[path].make_context("medfed", words[len(path) :])


def test_commands_are_found_in_documents() -> None:
    readme = printed(ROOT / "README.md")
    assert ["federation", "start"] in readme
    assert len(readme) > 25
    # Of those without a block of their own.
    silent = {GUIDES.index(guide) for guide in GUIDES if not printed(guide)}
    assert {GUIDES[number].stem for number in silent} <= {"README", "results", "benchmarks"}


def test_every_command_and_option_is_named_in_a_document() -> None:
    text = "\n".join(guide.read_text(encoding="utf-8") for guide in GUIDES)
    for path, command in COMMANDS.items():
        assert re.search(rf"\b{path[-1]}\b", text), path
        assert Text.from_markup(command.help).plain == command.help
        for parameter in command.params:
            # What --help says of it: a click that is too new for this typer loses some.
            assert parameter.help, (path, parameter.name)
            # --help takes words in brackets for colours, and leaves them out.
            assert Text.from_markup(parameter.help).plain == parameter.help
            names = [name for name in parameter.opts if name.startswith("--") and name != "--help"]
            assert not names or any(re.search(rf"{name}(?![\w-])", text) for name in names), (
                path,
                names,
            )
