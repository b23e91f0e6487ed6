"""Finds plug-ins among the installed packages, and loads the one that a study names.

Looking reads what pip wrote beside a package and runs none of its code; `load_plugin` imports the
module of one entry point. Names of medfed's own never come here: a package cannot replace them.
"""

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution
from importlib.metadata import entry_points as all_entry_points
from typing import Any, Generic, TypeVar

from packaging.utils import canonicalize_name
from pydantic import ValidationError

from medfed.common.errors import MedfedError, StudyError
from medfed.common.plugins.kinds import Plugin
from medfed.common.study import Section, StudyConfig
from medfed.common.study.aggregation import RULES
from medfed.common.study.model import NETWORKS
from medfed.common.study.plugins import PluginKind, plugin_names, plugin_options
from medfed.common.study.simulation import DATASETS

log = logging.getLogger(__name__)

GROUPS: dict[PluginKind, str] = {
    "model": "medfed.models",
    "task": "medfed.tasks",
    "aggregation": "medfed.aggregation",
    "dataset": "medfed.datasets",
}
KEYS: dict[PluginKind, str] = {
    "model": "model.name",
    "task": "task.plugin",
    "aggregation": "aggregation.rule",
    "dataset": "simulation.dataset",
}

_OWN: dict[PluginKind, tuple[str, ...]] = {
    "model": NETWORKS,
    "task": (),
    "aggregation": RULES,
    "dataset": DATASETS,
}

Kind = TypeVar("Kind", bound=Plugin)


@dataclass(frozen=True)
class Loaded(Generic[Kind]):
    """A plug-in of a study, ready to make what it is for.

    Attributes:
        plugin: What the entry point named.
        options: The study's settings of it, checked and complete.
        origin: Its name, package and version, for errors.
    """

    plugin: Kind
    options: Section
    origin: str


def package_of(requirement: str) -> str:
    """Return the package's name in "package==version", as pip compares names."""
    return canonicalize_name(requirement.partition("==")[0])


def offers(kind: PluginKind) -> dict[str, list[str]]:
    """Return the plug-ins of a kind that are installed, by name: "package==version" of each."""
    found: dict[str, list[str]] = {}
    for entry in all_entry_points(group=GROUPS[kind]):
        if entry.dist is not None:
            found.setdefault(entry.name, []).append(_requirement(entry.dist))
    return {name: sorted(set(owners)) for name, owners in sorted(found.items())}


def pin(kind: PluginKind, name: str, requirement: str = "") -> str:
    """Return "package==version" of the installed plug-in `name`.

    Args:
        kind: What it is.
        name: Its name in the study.
        requirement: Of the study, if it states one: what is installed must be that.

    Raises:
        StudyError: It is not installed, not in that version, or in several packages.
    """
    if requirement:
        find(kind, name, requirement)
        return requirement
    found = offers(kind)
    owners = found.get(name, [])
    if len(owners) > 1:
        raise StudyError(
            f'{KEYS[kind]} = "{name}" is in several installed packages: {", ".join(owners)}. Name '
            f'one, e.g. plugins.{kind} = "{owners[0]}".'
        )
    if not owners:
        nearest = difflib.get_close_matches(name, {*_OWN[kind], *found}, n=2, cutoff=0.6)
        hint = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
        named = ", ".join(f"{one} ({' or '.join(by)})" for one, by in found.items()) or "none"
        raise StudyError(
            f'{KEYS[kind]} = "{name}" is not one of medfed\'s own, which `medfed study keys` '
            f"lists, and no installed package offers it. {hint}Plug-ins installed here: {named}. "
            "Correct the name, or install its package: pip install PACKAGE."
        )
    return owners[0]


def check_offered(study: StudyConfig) -> None:
    """Check the names of plug-ins that a study file states no package for. Loads none.

    Raises:
        StudyError: See `pin`. What names a package may be meant for another machine.
    """
    for kind, name in plugin_names(study).items():
        if not getattr(study.plugins, kind):
            pin(kind, name)


