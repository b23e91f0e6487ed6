"""`[federation]`: who takes part, how updates are combined, and by which algorithm."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from medfed.common.study.base import Fraction, PositiveFloat, PositiveInt, Section

Algorithm = Literal[
    "fedavg",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "fedprox",
    "fednova",
    "scaffold",
    "cyclic",
    "fedbuff",
    "split",
    "fedbn",
    "ditto",
    "apfl",
    "qfedavg",
]

# Each algorithm's own parameters, with what they are where a study does not say: Reddi et al. 2020,
# section 5 (Adam, Yogi, Adagrad), Hsu et al. 2019 (momentum), Li et al. 2018, section 5 (mu). The
# papers of ditto, apfl and qfedavg search for theirs. A buffer of 2 goes with the default quorum.
_ADAPTIVE = {"server_learning_rate": 0.01, "server_momentum": 0.9, "server_tau": 1e-3}
_PARAMETERS: dict[str, dict[str, float]] = {
    "fedavgm": {"server_learning_rate": 1.0, "server_momentum": 0.9},
    "fedadam": {**_ADAPTIVE, "server_beta2": 0.99},
    "fedyogi": {**_ADAPTIVE, "server_beta2": 0.99},
    "fedadagrad": {**_ADAPTIVE, "server_momentum": 0.0},
    "fedprox": {"proximal_mu": 0.01},
    "fedbuff": {"server_learning_rate": 1.0, "buffer_size": 2},
    "split": {"front_stages": 1},
    "ditto": {"ditto_lambda": 0.1},
    "apfl": {"apfl_alpha": 0.5, "apfl_alpha_rate": 0.0},
    "qfedavg": {"fairness_q": 1.0},
}
_NAMES = sorted({name for own in _PARAMETERS.values() for name in own})


class FederationSection(Section):
    """`[federation]`: who takes part and how updates are combined."""

    algorithm: Algorithm = "fedavg"
    """fedavg; fedavgm, fedadam, fedyogi, fedadagrad (the server's optimiser steps by the combined
    update); fedprox (sites are held near the global weights); fednova (for sites that take
    different numbers of steps); scaffold (sites' drift is corrected); cyclic (within a round the
    weights go from site to site); fedbuff (sites train at their own pace, and a round takes the
    first buffer_size updates); split (the middle of the network is trained at the server, which
    sees activations of every training image: sites must allow it); fedbn (normalisation stays at
    each site), ditto, apfl (each site has a personal model beside the global one); qfedavg (sites
    with a higher loss count for more). docs/adr/0021, 0022, 0023 and 0028 say which goes with
    what."""
    server_learning_rate: PositiveFloat | None = None
    """fedavgm, fedadam, fedyogi, fedadagrad, fedbuff: the server's step size. Unset: 1.0 for
    fedavgm and fedbuff, 0.01 for the others, where it is about how far a weight moves in a
    round."""
    server_momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """fedavgm, fedadam, fedyogi, fedadagrad: momentum (beta 1). Unset: 0.9; 0.0 for fedadagrad."""
    server_beta2: Annotated[float, Field(ge=0, lt=1)] | None = None
    """fedadam, fedyogi: how long squares of updates are remembered (beta 2). Unset: 0.99."""
    server_tau: PositiveFloat | None = None
    """fedadam, fedyogi, fedadagrad: adaptivity; updates smaller than this move a weight by less.
    Unset: 0.001."""
    proximal_mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """fedprox: weight of mu / 2 * ||w - w_global||^2 in a site's loss; 0 is fedavg. Unset: 0.01."""
    buffer_size: PositiveInt | None = None
    """fedbuff: updates that make a round, of different sites; at most min_sites. Unset: 2."""
    front_stages: PositiveInt | None = None
    """split: stages of the network, from its first on, that stay at each site with the last layer;
    the server trains those between. A small CNN has 4 stages (its layers), a ResNet, DenseNet or
    VGG 6 or 7, an Inception 5. More hide images better and cost the sites more. Unset: 1."""
    ditto_lambda: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """ditto: weight of lambda / 2 * ||v - w_global||^2 in the loss of a site's personal model v; 0
    trains it alone. Unset: 0.1."""
    apfl_alpha: Annotated[float, Field(gt=0, lt=1)] | None = None
    """apfl: share of a site's own weights in its personal model; the rest is global. Where it is
    learned, what each site's begins at. Unset: 0.5."""
    apfl_alpha_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """apfl: step size by which each site learns its alpha, once a round; the paper takes
    training.learning_rate. 0 keeps it as it is. Unset: 0."""
    fairness_q: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """qfedavg: a site's update counts by its loss to this power; 0 is fedavg. Unset: 1.0."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Evaluate and publish an exponential moving average of the global weights, which smooths the
    noise of DP; 0.9 averages about ten rounds, 0 is off. Sites go on from the latest weights."""
    weighting: Literal["auto", "examples", "uniform", "public"] = "auto"
    """A site's weight: its number of training images; one; or the public_num_patients that its
    site.toml states (one each where a site states none). Under DP the true count is private, so
    examples is refused; auto is examples without DP and public with it."""
    fraction: Fraction = 1.0
    """Share of the joined sites that takes part in each round. With privacy.unit = "site" each
    site is drawn with this probability, alone, as amplification by sampling needs it."""
    min_sites: PositiveInt = 2
    """Quorum: sites that must join before round 1, and answer in every round (with fedbuff,
    buffer_size of them). More than a simulation has sites is refused."""
    join_timeout_s: PositiveFloat = 600.0
    """How long the server waits for min_sites to join, seconds."""
    rejoin_timeout_s: PositiveFloat = 600.0
    """How long a run waits, between rounds, for min_sites to be connected and not paused, seconds;
    then it fails and can be resumed."""
    round_timeout_s: PositiveFloat = 3600.0
    """Deadline of a round, seconds; it completes with the sites that answered by then. With cyclic
    of each site's turn; with fedbuff a round ends once its buffer is full."""
    lost_after_s: PositiveFloat = 120.0
    """A site that has been disconnected for so many seconds is not waited for in this round, once
    min_sites have answered. Flower notices a lost connection after up to a minute."""

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, table: Any) -> Any:
        """Write the algorithm's defaults out, so that reports and messages state them."""
        algorithm = table.get("algorithm") if isinstance(table, dict) else None
        if not isinstance(algorithm, str) or algorithm not in _PARAMETERS:
            return table
        stated = {name: value for name, value in table.items() if value is not None}
        return {**_PARAMETERS[algorithm], **stated}

    @model_validator(mode="after")
    def _own_parameters(self) -> Self:
        own = _PARAMETERS.get(self.algorithm, {})
        for name in _NAMES:
            if getattr(self, name) is None or name in own:
                continue
            takers = [a for a in get_args(Algorithm) if name in _PARAMETERS.get(a, {})]
            raise ValueError(
                f'{name} = {getattr(self, name):g} with algorithm = "{self.algorithm}", which has '
                f"no such number. Remove it, or set federation.algorithm to {' or '.join(takers)}."
            )
        return self

    @property
    def parameters(self) -> dict[str, float]:
        """The algorithm's own parameters, in order of their names."""
        found = {name: getattr(self, name) for name in _NAMES}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def optimises_on_server(self) -> bool:
        """Whether the server's optimiser makes a step of the combined update (FedOpt)."""
        return self.algorithm in ("fedavgm", "fedadam", "fedyogi", "fedadagrad")

    @property
    def keeps_order(self) -> bool:
        """Whether the result depends on the order of the sites, which rounds then record."""
        return self.algorithm in ("cyclic", "fedbuff")

    @property
    def counts_sites_once(self) -> bool:
        """Whether the algorithm knows no weights of sites."""
        return self.keeps_order or self.algorithm == "scaffold"

    @property
    def keeps_at_sites(self) -> bool:
        """Whether each site keeps a part of its model, which never travels, between rounds."""
        return self.algorithm in ("fedbn", "ditto", "apfl")

    @property
    def has_personal_models(self) -> bool:
        """Whether each site has a whole model of its own beside the global one."""
        return self.algorithm in ("ditto", "apfl")

    def without_algorithm(self) -> "FederationSection":
        """Return the same with fedavg: what a site that trains alone can do."""
        return self.model_copy(update={"algorithm": "fedavg", **dict.fromkeys(_NAMES)})
