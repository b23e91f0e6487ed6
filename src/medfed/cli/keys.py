"""`medfed study keys`: every key of a study file, from the same place that validates it."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.padding import Padding

from medfed.common.study import StudyConfig


def print_keys() -> None:
    """Print section by section: key, default and meaning."""
    console = Console(highlight=False)
    for section, model in sections(StudyConfig):
        console.print(f"\\[{section}]", style="bold")
        for name, field in model.model_fields.items():
            if not _is_section(field.annotation):
                meaning = " ".join((field.description or "").split())
                console.print(f"  {name} = {_default(field)}{_choices(field)}", style="cyan")
                console.print(Padding(meaning, (0, 0, 0, 6)))


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield (dotted name, model) of every section, parents first."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if _is_section(kind):
                yield prefix + name, kind
                yield from sections(kind, f"{prefix}{name}.")


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _choices(field: FieldInfo) -> str:
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    choices = choices or tuple(field.examples or ())
    return "   # " + " | ".join(str(choice) for choice in choices) if choices else ""


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "{}"
    if field.default is PydanticUndefined:
        return "(required)"
    if field.default is None:
        return "(unset)"
    return str(list(field.default) if isinstance(field.default, tuple) else repr(field.default))
