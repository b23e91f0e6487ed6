"""Random changes of training images by MONAI's transforms, seeded and safe in threads."""

from medfed.client.augmentation.augmenter import Augmenter

__all__ = ["Augmenter"]
