"""Files whose names say which image they belong to: `{stem}_mask*.png` beside or far from it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfed.client.data.archive.inventory import Unusable, printable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.walk import walk_files
from medfed.client.data.labels.index import ArchiveIndex, Found
from medfed.client.data.labels.section import Key
from medfed.common.errors import DataError

_FIELDS: dict[str, Key] = {"stem": "file", "patient": "patient", "study": "study",
                           "series": "series"}  # fmt: skip


@dataclass(frozen=True)
class NamedFile:
    """A file that matches a pattern.

    Attributes:
        path: It.
        found: The images that its name means, or why there are none.
    """

    path: Path
    found: Found


def named_files(
    folder: str, pattern: str, index: ArchiveIndex, base: Path, limits: ReadLimits
) -> Iterator[NamedFile | Unusable]:
    """Yield the files that match, in order of their paths, and links that would.

    Names are matched against what lies in the folder, never turned into paths: nothing that an
    image or a header says leads out of it.

    Args:
        folder: Where they are, relative to `base`; empty: the archive's folders.
        pattern: Path below a folder of these, from any depth.
        index: The images.
        base: Folder of the data set file.
        limits: For the number of files.

    Raises:
        DataError: No such folder, or an unknown field in the pattern.
    """
    forms = _forms(pattern)
    roots = (base / folder,) if folder else index.roots
    matching: list[tuple[Path, Path, list[dict[str, str]]]] = []
    for root in roots:
        for one in walk_files(root, limits):
            path = Path(one.path) if isinstance(one, Unusable) else one
            relative = path.relative_to(root) if path.is_relative_to(root) else path
            fits = [match.groupdict() for form in forms
                    if (match := form.fullmatch(relative.as_posix()))]  # fmt: skip
            if not fits:
                continue
            if isinstance(one, Unusable):
                yield one
            else:
                matching.append((path, relative, fits))
    own = {path for path, _, _ in matching}
    for path, relative, fits in matching:
        yield NamedFile(path, _image_of(relative, path, fits, index, own))


def _forms(pattern: str) -> tuple[re.Pattern[str], ...]:
    """The pattern with fields as short as can be, and as long."""
    parts = re.split(r"(\{[^{}]*\}|\*\*/|\*)", pattern.strip("/"))
    names = [part[1:-1] for part in parts if part.startswith("{")]
    for name in names:
        if name not in _FIELDS:
            raise DataError(
                f"Expected {', '.join(f'{{{known}}}' for known in _FIELDS)} in the pattern "
                f"{pattern!r}, got {{{name}}}."
            )
    if len(set(names)) != len(names):
        raise DataError(f"Expected each field once in the pattern {pattern!r}.")
    forms = []
    for how in ("+?", "+"):
        words = []
        for part in parts:
            if part.startswith("{"):
                words.append(f"(?P<{part[1:-1]}>[^/]{how})")
            else:
                words.append({"*": "[^/]*", "**/": "(?:.*/)?"}.get(part, re.escape(part)))
        forms.append(re.compile("(?:.*/)?" + "".join(words), re.DOTALL))
    return tuple(forms)


def _image_of(
    relative: Path, path: Path, fits: Sequence[dict[str, str]], index: ArchiveIndex, own: set[Path]
) -> Found:
    reason = ""
    for fields in fits:
        found: Found | None = None
        for name, text in fields.items():
            if name == "stem":
                one = index.find_beside(text, relative, path, own)
            else:
                one = index.find(_FIELDS[name], text)
            if not one.places:
                reason = reason or one.reason
            if found is not None:
                # A file of several fields is about what all of them mean.
                numbers = {number for number, _ in found.places}
                one = Found(tuple(at for at in one.places if at[0] in numbers), one.reason)
            found = one
        if found is not None and found.places:
            return found
    return Found(reason=f"{printable(path.name)}: {reason or 'it means no image'}")
