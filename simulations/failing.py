"""Sites that fail as `[simulation.failures]` says: no answer, one too late, or a poisoned update.

Poisoned data and new scanners are in the sites' stores (`poisoning`, `drifting`).

They are the sites of every simulation behind a thin layer that spoils what they answer; the server
cannot tell. What fails comes from the study's seed.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from medfed.common import messages
from medfed.common.compression import compressed_names, decode, encode
from medfed.common.errors import StudyError
from medfed.common.messages import TRAINING, ModelRequest, TrainReply
from medfed.common.seeding import numpy_rng
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.study.failures import DATA_POISONS, FailuresSection
from medfed.server.exchange import NO_ANSWER, TOO_LATE
from medfed.simulations.drifting import DriftingSites


class FailingSites(ClientApp):
    """Answers as `client_app` does, as far as a site does not fail.

    Args:
        client_app: The app that sites run.
        failures: What goes wrong.
        seed: The study's.
    """

    def __init__(self, client_app: ClientApp, failures: FailuresSection, seed: int) -> None:
        super().__init__()
        self._client_app = client_app
        self._failures = failures
        self._seed = seed

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer one message."""
        if message.metadata.message_type not in TRAINING:
            return self._client_app(message, context)
        site = Path(str(context.node_config["site"])).parent.name
        if self._is_silent(site, int(message.metadata.group_id)):
            return Message(Error(NO_ANSWER, "simulated: no answer"), reply_to=message)
        answer = self._client_app(message, context)
        if self._is_late(site, int(message.metadata.group_id)):
            return Message(Error(TOO_LATE, "simulated: too late"), reply_to=message)
        kind = self._failures.poisoned.get(site)
        if kind is None or not answer.has_content() or self._factor(kind) == 1.0:
            return answer
        # Split learning goes with no poison that changes an update.
        request = messages.unpack_model_request(message.content)
        reply = messages.unpack_reply(answer.content)
        if not isinstance(reply, TrainReply):
            return answer
        # What a site sends is small, what it poisons is its update.
        section, names = request.study.compression, compressed_names(reply.update, request.weights)
        update = decode(reply.update, request.weights, names, section)
        update = encode(self._poisoned(update, kind, site, request), names, section)
        poisoned = replace(reply, update=update)
        return Message(messages.pack_train_reply(poisoned), reply_to=message)

    def _factor(self, kind: str) -> float:
        """What the update is multiplied by; with noise, its norm is."""
        if kind in DATA_POISONS:
            return self._failures.boost
        return -self._failures.strength if kind == "sign_flip" else self._failures.strength

    def _is_silent(self, site: str, round_number: int) -> bool:
        if round_number < self._failures.first_round.get(site, 1):
            return True
        draw = numpy_rng(self._seed, "drop-out", round_number, site).random()
        return bool(draw < self._failures.drop_out)

    def _is_late(self, site: str, round_number: int) -> bool:
        share = self._failures.stragglers.get(site, 0.0)
        draw = numpy_rng(self._seed, "straggler", round_number, site).random()
        return bool(draw < share)

    def _poisoned(
        self, update: StateDict, kind: str, site: str, request: ModelRequest
    ) -> StateDict:
        factor = self._factor(kind)
        if kind != "noise":
            return {
                name: np.asarray(np.multiply(array, factor), dtype=array.dtype)
                for name, array in update.items()
            }
        rng = numpy_rng(self._seed, "poison", request.round_number, site)
        drawn = {name: rng.standard_normal(array.shape) for name, array in update.items()}
        factor *= _norm(update) / max(_norm(drawn), 1e-12)
        return {name: (factor * drawn[name]).astype(a.dtype) for name, a in update.items()}


def sites_of(client_app: ClientApp, study: StudyConfig, arm: str) -> ClientApp:
    """Return the app of an arm's sites: `client_app`, failing as the study says.

    Only sites of the federated arm fail; scanners are replaced in all arms.
    """
    assert study.simulation is not None
    failures = study.simulation.failures
    if failures.drift is not None:
        client_app = DriftingSites(client_app, failures.drift)
    if arm != "federated" or not failures.any:
        return client_app
    return FailingSites(client_app, failures, study.study.seed)


def check_quorum(study: StudyConfig, sites: Collection[str]) -> None:
    """Check that there are as many sites as a run needs: real ones it would wait for.

    Raises:
        StudyError: There are fewer.
    """
    wanted = study.federation.min_sites
    if wanted > len(sites):
        raise StudyError(
            f"federation.min_sites is {wanted}, and the partition makes {len(sites)} "
            f"site{'s' if len(sites) > 1 else ''}: {', '.join(sorted(sites))}. Lower it to "
            f"{len(sites)} or less, or split the data into more."
        )


def check_names(study: StudyConfig, sites: Collection[str]) -> None:
    """Check that sites which fail by name exist.

    Raises:
        StudyError: One does not.
    """
    assert study.simulation is not None
    failures = study.simulation.failures
    drifting = {} if failures.drift is None else failures.drift.from_round
    named = {*failures.first_round, *failures.stragglers, *failures.poisoned, *drifting}
    unknown = named - set(sites)
    if unknown:
        raise StudyError(
            f"simulation.failures names {', '.join(sorted(unknown))}; the sites are "
            f"{', '.join(sorted(sites))}. `medfed data partition` shows them."
        )


def _norm(arrays: Mapping[str, npt.NDArray[Any]]) -> float:
    squares = [float(np.sum(np.square(array, dtype=np.float64))) for array in arrays.values()]
    return float(np.sqrt(sum(squares)))
