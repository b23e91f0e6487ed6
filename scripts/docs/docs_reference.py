"""Reference pages from the code: settings from where they are validated, commands from Typer."""

import html
import re
import subprocess
import sys
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from medfed.cli.keys import sections
from medfed.client.data.archive.dataset_file import DatasetFile
from medfed.client.site import SiteConfig
from medfed.common import errors
from medfed.common.study import StudyConfig
from medfed.server.federation.home import FederationConfig

_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_SIGNS = {Gt: ("gt", ">"), Ge: ("ge", "≥"), Lt: ("lt", "<"), Le: ("le", "≤")}
_STUDY = """# Every setting of a study

Made from where the settings are validated. `medfed study keys` prints the same; unknown keys and
combinations that cannot be are refused when a study is read.
"""
_SITE = """# Every setting of site.toml

Made from where the settings are validated. The file never leaves the hospital;
[hospital.md](../hospital.md) says how to make one.
"""
_DATASET = """# Every setting of dataset.toml

Made from where the settings are validated. The file never leaves the hospital;
[data.md](../data.md) goes from an archive to a store with it.
"""
_FEDERATION = """# Every setting of federation.toml

Made from where the settings are validated. `medfed federation init` writes the file;
[coordinator.md](../coordinator.md) says how to run a federation.
"""


def reference_pages() -> dict[str, str]:
    """Return Markdown by place."""
    return {
        "reference/study": _STUDY + settings(StudyConfig),
        "reference/site": _SITE + settings(SiteConfig),
        "reference/dataset": _DATASET + settings(DatasetFile),
        "reference/federation": _FEDERATION + settings(FederationConfig),
        "reference/commands": commands(),
    }


def settings(model: type[BaseModel]) -> str:
    """Return a table for each section: key, type, default, meaning."""
    top = _table(model)
    parts = [top] if top else []
    for name, section in sections(model):
        # Most begin with the section's own name; what a table of tables is, its heading says.
        about = re.sub(r"^`\[.*?\]`: ", "", " ".join((section.__doc__ or "").split()))
        about = re.sub(r"^(One of|The) `\[.*?\]`[^.:]*[.:] ?", "", about)
        parts.append(
            f"\n## `{_heading(model, name)}`\n\n{about[:1].upper()}{about[1:]}\n\n{_table(section)}"
        )
    return "\n".join(parts)


def _heading(model: type[BaseModel], place: str) -> str:
    """Return what a section's first line is in a file: [name], [[name]] or [name.NAME]."""
    annotation: Any = model
    for name in place.split("."):
        inside = [annotation, *get_args(annotation)]
        [holder] = [c for c in inside if isinstance(c, type) and issubclass(c, BaseModel)]
        annotation = holder.model_fields[name].annotation
    origin = get_origin(annotation)
    return f"[[{place}]]" if origin is tuple else f"[{place}{'.NAME' if origin is dict else ''}]"


def _table(model: type[BaseModel]) -> str:
    rows = [
        f"| `{name}` | {kind(field.annotation, field)} | {default(field)} | {_cell(field)} |"
        for name, field in model.model_fields.items()
        if not _section(field.annotation) and not field.exclude
    ]
    head = "| Key | Type | Default | Meaning |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n" if rows else ""


def _section(annotation: Any) -> bool:
    kinds = [annotation, *get_args(annotation)]
    return any(isinstance(one, type) and issubclass(one, BaseModel) for one in kinds) and (
        get_origin(annotation) not in (dict, tuple)
    )


def _cell(field: FieldInfo) -> str:
    parts = " ".join((field.description or "").split()).replace("|", "\\|").split("`")
    # Stars and the like mean what they say, but for code.
    parts[::2] = [re.sub(r"([*_<\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def kind(annotation: Any, field: FieldInfo | None = None) -> str:
    """Return a type as its user would call it, with bounds."""
    metadata = list(field.metadata) if field else []
    choices = (field.examples or []) if field else []
    if get_origin(annotation) is Annotated:
        annotation, *own = get_args(annotation)
        metadata += [
            m for one in own for m in (one.metadata if isinstance(one, FieldInfo) else [one])
        ]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{choice}`" if choice != "" else "empty" for choice in arguments)
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices) + ", or a plug-in's"
    if origin in (Union, UnionType):
        return " or ".join(kind(one) for one in arguments if one is not type(None))
    if origin is tuple:
        return f"list of {kind(arguments[0])}"
    if origin is dict:
        return f"table of {kind(arguments[1])}s" if arguments[1] in _WORDS else "table"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        keys = ", ".join(f"`{name}`" for name in annotation.model_fields)
        return f"tables with {keys}"
    word = _WORDS.get(annotation, "value")
    return word + _bounds(metadata)


def _bounds(metadata: list[Any]) -> str:
    shown = [
        f"{sign} {_number(getattr(one, key))}"
        for one in metadata
        for bound, (key, sign) in _SIGNS.items()
        if isinstance(one, bound)
    ]
    least = [f"at least {one.min_length}" for one in metadata if isinstance(one, MinLen)]
    return f", {', '.join(shown + least)}" if shown or least else ""


def _number(bound: float) -> str:
    return "2**63" if bound == 2**63 else str(bound) if isinstance(bound, int) else f"{bound:g}"


def default(field: FieldInfo) -> str:
    """Return a default as a study file spells it."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value is PydanticUndefined:
        return "unset"
    if isinstance(value, tuple):
        return f"`[{', '.join(_spelt(one) for one in value)}]`"
    return f"`{_spelt(value)}`" if not isinstance(value, Mapping) else "`{}`"


def _spelt(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def commands() -> str:
    """Return what `typer utils docs` says of the medfed command."""
    words = ["-m", "typer", "medfed.cli", "utils", "docs", "--name", "medfed"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    # Meant for a Markdown that takes HTML; and the completion of shells is Typer's own.
    text = html.unescape(done.stdout)
    text = re.sub(r"^\* `--(install|show)-completion.*\n", "", text, flags=re.MULTILINE)
    text = _in_full(text)
    return "# Every command\n\n" + exit_codes() + text.replace("# `medfed`", "## `medfed`", 1)


def _in_full(text: str) -> str:
    """Return `text` with the first lines of commands that Typer's lists of commands cut short."""
    lines = re.findall(r"^## `medfed.*`\n\n(.*)$", text, re.MULTILINE)

    def whole(match: re.Match[str]) -> str:
        [line] = {line for line in lines if line.startswith(match[2])} or {match[2]}
        return f"{match[1]}{line}"

    return re.sub(r"^(\* `[a-z-]+`: )(.+)\.\.\.$", whole, text, flags=re.MULTILINE)


def exit_codes() -> str:
    """Return a table of what a command ends with, from the errors that medfed raises."""
    meanings: dict[int, list[str]] = {
        0: ["It did what was asked."],
        1: ["`medfed site preflight` found something that failed."],
        2: ["The command line is wrong."],
        7: ["`medfed audit` found something."],
        130: ["Ctrl-C."],
    }
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.MedfedError):
            first = (error.__doc__ or "").partition("\n")[0]
            # A refusal is an answer to the coordinator, not the end of a command.
            is_end = error not in (errors.MedfedError, errors.SiteRefusal)
            if is_end and first not in meanings.get(error.exit_code, []):
                meanings.setdefault(error.exit_code, []).append(first)
    rows = [f"| {code} | {' '.join(meanings[code])} |" for code in sorted(meanings)]
    return "\n".join(["| Exit code | Meaning |", "|---|---|", *rows]) + "\n\n"
