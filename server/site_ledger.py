"""The server's own privacy ledger: what the sites of a federation have spent, unit SITE.

Written ahead of every release of noised global weights, and never refunded. In a deployment the
folder is the coordinator's, so that all runs on the same sites compose; in a simulation each arm
has its own.
"""

import hashlib
from pathlib import Path
from typing import Literal

from medfed.common.accounting import epsilon
from medfed.common.errors import LedgerError
from medfed.common.ledger import Ledger, LockedLedger, Spend
from medfed.common.state_dicts import StateDict, digest
from medfed.common.study import StudyConfig


class SiteLedger:
    """The server's ledger and the study's budget.

    Args:
        folder: Where the ledger is; made if it is new.
        study: Names noise, rate, delta and budget.
        run: The run's identifier.
        noise: Where the noise comes from.
    """

    def __init__(
        self, folder: Path, study: StudyConfig, run: str, noise: Literal["secure", "seeded"]
    ) -> None:
        self._ledger = Ledger(folder)
        self._study = study
        self._run = run
        self._noise = noise

    def over_budget(self, round_number: int, weights: StateDict, bound: float) -> str:
        """Return why a round from `weights` would exceed the study's budget; empty if it fits.

        Raises:
            LedgerError: The ledger cannot be trusted.
        """
        budget = self._study.privacy.site.max_epsilon
        if budget is None:
            return ""
        with self._ledger.locked() as ledger:
            after = self._after(ledger, self._spend(round_number, weights, bound))
        if after <= budget:
            return ""
        return (
            f"privacy budget spent before round {round_number}: it would bring the sites' epsilon "
            f"to {after:.3f} at delta {self._study.privacy.target_delta:g}, "
            f"privacy.site.max_epsilon is {budget:g}"
        )

    def charge(self, round_number: int, weights: StateDict, bound: float) -> float:
        """Write the round that started from `weights` down, and return the epsilon after it.

        Raises:
            LedgerError: The ledger cannot be trusted, or another run spent what was left of the
                budget since this round began. Nothing was written, and nothing may be released.
        """
        spend = self._spend(round_number, weights, bound)
        budget = self._study.privacy.site.max_epsilon
        with self._ledger.locked() as ledger:
            after = self._after(ledger, spend)
            if budget is not None and not after <= budget:  # so that NaN is refused too
                raise LedgerError(
                    f"Round {round_number} would bring epsilon to {after:.3f}, beyond "
                    f"privacy.site.max_epsilon = {budget:g}: another run has spent since it began. "
                    "Its updates were thrown away."
                )
            if not self._charged(ledger, spend):
                ledger.append(spend)
            return after

    def _after(self, ledger: LockedLedger, spend: Spend) -> float:
        summary = ledger.summary
        if summary.units - {"site"}:
            raise LedgerError(
                "Expected spending of unit site alone in the server's ledger, found spending per "
                f"{', '.join(sorted(summary.units - {'site'}))}. The server's state folder must be "
                "its own."
            )
        if not self._charged(ledger, spend):
            summary = summary.plus(spend)
        return epsilon(summary.events, self._study.privacy.target_delta)

    def _charged(self, ledger: LockedLedger, spend: Spend) -> bool:
        """Whether this very release was charged: only seeded noise gives the same bits again."""
        return self._noise == "seeded" and ledger.has(spend)

    def _spend(self, round_number: int, weights: StateDict, bound: float) -> Spend:
        study = self._study
        distributed = study.secure_aggregation.distributed_noise == "discrete_gaussian"
        parts = (study.digest(), self._run, str(round_number), digest(weights))
        return Spend(
            release=hashlib.sha256("\x1f".join(parts).encode()).hexdigest(),
            study=study.digest(),
            run=self._run,
            round_number=round_number,
            unit="site",
            images_per_patient=0,
            noise_multiplier=study.privacy.noise_multiplier,
            sample_rate=1.0 if distributed else study.federation.fraction,
            steps=1,
            max_grad_norm=bound,
            noise=self._noise,
            mechanism="discrete_gaussian" if distributed else "gaussian",
        )
