"""What a site asks of a study's plug-ins before any of their code is loaded, and after.

A plug-in's code runs in the site's own process, beside the images. It is here because the
hospital's IT installed it, and it runs because `policy.allow_plugins` names its package and the
study asks for the very version that is installed. Rules and data sets never run at a site.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from packaging.utils import canonicalize_name
from torch import nn

from medfed.client.site import PolicySection
from medfed.common.errors import MedfedError, RefusalReason, SiteRefusal, StudyError
from medfed.common.models import trained_names, trained_parameters
from medfed.common.plugins.apart import check_images_apart, draws_at_random
from medfed.common.plugins.loading import KEYS, find, package_of
from medfed.common.seeding import process_seeded
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.study.plugins import PluginKind, plugin_names
from medfed.common.tasks import Task

_AT_SITES: tuple[PluginKind, ...] = ("model", "task")

# Each thread has its own network, one at a time (client.workspace).
_local = threading.local()


def check_plugins(study: StudyConfig, policy: PolicySection) -> str:
    """Return why the site does not run a plug-in of `study`, or nothing. Loads none.

    Raises:
        SiteRefusal: STUDY, for one that the policy allows and that is not here in that version.
    """
    allowed = {canonicalize_name(name) for name in policy.allow_plugins}
    for kind, name in plugin_names(study).items():
        if kind not in _AT_SITES:
            continue
        asked = getattr(study.plugins, kind)
        if not asked:
            return f'{KEYS[kind]} = "{name}" is a plug-in, and the study does not say whose.'
        if package_of(asked) not in allowed:
            return (
                f'{KEYS[kind]} = "{name}" is code of {asked}, and this site\'s '
                f"policy.allow_plugins names {', '.join(sorted(allowed)) or 'none'}."
            )
        try:
            find(kind, name, asked)
        except StudyError as error:
            raise SiteRefusal(RefusalReason.STUDY, str(error)) from None
    return ""


def check_private(model: nn.Module, task: Task, study: StudyConfig) -> None:
    """Hold a plug-in's network or loss to what differential privacy needs, on made-up images.

    Raises:
        StudyError: It mixes patients, or keeps something of them.
    """
    names = plugin_names(study)
    if not study.privacy.enabled or names.keys().isdisjoint(_AT_SITES):
        return
    last: tuple[nn.Module, StudyConfig] | None = getattr(_local, "checked", None)
    if last is None or last[0] is not model or last[1] != study:
        check_images_apart(model, task, study)
        if study.privacy.at_sites:
            # Opacus takes seconds to import and is needed under DP only.
            from medfed.client.privacy.books_trial import check_books

            check_books(model, task, study)
        _local.checked = (model, study)


@contextmanager
def repeatable_draws(
    model: nn.Module, task: Task, study: StudyConfig, device: torch.device, *names: str | int
) -> Iterator[None]:
    """Let a plug-in's network draw at random (dropout) from the study's seed, so that runs repeat.

    torch's layers draw from one state for the whole process, so sites of such a study train in it
    one at a time.

    Args:
        model: About to be trained.
        task: Loss of an image.
        study: Which plug-ins, and the seed.
        device: Where the network is.
        names: Round and site.
    """
    if plugin_names(study).keys().isdisjoint(_AT_SITES):
        yield
        return
    with process_seeded(study.study.seed, "draws of a plug-in", *names, device=device):
        if draws_at_random(model, task, study):
            yield
            return
    yield


def check_only_parameters_moved(model: nn.Module, update: StateDict) -> None:
    """Check that nothing but what has noise moved: a counter would tell how many were sampled.

    Raises:
        MedfedError: A buffer of the network changed.
    """
    noised = set(trained_parameters(model))
    for name in trained_names(model):
        if name not in noised and update[name].any():
            raise MedfedError(
                f"Expected {name} to stay as it is under privacy, and it changed: no noise covers "
                "it. Nothing of this round leaves."
            )
