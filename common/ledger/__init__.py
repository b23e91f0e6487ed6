"""The privacy ledger: append-only facts about what was released, kept by whoever releases.

What follows is enough to check a ledger with another program.

**State folder.** `ledger.jsonl` (the entries), `ledger.key` (the site's Ed25519 private key, PKCS#8
PEM, only its owner may read it), `ledger.pub` (the public key, SubjectPublicKeyInfo PEM),
`ledger.lock` (held while spending), `ledger.seal` (see below), `ledger.torn` (what power cuts left
of half-written lines, if any), `countersignatures.jsonl` and `coordinator.pub` (see below).

**Canonical JSON.** Everything that is hashed or signed is JSON as Python's
`json.dumps(table, sort_keys=True)` writes it: keys sorted at every level, `", "` and `": "` between
items, ASCII only (other characters as `\\uXXXX`), numbers with a decimal point or exponent as the
shortest text that reads back to the same float64, whole numbers without. No other spelling of the
same values is accepted.

**An entry** is one line of `ledger.jsonl`: the canonical JSON of

    {"event": {...}, "hash": "...", "index": 0, "previous": "...", "signature": "...",
     "time": "..."}

followed by one line feed, where

- `index` counts from 0;
- `previous` is the `hash` of the entry before it; 64 zeros in entry 0;
- `time` is when the entry was written, UTC, `2026-11-23T22:00:00.000+00:00`: always milliseconds
  and that offset. It never decreases: when the site's clock was set back, an entry repeats the
  time of the one before it;
- `event` is a `Spend`, all its fields by name. `kind`, `extra_delta` and `mechanism` may be missing
  in old entries and then mean training, 0.0 and gaussian; no other field may;
- `hash` is the SHA-256, 64 lower-case hexadecimal digits, of the canonical JSON of
  {"event", "index", "previous", "time"} without a line feed;
- `signature` is the Ed25519 signature, 128 lower-case hexadecimal digits, by the site's key of the
  32 bytes that `hash` spells.

What `event` may hold: `spends.Spend`, with the meaning and the limits of each field. `unit` none is
training without privacy: epsilon is infinite from there on. Every other entry is `steps`
releases with Gaussian noise of `noise_multiplier`, each over a Poisson sample of the units at
`sample_rate`; the sum of all `extra_delta` comes off delta.

An entry is written through to the disk *before* the release, so that a crash can only over-count.
A torn last line (power cut while writing) is set aside, because its spend never began; a last
line that lacks its line feed only is kept, because it may have. Any other damage stops training.

**A countersignature** is the coordinator's: at the end of a round it signs the hash of the last
entry that a site had, so that neither can later deny it. One line of `countersignatures.jsonl` (the
site's copies) or of `heads.jsonl` (the coordinator's, all sites) is the canonical JSON of

    {"head": "...", "public_key": "...", "round_number": 1, "run": "...", "signature": "...",
     "site": "...", "time": "..."}

and a line feed. `head` is an entry's `hash`; `public_key` the coordinator's raw Ed25519 public key,
64 hexadecimal digits; `time` the coordinator's clock, written as an entry's. `signature` is over
the ASCII bytes `medfed countersignature 1`, one line feed, and the canonical JSON of the other six
fields without a line feed. Both files hold each run's in the order of signing. The coordinator's
key as the site first saw it is in `coordinator.pub`: its 64 hexadecimal digits and a line feed.
The head of a round may be an entry of a later round, or of another run: a round that is repeated
after a crash with the same seeded noise is not charged again, and runs may overlap. But an entry of
that run and round stands at the head or before it.

**The seal** saves time and is not needed to check a ledger. It says, signed by the site's key, that
the first so many bytes of `ledger.jsonl`, of this SHA-256, were verified line by line, and what
they sum up to. Opening a ledger for spending then hashes those bytes and verifies only the lines
after them. A missing or unreadable seal, or one that does not match, means that every line is
verified. It is trusted no more than an entry: whoever could forge a seal could sign entries. A
genuine seal that covers more than the ledger holds shows that entries were removed.

Cutting whole entries off the end of both is not found by ledger and seal alone: every beginning of
a valid chain is a valid chain. The countersignatures find it.
"""

from medfed.common.ledger.chain import GENESIS, Entry, verify
from medfed.common.ledger.countersigning import Countersignature, ServerKey
from medfed.common.ledger.heads import check_heads
from medfed.common.ledger.ledger import Ledger, LockedLedger
from medfed.common.ledger.reading import LedgerCopy, read_ledger
from medfed.common.ledger.spends import Spend
from medfed.common.ledger.summary import Summary

__all__ = [
    "GENESIS",
    "Countersignature",
    "Entry",
    "Ledger",
    "LedgerCopy",
    "LockedLedger",
    "ServerKey",
    "Spend",
    "Summary",
    "check_heads",
    "read_ledger",
    "verify",
]
