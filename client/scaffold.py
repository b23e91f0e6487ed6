"""SCAFFOLD at a site: every gradient is corrected by how far this site's differ from all sites'.

    y = y - eta (g(y) - c_i + c)        (equation 3)

The server keeps c and each site's c_i, which follow from updates that it has anyway
(`server.aggregation.scaffold`), and sends c - c_i with the model: a site keeps nothing between
rounds, and nothing leaves it besides its update.

Reference: Karimireddy et al. 2019, https://arxiv.org/abs/1910.06378
"""

from collections.abc import Mapping

import torch
from torch import nn

from medfed.common.errors import StudyError
from medfed.common.models import trained_parameters
from medfed.common.state_dicts import StateDict, check_fits, read_state


def check_correction(algorithm: str, correction: StateDict | None, model: nn.Module) -> None:
    """Refuse a correction that came with a request and does not fit, or is missing.

    Before any charge, as with weights.

    Args:
        algorithm: Of the study.
        correction: What came.
        model: What is trained.

    Raises:
        StudyError: There is one without scaffold, or none with it.
        MessageError: It has not the names, shapes and types of what has gradients, or is infinite.
    """
    if (correction is not None) != (algorithm == "scaffold"):
        got = "none" if correction is None else "one"
        raise StudyError(
            "Expected a correction of gradients with scaffold and none without, got "
            f'{got} with federation.algorithm = "{algorithm}".'
        )
    if correction is not None:
        check_fits(read_state(model, trained_parameters(model)), correction)


class Correction:
    """c - c_i, for the named `parameters`; zero until `begin`."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._held = {
            name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()
        }

    def begin(self, correction: StateDict | None) -> None:
        """Take the server's correction, in the same memory; None for zero."""
        for name, held in self._held.items():
            if correction is None:
                held.zero_()
            else:
                held.copy_(torch.from_numpy(correction[name]))

    def add(self) -> None:
        """Add to the gradients."""
        gradients = []
        for parameter in self._parameters.values():
            if parameter.grad is None:  # no part in this batch's loss, but in the other sites'
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        torch._foreach_add_(gradients, list(self._held.values()))
