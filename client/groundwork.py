"""What an answer to any message about a model rests on: network and data, the round, its price."""

import hashlib

from medfed.client import policy
from medfed.client.site import SiteConfig
from medfed.client.statistics import SaidStatistics, harmonising_tables, release_statistics
from medfed.client.training import Round
from medfed.client.workspace import Workspace, pick_device, site_data, workspace
from medfed.common.errors import LedgerError, RefusalReason, SiteRefusal, StudyError
from medfed.common.ledger import Countersignature, Ledger, Spend
from medfed.common.messages import ModelRequest, SplitRequest
from medfed.common.models import local_names
from medfed.common.state_dicts import check_shapes, digest
from medfed.common.study import StudyConfig


def said_of(study: StudyConfig, site: SiteConfig, run: str) -> SaidStatistics:
    """Return what the site says of its training data; asked again, the same again."""
    # Of the images as they are: a table of grey levels is made from this.
    return release_statistics(site_data(site, study).train, study, site, run=run)


def keep_countersignature(request: ModelRequest | SplitRequest, site: SiteConfig) -> None:
    """Keep what the server signed about this ledger; a wrong one means that one of us is lying."""
    if not request.countersignature:
        return
    try:
        signed = Countersignature.from_json(request.countersignature)
        Ledger(site.state_folder).keep_countersignature(signed)
    except LedgerError as error:
        raise SiteRefusal(RefusalReason.LEDGER, str(error)) from error


def workspace_of(request: ModelRequest, site: SiteConfig) -> Workspace:
    """Return what the round needs, sure that its weights are of this very model.

    Checked before any charge: weights of another model must not cost the patients anything.
    """
    here = network_of(request, site, request.words)
    local = local_names(here.model, request.study)
    shared = {name: array for name, array in here.network.start.items() if name not in local}
    check_shapes(shared, request.weights)
    request.check_finite()
    return here


def network_of(
    request: ModelRequest | SplitRequest, site: SiteConfig, words: tuple[str, ...] = ()
) -> Workspace:
    """Return what the round needs, sure that what is frozen of the model is the coordinator's."""
    tables = b""
    if request.study.data.harmonise != "none":
        said = said_of(request.study, site, request.run)
        tables = harmonising_tables(said, request.study, request.reference)
    here = workspace(site, request.study, words, tables)
    if here.network.frozen_sha256 != request.frozen_sha256:
        raise StudyError(
            "The frozen part of the model differs from the coordinator's: another weights file, "
            "or another version of torch. Place the file that model.weights_sha256 names."
        )
    return here


def round_of(request: ModelRequest | SplitRequest, site: SiteConfig) -> Round:
    """Return which round is trained, and where."""
    device = pick_device(request.study, site)
    correction = request.correction if isinstance(request, ModelRequest) else None
    return Round(request.study, site.name, request.round_number, device, correction)


def spend_of(request: ModelRequest | SplitRequest, site: SiteConfig) -> Spend:
    """What the round will have cost, under a name that only the very same release shares."""
    parts = [
        request.study.digest(),
        request.run,
        str(request.round_number),
        request.weights_digest() if isinstance(request, ModelRequest) else digest(request.arrays),
    ]
    if request.study.secure_aggregation.distributed_noise != "none":
        # Each site's share of the noise, and so the very bits, depend on how many share it.
        parts.append(str(request.num_participants))
    if isinstance(request, ModelRequest) and request.correction is not None:
        # Another correction, another update: one that was not paid for.
        parts.append(digest(request.correction))
    return policy.spend_of_round(
        request.study,
        site.policy,
        run=request.run,
        round_number=request.round_number,
        release=hashlib.sha256("\x1f".join(parts).encode()).hexdigest(),
    )
