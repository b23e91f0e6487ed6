"""torch's optimisers without its compiler: the same weights to the bit, and no import of it."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from medfed.common.optimizer import make_optimizer
from medfed.common.study import TrainingSection

SETTINGS = {"rounds": 1, "local_steps": 1, "learning_rate": 0.01, "weight_decay": 0.1}
_ALONE = """
import sys
import torch
from torch import nn
from medfed.common.optimizer import make_optimizer
from medfed.common.study import TrainingSection
training = TrainingSection(rounds=1, local_steps=1, learning_rate=0.1, optimizer=sys.argv[1])
layer = nn.Linear(2, 2)
optimizer = make_optimizer(layer, training, torch.device("cpu"))
optimizer.zero_grad(set_to_none=True)
layer(torch.ones(1, 2)).sum().backward()
optimizer.step()
sys.exit("torch._dynamo" in sys.modules)
"""


def trained(own: bool, name: str) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    model[0].bias.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if own:
        training = TrainingSection(**SETTINGS, optimizer=name, momentum=0.9 * (name == "sgd"))
        optimizer = make_optimizer(model, training, torch.device("cpu"))
    elif name == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.1, fused=True)
    else:
        optimizer = torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1, fused=True)
    for _ in range(20):
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_weights_are_those_of_torch(name: str) -> None:
    assert torch.equal(trained(True, name), trained(False, name))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_step_does_not_import_the_compiler(name: str) -> None:
    assert subprocess.run([sys.executable, "-c", _ALONE, name], check=False).returncode == 0


@pytest.mark.parametrize("gradient", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_every_number_takes_its_own_gradient_however_both_are_laid_out(
    name: str, kernel: torch.memory_format, gradient: torch.memory_format
) -> None:
    def steps(fused: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 4, 2)
        layer.weight.data = layer.weight.data.clone(memory_format=kernel)
        if fused:
            training = TrainingSection(**SETTINGS, optimizer=name, momentum=0.9 * (name == "sgd"))
            optimizer = make_optimizer(layer, training, torch.device("cpu"))
        elif name == "sgd":
            optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
        else:
            optimizer = torch.optim.Adam(layer.parameters(), lr=0.01, weight_decay=0.1)
        for _ in range(3):
            layer.weight.grad = torch.randn(4, 3, 2, 2).contiguous(memory_format=gradient)
            layer.bias.grad = torch.randn(4)
            optimizer.step()
        return layer.weight.detach()

    torch.testing.assert_close(steps(fused=True), steps(fused=False))
