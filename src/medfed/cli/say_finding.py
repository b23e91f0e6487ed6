"""How a check's findings are shown: the level, what was checked, and the text beside them."""

import shutil
import textwrap

import typer


def say_finding(level: str, check: str, text: str, *, color: str, check_width: int) -> None:
    """Print one finding in as many lines as its text takes.

    Args:
        level: ok, warning, error and the like.
        check: What was checked.
        text: What was found, with the way out.
        color: Of the level, as Typer names it.
        check_width: Characters of the column of checks.
    """
    width = max(60, min(shutil.get_terminal_size().columns, 110))
    indent = " " * (10 + check_width + 1)
    filled = textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    typer.echo(f"{typer.style(f'{level:<8}', fg=color)}  {check:<{check_width}} {filled.lstrip()}")
