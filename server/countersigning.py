"""The server signs the ledger heads that sites send: heads.jsonl, one countersignature a line.

A site whose ledger loses entries later cannot deny the heads that the server holds, and the server
cannot deny those that the site holds: each goes back to its site with the next message.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from medfed.common.errors import UpdateError
from medfed.common.files import sync_folder, to_disk, write_atomically
from medfed.common.ledger import GENESIS, Countersignature, ServerKey

HEADS_FILE = "heads.jsonl"
SERVER_KEY = "server.key"


def screen_head(head: str) -> str:
    """Return a site's ledger head: 64 hexadecimal digits, or nothing.

    Raises:
        UpdateError: It is something else. It quotes nothing of what came.
    """
    if head and not (len(head) == 64 and set(head) <= set("0123456789abcdef")):
        raise UpdateError(
            f"Expected a ledger head of 64 hexadecimal digits, got {len(head)} characters that "
            "are none."
        )
    return head


class Countersigner:
    """Signs heads, keeps them, and knows what each site is to be sent.

    Args:
        path: The run's heads.jsonl. It outlives the process: a resumed run goes on with it.
        key: The server's key file; made if there is none.
        run: The run's identifier.
    """

    def __init__(self, path: Path, key: Path, run: str) -> None:
        key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = ServerKey.load_or_make(key)
        self._path = path
        self._run = run
        self._kept = _read(path)

    @property
    def latest(self) -> dict[str, str]:
        """The last countersignature for each site, as JSON: what its next message carries."""
        return {kept.site: kept.to_json() for kept in self._kept}

    def sign_round(
        self,
        round_number: int,
        heads: Mapping[str, str],
        asked_in: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Countersign the heads that sites sent in a round, by site; through to the disk.

        A head that was signed for this round already (the round is repeated after a crash) is not
        signed again.

        Args:
            round_number: 1-based; 0 for words of reports and statistics.
            heads: Screened heads by site; a site without one, or with that of an empty ledger,
                gets none.
            asked_in: By site, the round that it was asked for, if that may be an earlier one: the
                signature names that, as the site's ledger does.
        """
        done = {(kept.site, kept.round_number, kept.head) for kept in self._kept}
        new = [
            self._key.sign(run=self._run, site=site, round_number=number, head=head)
            for site, head in sorted(heads.items())
            for number in [asked_in.get(site, round_number)]
            if head not in ("", GENESIS) and (site, number, head) not in done
        ]
        if not new:
            return
        is_first = not self._path.exists()
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(signed.to_json() + "\n" for signed in new))
            file.flush()
            to_disk(file.fileno())
        if is_first:
            sync_folder(self._path.parent)
        self._kept += new


def _read(path: Path) -> list[Countersignature]:
    """Return what was signed; a last line torn by a power cut is cut off: it was never sent."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_atomically(path, whole)
    return [Countersignature.from_json(line) for line in whole.decode().splitlines()]
