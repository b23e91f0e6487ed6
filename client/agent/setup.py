"""`medfed site init`: a hospital's folder with its site.toml, its state and its keys.

    FOLDER/site.toml       every key with what it means, from where it is defined (client/site.py)
    FOLDER/state/          ledger key and, later, ledger, release list and audit log
    FOLDER/keys/           the key towards the coordinator

Nothing is overwritten: a state folder that is there already keeps its ledger.
"""

import os
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from medfed.client.agent.keys import load_or_make_ledger_key, load_or_make_node_key
from medfed.client.audit_log import AuditLog
from medfed.client.data.store import Store, open_store
from medfed.client.site import SiteConfig, load_site
from medfed.common.enrolment import check_name
from medfed.common.errors import DataError, FederationError, SiteConfigError
from medfed.common.files import write_secret
from medfed.common.study_file import describe_errors

SITE_FILE = "site.toml"
_WIDTH = 96
Unit = Literal["patient", "record", "site", "none"]

_HOW_TO_PREPARE = (
    "A prepared store is a folder with store.json and images.npy in it. Make one of your images "
    "with `medfed data prepare`; `medfed data trial STUDY` makes one of invented patients."
)
_HEAD = """\
# This site of a medfed federation. It is never transmitted.
# What stands here decides, whatever a study asks. Changes count from the next message on.
"""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What only the hospital can say.

    Attributes:
        name: The site's name in the federation.
        stores: Folders of prepared stores.
        subset: File that names which images are the site's; empty for all of them.
        unit: Weakest unit of privacy accepted.
        max_epsilon: The data set's budget.
        target_delta: Delta at which it is stated.
        public_num_patients: What the site says in public, if it does.
        release_evaluation: Whether exact sums over held-out patients may leave.
    """

    name: str
    stores: tuple[Path, ...]
    subset: Path | None = None
    unit: Unit = "patient"
    max_epsilon: float = 8.0
    target_delta: float = 1e-5
    public_num_patients: int | None = None
    release_evaluation: bool = False


def set_up(folder: Path, answers: Answers) -> SiteConfig:
    """Make a site's folder; return its configuration, as it is read back.

    Raises:
        SiteConfigError: There is a site already, an answer is impossible, or nothing can be
            written there.
    """
    check_free(folder)
    text = site_toml(folder, answers)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("state", "keys"):
            (folder / name).mkdir(exist_ok=True, mode=0o700)
            (folder / name).chmod(0o700)
        load_or_make_ledger_key(folder / "state")
        load_or_make_node_key(folder / "keys" / "node.key")
        write_secret(folder / SITE_FILE, text.encode())
        AuditLog(folder / "state").write("installed", version=version("medfed"))
    except OSError as error:
        raise SiteConfigError(
            f"{folder} cannot be written: {error.strerror}. Name a folder of this user's own."
        ) from None
    return load_site(folder / SITE_FILE)


def check_free(folder: Path) -> None:
    """Raise SiteConfigError if there is a site in `folder`, or it is no folder."""
    if (folder / SITE_FILE).exists():
        raise SiteConfigError(
            f"{folder / SITE_FILE} exists and is left as it is. Edit it, or name another folder "
            "for another site."
        )
    if folder.exists() and not folder.is_dir():
        raise SiteConfigError(f"Expected a folder, got the file {folder}. Name another.")


def check_site_name(text: str) -> str:
    """Return a site's name, or raise SiteConfigError."""
    try:
        return check_name(text.strip())
    except FederationError as error:
        raise SiteConfigError(str(error)) from None


def check_store(path: Path) -> Store:
    """Open a prepared store.

    Raises:
        SiteConfigError: It is none, with how to make one.
    """
    if not (path / "store.json").is_file():
        inside = (
            sorted(found.parent for found in path.glob("*/store.json")) if path.is_dir() else []
        )
        if inside:
            names = ", ".join(str(one) for one in inside[:5])
            raise SiteConfigError(f"{path} is no prepared store, but holds some: name {names}.")
        what = "no prepared store" if path.exists() else "not there"
        raise SiteConfigError(f"{path} is {what}. {_HOW_TO_PREPARE}")
    try:
        return open_store(path)
    except (DataError, KeyError, TypeError, IndexError) as error:
        raise SiteConfigError(f"{path} cannot be used: {error}") from None


def check_alike(stores: Sequence[Store]) -> None:
    """Raise SiteConfigError unless stores can serve one study together."""
    kinds = {(store.task, store.classes, store.mode, store.views) for store in stores}
    if len(kinds) > 1:
        names = "; ".join(f"{store.folder}: {store.task}" for store in stores)
        raise SiteConfigError(
            f"Expected stores for the same task and labels, got {names}. Give each task a site "
            "folder of its own."
        )


def site_toml(folder: Path, answers: Answers) -> str:
    """Return the text of a site.toml that says `answers`, every key with its meaning.

    Raises:
        SiteConfigError: An answer that no site.toml takes.
    """
    stores = [_as_written(folder, store) for store in answers.stores]
    chosen: dict[str, Any] = {
        "name": answers.name,
        "data": {
            "stores": stores,
            "subset": _as_written(folder, answers.subset) if answers.subset else "",
            "public_num_patients": answers.public_num_patients,
        },
        "policy": {
            "unit": answers.unit,
            "max_epsilon": answers.max_epsilon,
            "target_delta": answers.target_delta,
            "release_evaluation": answers.release_evaluation,
        },
    }
    text = _HEAD + "\n".join(_lines(SiteConfig, chosen, "")) + "\n"
    try:
        SiteConfig.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise SiteConfigError(describe_errors(error, SiteConfig, "The answers")) from None
    return text


def _as_written(folder: Path, path: Path) -> str:
    """Relative where it lies in the site's folder, which may then be moved as a whole."""
    whole, home = Path(os.path.abspath(path)), Path(os.path.abspath(folder))  # noqa: PTH100
    return str(whole.relative_to(home)) if whole.is_relative_to(home) else str(whole)


def _lines(model: type[BaseModel], chosen: Mapping[str, Any], section: str) -> Iterator[str]:
    """Yield the lines of a section: what each key means, then the key; subsections last."""
    fields = {name: field for name, field in model.model_fields.items() if not field.exclude}
    for name, field in fields.items():
        if _section(field.annotation):
            continue
        default = None if field.default is PydanticUndefined else field.default
        value = chosen.get(name, default)
        yield ""
        meaning = " ".join((field.description or "").split())
        yield from textwrap.wrap(
            meaning, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
        )
        allowed = _choices(field.annotation)
        if allowed:
            yield f"# One of: {', '.join(allowed)}."
        yield f"# {name} = (unset)" if value is None else _assignment(name, value)
    for name, field in fields.items():
        inner = _section(field.annotation)
        if inner is not None:
            place = f"{section}{name}"
            yield from ("", "", f"[{place}]")
            yield from _lines(inner, chosen.get(name, {}), f"{place}.")


def _assignment(name: str, value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    if isinstance(plain, list):
        items = ", ".join(tomli_w.dumps({"x": item}).strip()[4:] for item in plain)
        return f"{name} = [{items}]"
    return tomli_w.dumps({name: plain}).strip()


def _choices(annotation: object) -> Sequence[str]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None
