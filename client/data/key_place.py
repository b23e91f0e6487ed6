"""Where a hospital's pseudonym key lies: one key, whichever command is typed first.

It is the file that dataset.toml names, else `keys/pseudonym.key` beside dataset.toml. It is never
among the stores, which are copied to training machines: who has both can tell whose an image is.
"""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from medfed.client.data.pseudonym_key import load_or_create_key
from medfed.common.errors import DataError

KEY_FILE = Path("keys/pseudonym.key")
# Where `medfed data prepare --out stores` put it before there was one place.
_BEFORE = Path("stores/pseudonym.key")


@dataclass(frozen=True)
class KeyPlace:
    """The key to use.

    Attributes:
        path: Its file; not there yet if no command has made it.
        note: What to tell the user: it lies in an old place. Empty if all is well.
    """

    path: Path
    note: str = ""


def find_key(
    home: Path, *, named: str = "", site: Path | None = None, stores: Path | None = None
) -> KeyPlace:
    """Return the one pseudonym key of a data set.

    Args:
        home: Folder of dataset.toml; without one, the folder that `keys/` belongs in.
        named: `pseudonym_key` of dataset.toml, relative to `home`; empty if it names none.
        site: Folder of the site that the store is for.
        stores: Folder of the stores, where the key was kept before.

    Raises:
        DataError: Two keys that differ, or one that cannot be read.
    """
    chosen = (home / (named or KEY_FILE)).absolute()
    sites = [(site / KEY_FILE).absolute()] if site is not None else []
    before = [home / _BEFORE] if stores is None else [home / _BEFORE, stores / _BEFORE.name]
    others = sites if named else [*sites, *(path.absolute() for path in before)]
    for path in (chosen, *others):
        if path.is_symlink() and not path.exists():
            raise DataError(
                f"{path} leads to a pseudonym key that is gone. Put the key back: another one "
                "gives every patient another pseudonym."
            )
    there = {path.resolve(): path for path in reversed((chosen, *others)) if path.exists()}
    keys = {load_or_create_key(path): path for path in there.values()}
    if len(keys) > 1:
        raise DataError(_differ(home, list(keys.values())))
    if not there or chosen.exists():
        return KeyPlace(chosen)
    [used] = keys.values()
    if used in sites:
        name = os.path.relpath(used, home.absolute())
        return KeyPlace(
            used,
            f"The pseudonym key is the site's, {used}. Write pseudonym_key = {name!r} into "
            "dataset.toml, so that all commands use it.",
        )
    return KeyPlace(
        used,
        f"The pseudonym key {used} lies among the stores. Move it out, it stays the same key: "
        f"mkdir -p -m 700 {shlex.quote(str(chosen.parent))} && "
        f"mv {shlex.quote(str(used))} {shlex.quote(str(chosen))}",
    )


def _differ(home: Path, paths: list[Path]) -> str:
    names = [os.path.relpath(path, home.absolute()) for path in sorted(paths)]
    return (
        f"Expected one pseudonym key, got {len(names)} that differ: {', '.join(map(str, paths))}. "
        "With two, a patient has two pseudonyms. Keep the one that your stores or copies were made "
        f"with and name it in dataset.toml, e.g. pseudonym_key = {names[0]!r}; move the other "
        "away, and make anew what was made with it."
    )


def share_with_site(key: Path, site: Path) -> None:
    """Let a site's folder lead to the key, so that its next data set is held to the same one.

    Args:
        key: The data set's key.
        site: Folder of the site.
    """
    link = (site / KEY_FILE).absolute()
    if os.path.lexists(link):
        return
    link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    link.symlink_to(os.path.relpath(key.resolve(), link.parent.resolve()))
