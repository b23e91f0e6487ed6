"""A partition in one line of words, for reports and screens."""

from collections.abc import Mapping
from typing import Any

# The keys that each method reads; others stand at their defaults and mean nothing.
_KEYS = {
    "iid": ("num_sites",),
    "dirichlet": ("num_sites", "alpha"),
    "quantity": ("num_sites",),
    "pathological": ("num_sites", "classes_per_site"),
    "natural": ("column", "min_patients"),
    "scanner": ("column", "min_patients"),
    "temporal": ("column", "num_sites"),
}
_SIZE_KEYS = {"lognormal": ("sigma",), "power": ("sizes", "exponent")}
_MODIFIERS = {"missing": "missing classes", "shift": "scanner shift", "noise": "label noise"}


def partition_in_words(facts: Mapping[str, Any]) -> str:
    """Return e.g. `natural (column = scanner, min_patients = 8), scanner shift (strength = 1)`.

    Args:
        facts: `[simulation.partition]` as a table; keys that a run of an earlier version lacks are
            left out.
    """
    method = str(facts.get("method", ""))
    law = facts.get("sizes", "auto")
    if law == "auto":
        law = "lognormal" if method == "quantity" else "equal"
    keys = (*_KEYS.get(method, ()), *_SIZE_KEYS.get(law, ()))
    if law == "lognormal" and method != "quantity":
        keys = (*keys[:-1], "sizes", keys[-1])
    parts = [_with_keys(method, facts, keys)]
    for key, name in _MODIFIERS.items():
        table = facts.get(key)
        if table:
            parts.append(_with_keys(name, table, tuple(table)))
    return ", ".join(parts)


def _with_keys(name: str, facts: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    known = [f"{key} = {_plain(facts[key])}" for key in keys if facts.get(key)]
    return f"{name} ({', '.join(known)})" if known else name


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return " and ".join(map(str, value))
    return str(value)
