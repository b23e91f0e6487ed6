"""MONAI's DenseNet and ResNet with the study's channels, outputs and normalisation.

MONAI is imported on first use: it takes seconds, and the small CNN does not need it.
"""

from typing import cast

from torch import nn

from medfed.common.study import StudyConfig

# 32 divides every channel count of these networks.
_GROUP_NORM = ("group", {"num_groups": 32})


def _norm(study: StudyConfig) -> str | tuple[str, dict[str, int]]:
    return _GROUP_NORM if study.model.norm == "group" else "batch"


def densenet121(study: StudyConfig, num_outputs: int) -> nn.Module:
    """DenseNet-121 (Huang et al. 2017), 2-D."""
    from monai.networks.nets import DenseNet121

    network = DenseNet121(
        spatial_dims=2,
        in_channels=study.data.channels,
        out_channels=num_outputs,
        norm=_norm(study),
    )
    return cast(nn.Module, network)


def resnet18(study: StudyConfig, num_outputs: int) -> nn.Module:
    """ResNet-18 (He et al. 2016), 2-D."""
    from monai.networks.nets import resnet18 as build

    return _resnet(build, study, num_outputs)


def resnet50(study: StudyConfig, num_outputs: int) -> nn.Module:
    """ResNet-50 (He et al. 2016), 2-D."""
    from monai.networks.nets import resnet50 as build

    return _resnet(build, study, num_outputs)


def _resnet(build: object, study: StudyConfig, num_outputs: int) -> nn.Module:
    assert callable(build)
    network = build(
        spatial_dims=2,
        n_input_channels=study.data.channels,
        num_classes=num_outputs,
        norm=_norm(study),
    )
    return cast(nn.Module, network)
