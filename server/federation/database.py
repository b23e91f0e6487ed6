"""How much of its database Flower's SuperLink holds in memory.

Flower asks SQLite for a cache of 64 MB and a map of 256 MB of the file, for each connection, and
opens up to thirty. What is in the file grows with the sites, and so would what is held of it. With
SQLite's own values a page that is needed twice comes from the system's cache of files.

One name in one of Flower's modules is replaced, so this stands alone.
"""

from flwr.supercore import sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS

# SQLite's own, https://www.sqlite.org/pragma.html: kibibytes if below zero; bytes.
_FRUGAL = {"cache_size": "-2000", "mmap_size": "0"}


def hold_little() -> None:
    """Let every connection that Flower opens from now on in this process hold little."""
    pragmas = tuple((name, _FRUGAL.get(name, value)) for name, value in SQLITE_PRAGMAS)
    sql_mixin.SQLITE_PRAGMAS = pragmas  # type: ignore[assignment,attr-defined]
