"""What the coordinator's signatures show about a site's ledger: for auditors."""

from collections.abc import Sequence
from datetime import timedelta

from medfed.common.ledger.chain import Entry, read_time
from medfed.common.ledger.countersigning import Countersignature, name_of

# Of the hospital's clock from the coordinator's.
CLOCK_TOLERANCE = timedelta(minutes=10)


def check_heads(
    entries: Sequence[Entry],
    countersignatures: Sequence[Countersignature],
    tolerance: timedelta = CLOCK_TOLERANCE,
) -> list[str]:
    """Return what the coordinator's signatures show to be wrong with a site's ledger.

    Args:
        entries: The ledger's, verified.
        countersignatures: For this site alone, genuine (`check`); each run's in order of signing.
        tolerance: How far the site's clock may be off the coordinator's.
    """
    places = {entry.hash: entry.index for entry in entries}
    first: dict[tuple[str, int], int] = {}
    for entry in entries:
        first.setdefault((entry.spend.run, entry.spend.round_number), entry.index)
    problems = []
    last: dict[str, int] = {}  # runs that overlap may be heard of in another order
    for signed in countersignatures:
        place = places.get(signed.head)
        if place is None:
            problems.append(f"{name_of(signed)}: the ledger lacks the entry {signed.head[:12]}...")
            continue
        before = last.get(signed.run, -1)
        if place < before:
            problems.append(f"{name_of(signed)}: entry {place}, after entry {before} was signed")
        last[signed.run] = max(before, place)
        if first.get((signed.run, signed.round_number), len(entries)) > place:
            problems.append(
                f"{name_of(signed)}: no entry of that round up to entry {place}, which it signs"
            )
        late = read_time(entries[place].time) - read_time(signed.time)
        if late > tolerance:
            problems.append(f"{name_of(signed)}: entry {place} is dated {late} after its signature")
        problems += _dated_back(entries, place, signed, tolerance)
    return problems


def _dated_back(
    entries: Sequence[Entry], place: int, signed: Countersignature, tolerance: timedelta
) -> list[str]:
    """The next round of a run starts after the coordinator has signed the one before."""
    for index in range(place + 1, len(entries)):
        entry = entries[index]
        spend = entry.spend
        if spend.run == signed.run and spend.round_number == signed.round_number + 1:
            early = read_time(signed.time) - read_time(entry.time)
            if early > tolerance:
                return [f"entry {entry.index} is dated {early} before {name_of(signed)}"]
            return []
    return []
