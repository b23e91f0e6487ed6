"""Names a new store in a `site.toml`, leaving every comment where it is."""

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medfed.client.data.store import Store, open_store
from medfed.client.site import SiteConfig, load_site
from medfed.common.errors import DataError, SiteConfigError
from medfed.common.files import replace_keeping_mode

_SECTION = re.compile(r"^[ \t]*\[[ \t]*data[ \t]*\][ \t]*(#.*)?$", re.MULTILINE)
_NEXT_SECTION = re.compile(r"^[ \t]*\[", re.MULTILINE)
_STORES = re.compile(r"^[ \t]*stores[ \t]*=[ \t]*", re.MULTILINE)
# A list of strings: the items, and comments and commas between them.
_LIST = re.compile(r"""\[(?:[^\]"'#]|"[^"\n]*"|'[^'\n]*'|#[^\n]*)*\]""")
_ITEM_OR_COMMENT = re.compile(r"""("[^"\n]*"|'[^'\n]*')([ \t]*,)?|#[^\n]*""")


def name_store(site_file: Path, store: Store) -> tuple[str, ...]:
    """Make `store` one of a site's; return the stores that it takes the place of.

    It takes the place of stores of the same data set, task and views, which it would repeat.

    Args:
        site_file: The site's `site.toml`.
        store: Prepared; a path relative to the site's folder is written where it lies in there.

    Raises:
        SiteConfigError: The file is written in a way that this cannot change. It is unchanged.
    """
    site, path = load_site(site_file), site_file.resolve()
    own = _as_written(site, store.folder)
    if store.folder.resolve() in [site.path(name).resolve() for name in site.data.stores]:
        return ()
    replaced = tuple(name for name in site.data.stores if _is_alike(site, name, store))
    gone = [name in replaced for name in site.data.stores]
    names = _with_new(site.data.stores, gone, own)
    text = path.read_bytes().decode()
    try:
        changed = _with_stores(text, gone, own)
        if not _changes_only(text, changed, names):
            raise ValueError("its [data] is written in an unusual way")
        replace_keeping_mode(path, changed.encode())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise SiteConfigError(
            f"Could not name the new store in {site_file} ({why}). Write it there yourself, into "
            f"the section [data]: stores = {json.dumps(names)}."
        ) from None
    return replaced


def _as_written(site: SiteConfig, folder: Path) -> str:
    whole = folder.resolve()
    home = site.folder.resolve()
    return str(whole.relative_to(home)) if whole.is_relative_to(home) else str(whole)


def _is_alike(site: SiteConfig, name: str, store: Store) -> bool:
    try:
        other = open_store(site.path(name))
    except DataError:
        return False
    return (other.dataset, other.task, other.views) == (store.dataset, store.task, store.views)


def _with_new(names: Sequence[str], gone: Sequence[bool], own: str) -> list[str]:
    """The stores with `own` in the place of the first that goes, else at the end."""
    place = gone.index(True) if any(gone) else len(names)
    kept = [name for name, goes in zip(names, gone, strict=True) if not goes]
    return [*kept[:place], own, *kept[place:]]


def _with_stores(text: str, gone: Sequence[bool], own: str) -> str:
    """Change the list in the text of a site.toml; unchanged where it is not found."""
    section = _SECTION.search(text)
    if section is None:
        return text
    following = _NEXT_SECTION.search(text, section.end())
    end = following.start() if following else len(text)
    key = _STORES.search(text, section.end(), end)
    whole = _LIST.match(text, key.end()) if key else None
    if whole is None:
        return text
    found = _ITEM_OR_COMMENT.finditer(text, whole.start(), whole.end())
    items = [item for item in found if item[1]]
    if len(items) != len(gone):
        return text
    new = json.dumps(own, ensure_ascii=False)
    if not any(gone):
        return f"{text[: items[-1].end(1)]}, {new}{text[items[-1].end(1) :]}"
    # From the end, so that what was found stays where it was.
    first = gone.index(True)
    for number in reversed(range(len(items))):
        if gone[number]:
            at, to = items[number].span(1 if number == first else 0)
            text = f"{text[:at]}{new if number == first else ''}{text[to:]}"
    return text


def _changes_only(before: str, after: str, names: Sequence[str]) -> bool:
    """Whether `after` says what `before` did, but for the stores."""
    old: dict[str, Any] = tomllib.loads(before)
    try:
        new = tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        return False
    return new == {**old, "data": {**old["data"], "stores": list(names)}}
