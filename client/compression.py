"""An update made small before it leaves, and what that left out, kept for the next one.

With error feedback (`compression.error_feedback`) a site owes what it did not send:

    p = update + owed        sent = decode(encode(p))        owed = p - sent

In the state folder, `owed/<digest of run and study>/after-00007.safetensors`: what is owed once the
answer to round 7 has counted. Each request says which of this site's answers was the last that did
(`ModelRequest.counted_round`), and that file is where the next one goes on from. So an answer that
came late, was rejected, or belonged to a round that was repeated without this site, changes
nothing: its file is never read. A round that is asked for again starts from the same file, and
gives the same bits. Two files at a time stay: the one that was read, and the one that may come to
count.

A server that states a wrong round makes a site owe less than it does, or nothing: it gains nothing
that it could not have had. Under DP all of this is made of updates that have their noise, each of
them charged before it was made; no patient's data is in it by any other way.

A missing or damaged file is owed as nothing: the run goes on, a little less exactly.
"""

import hashlib
import logging
import shutil
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import nn

from medfed.client.site import SiteConfig
from medfed.common.compression import LARGEST, decode, encode
from medfed.common.errors import MessageError
from medfed.common.files import make_private, write_secret
from medfed.common.messages import ModelRequest
from medfed.common.models import trained_parameters
from medfed.common.seeding import numpy_rng
from medfed.common.state_dicts import StateDict, check_fits

log = logging.getLogger(__name__)

OWED_FOLDER = "owed"
# A site cannot know when a run is over: what the oldest owes is forgotten.
_MOST_RUNS = 4


def compressed(
    update: StateDict, model: nn.Module, request: ModelRequest, site: SiteConfig
) -> StateDict:
    """Return what is sent of an update, as the study says, and keep what is not.

    Args:
        update: New minus old weights, as training made it, with its noise.
        model: What was trained.
        request: What is answered.
        site: This site.

    Raises:
        OSError: What is owed could not be kept: the update must not leave.
    """
    section = request.study.compression
    if section.update == "none":
        return update
    # With fedbn some train and stay here.
    parameters = tuple(name for name in trained_parameters(model) if name in update)
    if not section.keeps_residual:
        names = (request.round_number, site.name)
        rng = numpy_rng(request.study.study.seed, "rounding", *names)
        return encode(update, parameters, section, rng if section.rounds_by_chance else None)
    owed = Owed(site.state_folder, request)
    own = {name: update[name] for name in parameters}
    before = owed.read(own)
    whole = {**update, **{n: np.add(own[n], before[n], dtype=own[n].dtype) for n in own}}
    sent = encode(whole, parameters, section)
    # Of an update that the server will reject nothing comes to be owed.
    if all((np.abs(whole[name]) <= LARGEST).all() for name in own):
        arrived = decode(sent, update, parameters, section)
        owed.write({n: np.subtract(whole[n], arrived[n], dtype=own[n].dtype) for n in own})
    return sent


class Owed:
    """What a site owes in one run.

    Args:
        state_folder: The site's.
        request: Names run, study, round, and the last round that counted.
    """

    def __init__(self, state_folder: Path, request: ModelRequest) -> None:
        name = f"{request.run}\x1f{request.study.digest()}"
        self._folder = state_folder / OWED_FOLDER / hashlib.sha256(name.encode()).hexdigest()[:16]
        self._counted = request.counted_round
        self._next = request.round_number

    def read(self, like: StateDict) -> StateDict:
        """Return what is owed by the last answer that counted, in the shapes of `like`."""
        nothing = {name: np.zeros_like(array) for name, array in like.items()}
        if not self._counted:
            return nothing
        try:
            found: StateDict = load(self._file(self._counted).read_bytes())
            check_fits(like, found)
        except (OSError, SafetensorError, MessageError) as error:
            log.warning(
                "What is owed since round %d cannot be read (%s): it counts as nothing.",
                self._counted,
                error,
            )
            return nothing
        return found

    def write(self, owed: StateDict) -> None:
        """Keep what is owed once this round counts; forget what no later round starts from."""
        if not self._folder.exists():
            self._make_room()
            make_private(self._folder)
        write_secret(
            self._file(self._next),
            save({name: np.asarray(array, order="C") for name, array in owed.items()}),
        )
        kept = {self._file(self._counted), self._file(self._next)}
        for path in set(self._folder.glob("after-*.safetensors")) - kept:
            path.unlink()

    def _file(self, round_number: int) -> Path:
        return self._folder / f"after-{round_number:05d}.safetensors"

    def _make_room(self) -> None:
        runs = sorted(self._folder.parent.glob("*/"), key=lambda folder: folder.stat().st_mtime)
        for old in runs[: max(0, len(runs) - _MOST_RUNS + 1)]:
            shutil.rmtree(old, ignore_errors=True)
