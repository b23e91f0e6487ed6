"""Reads a study file into a `StudyConfig`, and turns every mistake into an error with a way out."""

import difflib
import hashlib
import os
import shutil
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from medfed.common.errors import StudyError, reason
from medfed.common.study import StudyConfig, to_plain
from medfed.common.study.plugins import plugin_names

_HINTS = {
    "privacy.noise_multiplier": 'Set privacy.unit = "none" for a run without privacy.',
    "study.name": "Run folders carry the name: use letters, digits, dot, dash, underscore.",
    "simulation.dataset": "`medfed study keys` lists every key.",
}


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read the study in `path`, apply `section.key=value` overrides, validate the whole.

    Raises:
        StudyError: Every problem found, one a line, each with the key and the way out; a name that
            is neither medfed's own nor an installed plug-in's.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(
            f"Expected a study file at {path}, found none. "
            "Ready-made studies are in studies/; `medfed study show FILE` prints one."
        ) from None
    except IsADirectoryError:
        raise StudyError(f"Expected a study file, got the folder {path}. Name the .toml.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read: {reason(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{path} is not valid TOML: {error}. Mend that line.") from None
    for override in overrides:
        apply_override(table, override)
    study = parse_study(table, str(path))
    if plugin_names(study):
        from medfed.common.plugins.loading import check_offered

        check_offered(study)
    return study


def with_files(study: StudyConfig, folder: Path) -> StudyConfig:
    """Return `study` with the files that it names made absolute, and its weights file pinned.

    The weights file is kept in the cache too, where sites of this machine find it by its hash: the
    study that they are sent names no path.

    Args:
        study: As read from a study file.
        folder: Where that file lies: what it names is relative to it.

    Raises:
        StudyError: A file that is not there, or weights that are not those of weights_sha256.
    """
    report, model = study.task.report, study.model
    if report.vocabulary:
        path = _existing(folder / report.vocabulary, "task.report.vocabulary")
        report = report.model_copy(update={"vocabulary": str(path)})
        task = study.task.model_copy(update={"report": report})
        study = study.model_copy(update={"task": task})
    if model.weights and "://" not in model.weights:
        path = _existing(folder / model.weights, "model.weights")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if model.weights_sha256 not in ("", found):
            raise StudyError(
                f"model.weights: {path} has SHA-256 {found}, model.weights_sha256 says "
                f"{model.weights_sha256}. Fetch the file again, or correct the key."
            )
        _keep_in_cache(path, found)
        pinned = {"weights": str(path), "weights_sha256": found}
        study = study.model_copy(update={"model": model.model_copy(update=pinned)})
    return study


def _keep_in_cache(path: Path, sha256: str) -> None:
    from medfed.common.download import cache_folder

    kept = cache_folder() / "weights" / f"{sha256}{path.suffix}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")
        shutil.copyfile(path, aside)
        aside.replace(kept)


def _existing(path: Path, key: str) -> Path:
    if not path.is_file():
        raise StudyError(f"{key}: expected a file at {path}, found none. Mend the path.")
    return path.resolve()


def parse_study(table: dict[str, Any], origin: str) -> StudyConfig:
    """Validate a nested dictionary as a study; `origin` is what errors call it."""
    try:
        return StudyConfig.model_validate(table)
    except ValidationError as error:
        raise StudyError(describe_errors(error, StudyConfig, origin)) from None


@lru_cache(maxsize=4)
def parse_study_json(text: str) -> StudyConfig:
    """Read a study from the JSON that a message or a run folder holds.

    The same text gives the same object: it comes with every message.
    """
    try:
        return StudyConfig.model_validate_json(text)
    except ValidationError as error:
        raise StudyError(describe_errors(error, StudyConfig, "the study received")) from None


def describe_errors(error: ValidationError, model: type[BaseModel], origin: str) -> str:
    """Return one line a problem: the dotted key, what was expected, what came, the nearest name."""
    lines = [_describe(detail, model) for detail in error.errors()]
    return f"{origin}: {len(lines)} problem(s)\n" + "\n".join(f"  {line}" for line in lines)


def study_to_toml(study: StudyConfig) -> str:
    """Return the resolved study, defaults written out, as TOML that reads back equal."""
    return tomli_w.dumps(to_plain(study))


def apply_override(table: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in place; the value is TOML, or else taken as text.

    With no value the key is taken out: what the study says without it holds.
    """
    key, separator, text = override.partition("=")
    names = names_of(key)
    if not separator or not all(names) or len(names) < 2:
        raise StudyError(
            f"Expected --set section.key=value, got {override!r}. "
            "Example: --set training.learning_rate=0.01"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for name in names[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise StudyError(f"--set {override}: {name} is a value, not a section.")
    if text.strip():
        table[names[-1]] = value
    else:
        table.pop(names[-1], None)


def names_of(key: str) -> list[str]:
    """Return the parts of a dotted key; as in TOML a part that holds a dot stands in quotes."""
    if '"' in key or "'" in key:
        with suppress(tomllib.TOMLDecodeError):
            names: list[str] = []
            inner: Any = tomllib.loads(f"{key} = true")
            while isinstance(inner, dict):
                [(name, inner)] = inner.items()
                names.append(name)
            return names
    return [name.strip() for name in key.split(".")]


def _describe(detail: ErrorDetails, model: type[BaseModel]) -> str:
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location)
    if detail["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"Did you mean {nearest[0]}?" if nearest else f"Known: {', '.join(sorted(known))}."
        return f"{key}: unknown key. {hint}"
    if detail["type"] == "missing":
        return f"{key}: expected a value, got none. Add it."
    if detail["type"] == "value_error":
        text = str(detail["ctx"]["error"]) if "ctx" in detail else detail["msg"]
        return f"{key}: {text}" if key else text
    hint = f" {_HINTS[key]}" if key in _HINTS else ""
    expected = detail["msg"].replace("valid tuple", "list, e.g. [1, 2]")
    return f"{key}: {expected}, got {detail['input']!r}.{hint}"


def _keys_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """The field names of the section at `location` inside `model`."""
    current: type[BaseModel] = model
    in_table = False
    for name in location:
        if in_table:  # the name of an entry, such as a column, or its number
            in_table = False
            continue
        field = current.model_fields.get(name)
        if field is None:
            return []
        in_table = get_origin(field.annotation) in (dict, tuple)
        candidates = (field.annotation, *get_args(field.annotation))
        sections = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not sections:
            return []
        current = sections[0]
    return list(current.model_fields)
