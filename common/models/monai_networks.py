"""MONAI's DenseNet and ResNet with the study's channels, outputs and normalisation.

MONAI is imported on first use: it takes seconds, and the small CNN does not need it.
"""

from torch import nn

from medfed.common.study import StudyConfig

# Divides every channel count of these networks.
_NUM_GROUPS = 32


def densenet121(study: StudyConfig, num_outputs: int) -> nn.Module:
    """DenseNet-121 (Huang et al. 2017), 2-D."""
    from monai.networks.nets import DenseNet121

    network = DenseNet121(
        spatial_dims=2,
        in_channels=study.data.channels,
        out_channels=num_outputs,
    )
    return _with_norm(network, study)


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
    )
    return _with_norm(network, study)


def _with_norm(network: nn.Module, study: StudyConfig) -> nn.Module:
    """Turn every BatchNorm into GroupNorm if the study says so.

    MONAI 1.6's own `norm` argument reaches a ResNet's first layer only: its blocks keep BatchNorm,
    which mixes patients. So all are replaced here, whatever the network.
    """
    if study.model.norm == "group":
        for name, child in list(network.named_modules()):
            if isinstance(child, nn.BatchNorm2d):
                parent = network.get_submodule(name.rpartition(".")[0])
                norm = nn.GroupNorm(_NUM_GROUPS, child.num_features, eps=child.eps)
                setattr(parent, name.rpartition(".")[2], norm)
    return network
