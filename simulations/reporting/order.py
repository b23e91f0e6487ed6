"""Who trained after whom: for algorithms in which that matters."""

from medfed.server.records import RoundRecord
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import ABSENT, Table, counted, figure

# As many rows as a long run's page can bear: its beginning and its end.
_MAX_ROWS = 40


def order_table(run: RunData) -> Table:
    """Return the order of the sites by round; nothing where it does not matter."""
    records = run.federated.rounds if run.federated else ()
    if not run.study.federation.keeps_order or not records:
        return Table((), ())
    cyclic = run.study.federation.algorithm == "cyclic"
    timed = any(record.clock_s is not None for record in records)
    rows = [_turns(r) if cyclic else _buffer(r, timed=timed) for r in records]
    columns: tuple[str, ...] = ("Round", "Sites, in turn")
    if not cyclic:
        columns = ("Round", *(["Virtual time, s"] if timed else []), "Updates, as they came",
                   "Still training")  # fmt: skip
    more = len(rows) - _MAX_ROWS
    if more > 0:
        half = _MAX_ROWS // 2
        left_out = ("…", f"{counted(more, 'round')} left out; see rounds.jsonl")
        rows[half:-half] = [left_out + ("",) * (len(columns) - len(left_out))]
    first = 2 if timed and not cyclic else 1
    return Table(columns, tuple(rows), text=frozenset(range(first, len(columns))))


def order_line(run: RunData) -> str:
    """Say what the order means; empty where it does not matter."""
    federation = run.study.federation
    if not federation.keeps_order:
        return ""
    if federation.algorithm == "cyclic":
        return (
            "Cyclic weight transfer: within a round each site trains from what the one before it "
            "made. The order is drawn anew for each round; a site that gives no update is skipped."
        )
    line = (
        f"FedBuff: a round takes the first {counted(federation.buffer_size or 0, 'update')} to "
        "come. A site that is not done by then goes on training, and its update is for a later "
        "round, where it counts for 1/√(1 + rounds late)."
    )
    if run.deployed:
        line += (
            " Sites that are training are not asked for figures, but for those of the last round."
        )
    return line


def _turns(record: RoundRecord) -> tuple[str, ...]:
    return str(record.round_number), " → ".join(record.order) or ABSENT


def _buffer(record: RoundRecord, *, timed: bool) -> tuple[str, ...]:
    came = [
        f"{name}{_late(record.round_number - record.sites[name].asked_in)}" for name in record.order
    ]
    training = [
        f"{name}{_late(record.round_number - asked)}"
        for name, asked in sorted(record.under_way.items())
    ]
    clock = [figure(record.clock_s, 2)] if timed else []
    return str(record.round_number), *clock, ", ".join(came), ", ".join(training) or ABSENT


def _late(rounds: int) -> str:
    return f" ({counted(rounds, 'round')} late)" if rounds else ""
