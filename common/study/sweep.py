"""`[sweep]`: one study many times: every combination of some values, each with several seeds."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from medfed.common.study.base import Section

Value = bool | int | float | str
_OWN = ("study.seed", "study.name", "study.description")


class SweepSection(Section):
    """`[sweep]`: `medfed simulate` runs each combination with each seed. Not sent to sites."""

    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = ()
    """Values of study.seed: partition, split, first weights, batches and noise all change with it;
    empty for the study's own. With two or more there are means, spreads and paired tests."""
    vary: dict[str, tuple[Value, ...]] = Field(default_factory=dict)
    """Values of each key, e.g. "privacy.noise_multiplier" = [1.0, 2.0]. All combinations run."""

    target: float | None = None
    """A value of the task's leading figure, e.g. AUROC 0.8: tables say how many rounds and bytes
    the federated model took to reach it."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} names one twice. Remove it.")
        for key, values in self.vary.items():
            if key in _OWN or key.startswith("sweep.") or "." not in key:
                raise ValueError(
                    f'vary."{key}": expected section.key of what a run does. '
                    "Seeds are in sweep.seeds; `medfed study keys` lists all keys."
                )
            if not values:
                raise ValueError(f'vary."{key}" has no value. Give some, or remove it.')
            if len({(type(value), value) for value in values}) < len(values):
                raise ValueError(f'vary."{key}" names a value twice. Remove it.')
        if len(self.seeds) < 2 and all(len(values) < 2 for values in self.vary.values()):
            raise ValueError(
                "a sweep of one run. Give two or more seeds or values, e.g. seeds = [1, 2, 3], or "
                "remove [sweep]."
            )
        return self
