"""Private elements: removed, except the safe ones under that option (PS3.15 E.3.10)."""

from collections import Counter

from pydicom.dataset import Dataset

from medfed.client.data.deidentification.profile import Option, safe_private
from medfed.client.data.deidentification.remnants import Remnants
from medfed.client.data.deidentification.rules import Rules

_BLOCKS = range(0x10, 0x100)


def clean_private(dataset: Dataset, rules: Rules, remnants: Remnants) -> Counter[str]:
    """Remove private elements from one data set or item in place; return what was done."""
    counts: Counter[str] = Counter()
    creators: set[tuple[int, int]] = set()
    private = sorted(tag for tag in list(dataset.keys()) if tag.is_private)
    for tag in private:
        if tag.element in _BLOCKS:
            continue
        safe = Option.RETAIN_SAFE_PRIVATE in rules.chosen and _is_safe(dataset, tag, remnants)
        if safe:
            creators.add((tag.group, tag.element >> 8))
            counts["private_kept"] += 1
        else:
            del dataset[tag]
            counts["private_removed"] += 1
    for tag in private:
        if tag.element in _BLOCKS and (tag.group, tag.element) not in creators:
            del dataset[tag]
    return counts


def _is_safe(dataset: Dataset, tag: int, remnants: Remnants) -> bool:
    """Whether the list names the element, with this very VR, and its value is only that."""
    group, element = tag >> 16, tag & 0xFFFF
    try:
        creator = str(dataset[group << 16 | element >> 8].value).strip(" \0")
        value = dataset[tag]
    except Exception:  # no creator, or a value that cannot be read: not safe
        return False
    listed = safe_private().get((creator, group, element & 0xFF))
    return listed == value.VR and not remnants.found_in(str(value.value))
