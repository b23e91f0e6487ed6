"""Classes of a table whose encoding is a guess: Shift-JIS, too, decodes as Windows-1252."""

from collections.abc import Iterable, Mapping

_GUESS = "cp1252"
# What a hospital's tables are in besides; that one of them decodes proves nothing.
_OTHERS = ("shift_jis", "gb18030", "cp1250", "cp1251", "cp1254")
_MAX_CLASSES = 1000
_MAX_NAMED = 5


def note_guessed(known: list[str], classes: Iterable[str], rename: Mapping[str, str]) -> None:
    """Add to `known` the classes that another encoding would change and dataset.toml never names.

    Args:
        known: What was noted of the table before.
        classes: Of a row, renamed.
        rename: `[labels.rename]`: whoever wrote a name there has seen it.
    """
    for name in classes:
        is_new = not name.isascii() and name not in known and name not in rename.values()
        if is_new and len(known) < _MAX_CLASSES:
            known.append(name)


def doubt_of(table: str, classes: Iterable[str]) -> str:
    """Return what is to be mended in a table's section, with how its classes read elsewise."""
    names = sorted(classes)
    shown = ", ".join(repr(name) for name in names[:_MAX_NAMED])
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    read = [
        f"{encoding} would read {text!r}" for encoding in _OTHERS if (text := _as(encoding, names))
    ]
    others = f" ({'; '.join(read)})" if read else ""
    return (
        f"{table} is no UTF-8. Read as Windows-1252, which is a guess, it has the classes {shown}"
        f"{more}, which nobody named before. Look at them, and write the table's encoding into its "
        f'section of dataset.toml: encoding = "{_GUESS}" if they are right, else e.g. '
        f'encoding = "shift_jis"{others}. Or save the table as UTF-8.'
    )


def _as(encoding: str, names: Iterable[str]) -> str:
    """The first class in another encoding; empty if one of them is none there."""
    try:
        read = [name.encode(_GUESS).decode(encoding) for name in names]
    except UnicodeError:
        return ""
    return read[0] if all(text.isprintable() for text in read) else ""
