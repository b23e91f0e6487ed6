"""What all tests share."""

import sys
from pathlib import Path

import pytest

# Pytest's importlib mode leaves tests' own folders out of the path.
sys.path.insert(0, str(Path(__file__).parent))

# Tens of seconds each on two cores. The shallow networks stay with `make test`; these are for
# `make test-slow`, which CI runs too.
_DEEP = ("densenet121", "resnet50", "inception_v3", "vgg16")
_NETWORK_TESTS = ("tests/common/models/", "tests/common/test_models.py", "tests/client/privacy/")
# Minutes each, with a federation of real processes: `make test-deployment`.
_DEPLOYMENTS = (
    "test_attack",
    "test_fault",
    "test_forged",
    "test_hostile_texts",
    "test_planted",
    "test_wicked",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of deep networks as slow, so that no list of them has to be kept in each file."""
    for item in items:
        place = item.nodeid.startswith(_NETWORK_TESTS)
        if place and any(name in item.name for name in _DEEP):
            item.add_marker(pytest.mark.slow)
        module = item.nodeid.partition("::")[0]
        name = module.rpartition("/")[2]
        if module.startswith("tests/docs/") or (
            module.startswith("tests/integration/") and name.startswith(_DEPLOYMENTS)
        ):
            item.add_marker(pytest.mark.deployment)
