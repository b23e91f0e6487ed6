"""From the sums that sites released to figures over all of them."""

from collections.abc import Collection

from medfed.common.metrics import MetricSums, add_sums, of_families
from medfed.common.tasks.protocol import Task


def pooled_metrics(task: Task, parts: Collection[MetricSums]) -> dict[str, float]:
    """Return the figures of all `parts` together.

    A site may keep some families of sums to itself. Each family's figures are those of the sites
    that released it whole, and of their images alone: a mean is never divided by images that are
    not in it. num_images counts all that any family counts.
    """
    figures: dict[str, float] = {}
    for family, names in task.families.items():
        released = [part for part in parts if all(name in part for name in names)]
        if released:
            chosen = (of_families(part, task.families, [family]) for part in released)
            figures |= task.metrics(add_sums(chosen))
    return figures | {"num_images": float(sum(int(part["count"]) for part in parts))}
