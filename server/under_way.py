"""What sites are training on when not all of them do so at once: kept from round to round."""

from collections.abc import Iterable, Iterator, Mapping
from math import exp

from flwr.app import ArrayRecord, Message

from medfed.common import messages
from medfed.common.seeding import numpy_rng
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.server.checkpoint import Checkpoint
from medfed.server.exchange import Exchange
from medfed.server.records import RoundRecord, RunPlan, SiteRound

# Whose round ended like this is asked for the same update again.
_GOES_ON = ("training", "late", "lost", "away")


class UnderWay:
    """By site, the round in which it was asked for the update that it has not given yet.

    Args:
        study: With federation.algorithm = "fedbuff".
        plan: Says whether time is virtual.
        checkpoint: Where the run goes on from; None at its start.
        records: The completed rounds.

    Attributes:
        asked_in: By site, that round.
        asked_at: By site, when it was asked (ISO), as far as this process did.
        exchange: Messages that are under way from round to round; None where time is virtual.
        stream: Their replies.
        clock_s: Virtual time.
    """

    def __init__(
        self,
        study: StudyConfig,
        plan: RunPlan,
        checkpoint: Checkpoint | None,
        records: Iterable[RoundRecord],
    ) -> None:
        self._seed = study.study.seed
        self._rounds = study.training.rounds
        self._seconds = plan.virtual_seconds
        self._sigma = plan.virtual_sigma
        self.asked_in: dict[str, int] = dict(checkpoint.record.under_way) if checkpoint else {}
        self.asked_at: dict[str, str] = {}
        self._models: dict[int, ArrayRecord] = {}
        if checkpoint is not None:
            for number in self.asked_in.values():
                self._models[number] = messages.pack_arrays(checkpoint.states[_name(number)])
        self._began = {1: 0.0}
        self._began |= {r.round_number + 1: r.clock_s for r in records if r.clock_s is not None}
        self.clock_s = 0.0
        self.exchange: Exchange | None = None
        self.stream: Iterator[Message] = iter(())

    @property
    def is_virtual(self) -> bool:
        """Whether a clock that nobody waits for says who is first."""
        return self._seconds is not None

    def begin(self, names: Iterable[str], round_number: int, arrays: ArrayRecord) -> None:
        """Ask those of `names` that are not training for an update from `arrays`, in this round."""
        for name in names:
            self.asked_in.setdefault(name, round_number)
        self._models[round_number] = arrays
        self.clock_s = self._began.get(round_number, 0.0)

    def model(self, asked_in: int) -> ArrayRecord:
        """Return the weights that were the global ones when that round began."""
        return self._models[asked_in]

    def staleness(self, round_number: int) -> dict[str, int]:
        """Return by site how often the global weights have changed since it was asked."""
        return {name: round_number - asked for name, asked in self.asked_in.items()}

    def due_s(self, name: str) -> float:
        """Return the virtual time at which a site is done; the draw is of its round and name."""
        assert self._seconds is not None  # asked where time is virtual only
        asked = self.asked_in[name]
        normal = numpy_rng(self._seed, "pace", asked, name).standard_normal()
        return self._began[asked] + self._seconds.get(name, 1.0) * exp(self._sigma * normal)

    def commit(self, round_number: int, sites: Mapping[str, SiteRound]) -> None:
        """Forget what the round that just counted has settled."""
        self.asked_in = {
            name: asked
            for name, asked in self.asked_in.items()
            if name not in sites or sites[name].status in _GOES_ON
        }
        used = set(self.asked_in.values())
        self._models = {number: model for number, model in self._models.items() if number in used}
        self._began[round_number + 1] = self.clock_s

    def busy(self, round_number: int) -> frozenset[str]:
        """Return the sites that would be late with figures: none in a simulation.

        Nor after the last round, of which all are to have figures.
        """
        if self.is_virtual or round_number == self._rounds:
            return frozenset()
        return frozenset(self.asked_in)

    def states(self) -> dict[str, StateDict]:
        """Return the weights that a checkpoint needs besides the global ones, by name."""
        return {
            _name(number): messages.unpack_arrays(model) for number, model in self._models.items()
        }


def _name(asked_in: int) -> str:
    return f"start of round {asked_in}"
