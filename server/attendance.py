"""Who is there for a round: a quorum that is away is waited for, and who comes late is taken in."""

import time

from medfed.common.errors import RunError
from medfed.common.study import StudyConfig
from medfed.server.conversation import NOT_CONNECTED, PAUSED, Absence
from medfed.server.joining import Joining
from medfed.server.presence import Presence
from medfed.server.records import ArmFolder, RunPlan
from medfed.server.strategy import FedAvgStrategy

_LOOK_EVERY_S = 1.0


class Attendance:
    """Keeps `strategy.absent` as it is.

    Args:
        study: The study.
        plan: Who trains and who evaluates.
        arm: Takes the events: waiting, away, lost, rejoined.
        presence: Who is connected.
        joining: Who joined.
        strategy: Whom it asks.
    """

    def __init__(
        self,
        study: StudyConfig,
        plan: RunPlan,
        arm: ArmFolder,
        presence: Presence,
        joining: Joining,
        strategy: FedAvgStrategy,
    ) -> None:
        self._study = study
        self._plan = plan
        self._arm = arm
        self._presence = presence
        self._joining = joining
        self._strategy = strategy
        self._gone: set[str] = set()
        self._paused: set[str] = set()
        self._awaited: dict[str, Absence] = {}
        self._short_since: float | None = None

    def gather(self, round_number: int, needed: int) -> None:
        """Wait until `needed` sites can be asked to train; nobody is waited for who never comes.

        After a round that was short, one of those that it lacked must be back, too.

        Raises:
            RunError: Time is up.
        """
        began = time.monotonic() if self._short_since is None else self._short_since
        deadline = began + self._study.federation.rejoin_timeout_s
        told = ""
        while True:
            self.look()
            present = {site.name for site in self._strategy.present}
            hoped = self._awaited.keys() - present
            if len(present) >= needed and (not self._awaited or hoped != self._awaited.keys()):
                self._awaited = {}
                return
            if not hoped and not self._may_come():
                return  # it is short, and will say why
            reason = self._missing(len(present), needed)
            if time.monotonic() > deadline:
                raise RunError(
                    f"Before round {round_number} {reason} Nothing is lost: resume once the sites "
                    "are back."
                )
            if reason != told:
                told = reason
                self._arm.emit("waiting", round=round_number, reason=reason)
            time.sleep(_LOOK_EVERY_S)

    def look(self) -> None:
        """See who is connected now, and take in who joined meanwhile."""
        for site in self._joining.look(self._study.federation.join_timeout_s):
            train, evaluate = self._plan.train_sites, self._plan.evaluate_sites
            self._strategy.admit(
                site,
                trains=train is None or site.name in train,
                evaluates=evaluate is None or site.name in evaluate,
            )
        absent: dict[str, Absence] = {}
        for name, site in self._joining.sites.items():
            if not self._presence.is_online(site.node_id):
                absent[name] = NOT_CONNECTED
            elif self._awaited.get(name) == PAUSED and self._joining.is_probed(name):
                absent[name] = PAUSED
        self._strategy.absent = absent
        self._tell(
            away={name for name, why in absent.items() if why == NOT_CONNECTED},
            paused={name for name, why in absent.items() if why == PAUSED},
        )

    def _tell(self, away: set[str], paused: set[str]) -> None:
        for name in sorted(away - self._gone):
            self._arm.emit("away", site=name)
        for name in sorted((self._gone | self._paused) - away - paused):
            self._arm.emit("rejoined", site=name)
        self._gone, self._paused = away, paused

    def note_lost(self, name: str, round_number: int) -> None:
        """Note that a site was disconnected while it was waited for."""
        self._arm.emit("lost", round=round_number, site=name)
        self._gone.add(name)

    @property
    def was_short(self) -> bool:
        """Whether this round has been tried before, and too few answered."""
        return self._short_since is not None

    @property
    def may_hope(self) -> bool:
        """Whether there is time left to repeat a round that was short."""
        limit_s = self._study.federation.rejoin_timeout_s
        return self._short_since is None or time.monotonic() - self._short_since < limit_s

    def hope_for(self, missing: dict[str, Absence]) -> None:
        """Note who was missing from a round that is to be repeated once they are back."""
        self._awaited = missing
        self._joining.probe(name for name, why in missing.items() if why == PAUSED)
        if self._short_since is None:
            self._short_since = time.monotonic()

    def note_complete(self) -> None:
        """Note that a round is complete: the next one may wait as long again."""
        self._short_since = None

    def _may_come(self) -> bool:
        staying = {site.name for site in self._strategy.staying}
        return bool(staying & self._strategy.absent.keys()) or self._joining.is_open

    def _missing(self, present: int, needed: int) -> str:
        absent = {**self._awaited, **self._strategy.absent}
        who = ", ".join(f"{name} ({why.reason})" for name, why in sorted(absent.items()))
        # With a threshold of shares above the quorum, a masked round can lack more than that.
        short = " It was tried without those that are missing, and was short." * (present >= needed)
        return (
            f"{present} sites were connected and willing, the quorum is {needed}.{short} "
            f"Missing: {who or 'sites that have not joined yet'}."
        )
