"""`[sweep]`: one study many times: every combination of some values, each with several seeds."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

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
    cases: tuple[dict[str, Value], ...] = ()
    """Values that belong together, a table a case, e.g. {"simulation.labels.share" = 0.1,
    "semi_supervised.method" = "mean_teacher"}. A key that a case leaves out stays as the study has
    it. Each case runs with each combination of vary."""

    target: float | None = None
    """A value of the task's leading figure, e.g. AUROC 0.8: tables say how many rounds and bytes
    the federated model took to reach it."""

    @field_validator("vary", mode="before")
    @classmethod
    def _varied_values(cls, vary: Any) -> Any:
        if isinstance(vary, Mapping):
            for key, values in vary.items():
                _check_key(key, values, "[...]")
                for value in values if isinstance(values, list | tuple) else ():
                    _check_value(key, value)
        return vary

    @field_validator("cases", mode="before")
    @classmethod
    def _case_values(cls, cases: Any) -> Any:
        for case in cases if isinstance(cases, list | tuple) else ():
            for key, value in case.items() if isinstance(case, Mapping) else ():
                if "." not in key:
                    _check_key(key, value, "...")
                _check_value(key, value)
        return cases

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} names one twice. Remove it.")
        for key in (*self.vary, *self.case_keys):
            if key in _OWN or key.startswith("sweep.") or "." not in key:
                raise ValueError(
                    f'vary."{key}": expected section.key of what a run does. '
                    "Seeds are in sweep.seeds; `medfed study keys` lists all keys."
                )
        for key, values in self.vary.items():
            if not values:
                raise ValueError(f'vary."{key}" has no value. Give some, or remove it.')
            if len({(type(value), value) for value in values}) < len(values):
                raise ValueError(f'vary."{key}" names a value twice. Remove it.')
        twice = sorted(set(self.vary) & set(self.case_keys))
        if twice:
            raise ValueError(f'"{twice[0]}" is in vary and in cases. Leave it in one of them.')
        if any(case in self.cases[:number] for number, case in enumerate(self.cases)):
            raise ValueError("cases names one twice. Remove it.")
        one_each = all(len(values) < 2 for values in (*self.vary.values(), self.cases))
        if len(self.seeds) < 2 and one_each:
            raise ValueError(
                "a sweep of one run. Give two or more seeds or values, e.g. seeds = [1, 2, 3], or "
                "remove [sweep]."
            )
        return self

    @property
    def case_keys(self) -> tuple[str, ...]:
        """The keys that any case sets, in order of appearance."""
        return tuple(dict.fromkeys(key for case in self.cases for key in case))


def _check_key(key: str, value: Any, shown: str) -> None:
    """Refuse a key without quotes, of which TOML makes tables in tables."""
    if isinstance(value, Mapping) and value:
        path = [key]
        while isinstance(value, Mapping) and value:
            name, value = next(iter(value.items()))
            path.append(name)
        raise ValueError(
            f'{key} is a table. Write the whole key in quotes: "{".".join(path)}" = {shown}'
        )


def _check_value(key: str, value: Any) -> None:
    if isinstance(value, Mapping) and value:
        name = next(iter(value))
        raise ValueError(
            f'"{key}" is given a table. Give its keys one by one: "{key}.{name}" = {value[name]!r}'
        )
    if isinstance(value, Mapping | list | tuple):
        raise ValueError(
            f'"{key}": expected a number, a text, true or false for each run, got {value}. '
            "Lists are not varied: make a study for each."
        )
