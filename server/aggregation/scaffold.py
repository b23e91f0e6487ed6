"""SCAFFOLD at the server, option II: it keeps every site's variate, a site keeps none.

    y_i = y_i - eta (g(y_i) - c_i + c)           at site i, K times      (equation 3)
    c_i = c_i - c + (x - y_i) / (K eta)          option II               (equation 4)
    x   = x + mean of (y_i - x);  c = c + 1/N sum of what the c_i changed by       (equation 5)

In the paper sites keep c_i. Option II makes it a function of the update (x - y_i), which the server
has, of K and eta, which it knows, and of c - c_i, which it sent. So it follows each c_i itself: a
site that restarts has lost nothing, nothing leaves it besides its update, and where that has the
site's noise all this is post-processing. The price is c - c_i, as long as the model, with every
request to train, and N models in the server's memory.

c is the sum of all c_i over N; a site that has not trained yet has c_i = 0, as in the paper.
Variates are float32, as weights are; their sum is float64, in order of names.

Reference: Karimireddy et al. 2019, https://arxiv.org/abs/1910.06378
"""

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict

_SUM = "sum"
_SITE = "site "


class Variates:
    """The variates of one run; `note` what a round changes, and `commit` once it counts.

    Args:
        parameters: Names of what has gradients, in order.
        states: What `states` returned before the run was interrupted; empty for a new one.
    """

    def __init__(self, parameters: Collection[str], states: Mapping[str, StateDict]) -> None:
        self._names = tuple(parameters)
        self._sum: dict[str, npt.NDArray[np.float64]] = {
            name: np.asarray(array, dtype=np.float64)
            for name, array in states.get(_SUM, {}).items()
        }
        self._of_site = {
            name.removeprefix(_SITE): variate
            for name, variate in states.items()
            if name.startswith(_SITE)
        }
        self._noted: dict[str, StateDict] = {}
        self._num_sites = 1

    def begin(self, sites: Collection[str]) -> None:
        """Begin a round, or begin it anew: what was noted of it is forgotten.

        Args:
            sites: Names of all that train; N is their number, with those that once did.
        """
        self._noted = {}
        self._num_sites = len({*sites, *self._of_site})

    def correction(self, site: str, weights: StateDict) -> StateDict:
        """Return c - c_i for a site, in the types and shapes of `weights`."""
        own, found = self._of_site.get(site), {}
        for name in self._names:
            shape, dtype = weights[name].shape, weights[name].dtype
            mean = self._sum.get(name, np.zeros(shape)) / self._num_sites
            less = 0.0 if own is None else own[name]
            found[name] = np.asarray(np.subtract(mean, less), dtype=dtype)
        return found

    def next_of(
        self, site: str, update: StateDict, *, num_steps: int, learning_rate: float
    ) -> StateDict:
        """Return a site's new variate, which follows from its update of this round.

        Args:
            site: Its name.
            update: y_i - x, screened.
            num_steps: K.
            learning_rate: eta.

        Raises:
            UpdateError: It is beyond what its type holds.
        """
        new = {}
        for name, sent in self.correction(site, update).items():
            slope = update[name].astype(np.float64) / (num_steps * learning_rate)
            with np.errstate(over="ignore"):
                new[name] = np.asarray(np.subtract(-slope, sent), dtype=sent.dtype)
            if not np.isfinite(new[name]).all():
                raise UpdateError(f"{name}: the mean gradient that follows from it is infinite.")
        return new

    def note(self, site: str, new: StateDict) -> None:
        """Note a site's new variate: its update is in this round's mean."""
        self._noted[site] = new

    def commit(self) -> None:
        """Take over what was noted: the round counts."""
        for site, new in sorted(self._noted.items()):
            own = self._of_site.get(site)
            for name, array in new.items():
                change = np.subtract(
                    array, np.zeros(()) if own is None else own[name], dtype=np.float64
                )
                self._sum[name] = np.asarray(self._sum.get(name, 0.0) + change)
            self._of_site[site] = new
        self._noted = {}

    def states(self) -> dict[str, StateDict]:
        """Return all that the next round goes on from, for the checkpoint."""
        if not self._of_site:
            return {}
        sites = {_SITE + name: variate for name, variate in sorted(self._of_site.items())}
        return {_SUM: {name: self._sum[name] for name in self._names}, **sites}
