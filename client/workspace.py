"""What a site's process keeps warm between messages: opened data, the network, the device.

Data is shared by the process' threads (it is read-only); a network belongs to one thread.
"""

import ctypes
import threading
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import nn

from medfed.client.data.site_data import SiteData, harmonised, load_site_data
from medfed.client.plugins import check_private
from medfed.client.site import SiteConfig
from medfed.common.arithmetic import device_for, make_arithmetic_repeatable
from medfed.common.errors import SiteConfigError
from medfed.common.models import build_model, frozen_state_digest, trained_state
from medfed.common.models.cnn import lay_out_for_cpu
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.tasks import Task, make_task


@dataclass(frozen=True)
class Network:
    """A network that stays warm.

    Attributes:
        model: Its trained weights are overwritten before every use.
        start: What trains, as the study's seed and weights file make it.
        frozen_sha256: Hash of all the rest, which never travels.
    """

    model: nn.Module
    start: StateDict
    frozen_sha256: str


@dataclass(frozen=True)
class Workspace:
    """Everything a round needs besides the weights."""

    data: SiteData
    task: Task
    network: Network

    @property
    def model(self) -> nn.Module:
        """The network itself."""
        return self.network.model


_local = threading.local()

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_ONE_GIB = 1 << 30


def site_data(site: SiteConfig, study: StudyConfig) -> SiteData:
    """Return the warm data of `study` at `site`."""
    return _data(site, study)


def workspace(
    site: SiteConfig, study: StudyConfig, words: tuple[str, ...], tables: bytes = b""
) -> Workspace:
    """Return the warm data, task and network of `study` at `site`.

    Args:
        site: The site.
        study: The study.
        words: The vocabulary of a report task.
        tables: Of grey levels, 256 values a channel; empty for images as they are.
    """
    keep_freed_memory()
    make_arithmetic_repeatable(study)
    task = make_task(study, words)
    device = pick_device(study, site)
    data = _harmonised_data(site, study, tables) if tables else _data(site, study)
    network = _network(study, task.num_outputs, device, site)
    check_private(network.model, task, study)
    return Workspace(data, task, network)


@lru_cache(maxsize=4096)
def _data(site: SiteConfig, study: StudyConfig) -> SiteData:
    return load_site_data(site, study)


@lru_cache(maxsize=4096)
def _harmonised_data(site: SiteConfig, study: StudyConfig, tables: bytes) -> SiteData:
    return harmonised(_data(site, study), tables)


def _network(
    study: StudyConfig, num_outputs: int, device: torch.device, site: SiteConfig
) -> Network:
    """This thread's network; one at a time, since weights are written before every use."""
    # What is frozen depends on the seed; everything that trains is overwritten.
    key = (study.model, study.data, study.study.seed, num_outputs, device)
    if getattr(_local, "key", None) != key:
        folder = site.path(site.compute.weights) if site.compute.weights else None
        model = build_model(study, num_outputs, folder, may_download=site.compute.download_weights)
        if device.type == "cpu":
            lay_out_for_cpu(model)
        model.to(device)
        _local.network = Network(model, trained_state(model), frozen_state_digest(model))
        _local.key = key
    network: Network = _local.network
    return network


@cache
def keep_freed_memory() -> None:
    """Let the C library reuse large blocks instead of giving them back and asking again.

    Per-patient gradients are hundreds of megabytes a step; fresh pages for each cost up to half of
    a DP step (scripts/bench/dp_step.py). Call it before worker threads start: glibc gives a thread
    an arena of its own, whose large blocks go back to the system whatever is set here, so there
    is one arena for all. No effect where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, _ONE_GIB)
    mallopt(_M_TRIM_THRESHOLD, _ONE_GIB)


def pick_device(study: StudyConfig, site: SiteConfig) -> torch.device:
    """Return where to train: the site's own choice, else the study's."""
    wish = study.compute.device if site.compute.device == "study" else site.compute.device
    device = device_for(wish)
    if device is None:
        raise SiteConfigError(
            'Expected a GPU for compute.device = "cuda", found none. '
            'Set it to "auto" or "cpu" in site.toml.'
        )
    return device