def warn_of_unused(study: StudyConfig) -> None:
    """Say which plug-ins have a name of medfed's own that `study` uses. Loads none."""
    own: dict[PluginKind, str] = {"model": study.model.name, "aggregation": study.aggregation.rule}
    if study.simulation is not None:
        own["dataset"] = study.simulation.dataset
    plugins = plugin_names(study)
    for kind, name in own.items():
        if kind in plugins:
            continue
        stated = getattr(study.plugins, kind)
        owners = [stated] if stated else offers(kind).get(name, [])
        if owners:
            _warn_of_unused(KEYS[kind], name, " or ".join(owners))


@cache
def _warn_of_unused(key: str, name: str, owners: str) -> None:
    """Write once a process which packages are not asked: a sweep has many runs."""
    log.warning(
        '%s = "%s" is medfed\'s own: nothing of %s is used for it. Have the package give its '
        "plug-in another name, and the study that name.",
        key,
        name,
        owners,
    )


def find(kind: PluginKind, name: str, requirement: str) -> EntryPoint:
    """Return the entry point that a study's plug-in stands for, without loading it.

    Raises:
        StudyError: The package is not installed, has another version, or no such plug-in.
    """
    package, _, version = requirement.partition("==")
    try:
        found = distribution(package)
    except PackageNotFoundError:
        raise StudyError(
            f'{KEYS[kind]} = "{name}" needs {requirement}, which is not installed here. Have it '
            f"looked at, then: pip install {requirement}"
        ) from None
    if found.version != version:
        raise StudyError(
            f'{KEYS[kind]} = "{name}" needs {requirement}, installed here is {found.version}: '
            f"another version is another program. pip install {requirement}, or have the study "
            f"name {_requirement(found)}."
        )
    for entry in found.entry_points.select(group=GROUPS[kind], name=name):
        return entry
    theirs = [entry.name for entry in found.entry_points.select(group=GROUPS[kind])]
    raise StudyError(
        f'{KEYS[kind]} = "{name}" is not in {requirement}, which offers '
        f"{', '.join(theirs) or 'nothing'} in the group {GROUPS[kind]}. Correct the name."
    )


def load_plugin(study: StudyConfig, kind: PluginKind, expected: type[Kind]) -> Loaded[Kind]:
    """Import the plug-in that `study` names, and check the study's settings of it.

    Raises:
        StudyError: It is not here in the version that the study names, it cannot be imported, or
            it does not take these settings.
    """
    name = plugin_names(study)[kind]
    requirement = pin(kind, name, getattr(study.plugins, kind))
    entry = find(kind, name, requirement)
    origin = f"plug-in {name} of {requirement}"
    _announce(origin, entry.value)
    with blaming(origin):
        plugin = entry.load()
    if not isinstance(plugin, expected):
        raise StudyError(
            f"The {origin}: expected {entry.value} to be a {expected.__name__}, got "
            f"{type(plugin).__name__}. That is for the package's authors to mend."
        )
    return Loaded(plugin, _checked(plugin, plugin_options(study, kind), kind, origin), origin)


@cache
def _announce(origin: str, value: str) -> None:
    """Write once a process whose code runs here."""
    log.info("Loading %s: %s", origin, value)


@contextmanager
def blaming(origin: str) -> Iterator[None]:
    """Turn whatever goes wrong in a plug-in's code into an error that names its package."""
    try:
        yield
    except MedfedError:
        raise
    # A module may also end the process while it is imported.
    except (Exception, SystemExit) as error:
        raise StudyError(
            f"The {origin} failed: {type(error).__name__}: {error}. That is for the package's "
            "authors to mend."
        ) from error


def _checked(plugin: Plugin, given: dict[str, Any], kind: PluginKind, origin: str) -> Section:
    from medfed.common.study_file import describe_errors

    try:
        with blaming(origin):
            return plugin.options.model_validate(given)
    except StudyError as error:
        if not isinstance(error.__cause__, ValidationError):
            raise
        table = {"dataset": "simulation"}.get(kind, kind)
        said = describe_errors(error.__cause__, plugin.options, f"[{table}.options] of {origin}")
        raise StudyError(said) from None


def _requirement(found: Distribution) -> str:
    return f"{canonicalize_name(found.metadata['Name'])}=={found.version}"
