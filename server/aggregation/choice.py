"""From a study's `[aggregation]` and `federation.algorithm` to the rule of one round."""

from collections.abc import Collection, Mapping
from functools import partial
from types import MappingProxyType

from medfed.common.errors import RunError
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.study.aggregation import AggregationSection
from medfed.server.aggregation.exact import MAX_TERMS
from medfed.server.aggregation.fedavg import FedAvg
from medfed.server.aggregation.fedbuff import FedBuff
from medfed.server.aggregation.fednova import FedNova
from medfed.server.aggregation.geometric_median import geometric_median
from medfed.server.aggregation.krum import krum, multi_krum
from medfed.server.aggregation.median import coordinate_median
from medfed.server.aggregation.norm_bound import NormBounded
from medfed.server.aggregation.plugin import PluginRule
from medfed.server.aggregation.qfedavg import QFedAvg
from medfed.server.aggregation.robust import Combine, RobustRule
from medfed.server.aggregation.rule import Rule
from medfed.server.aggregation.trimmed_mean import trimmed_mean


def normalises(study: StudyConfig) -> bool:
    """Whether updates are divided by numbers of steps: FedNova, where sites' numbers differ."""
    return study.federation.algorithm == "fednova" and study.training.local_steps is None


def check_number(study: StudyConfig, num_participants: int) -> None:
    """Refuse a round of more updates than its mean can hold: whoever came last would be left out.

    Raises:
        RunError: There are more.
    """
    section = study.aggregation
    others = section.robust or section.is_plugin or study.federation.keeps_order
    if others or study.secure_aggregation.enabled or num_participants <= MAX_TERMS:
        return
    share = study.federation.fraction * MAX_TERMS / num_participants
    raise RunError(
        f"Expected at most {MAX_TERMS} sites in a round, whose updates one exact mean holds, got "
        f"{num_participants}. Start anew with federation.fraction = {share:.4f} or less: "
        "docs/adr/0002."
    )


def rule_for(
    study: StudyConfig,
    weights: StateDict,
    parameters: Collection[str],
    steps: Mapping[str, float] = MappingProxyType({}),
    staleness: Mapping[str, int] = MappingProxyType({}),
    losses: Mapping[str, float] = MappingProxyType({}),
) -> Rule:
    """Return the rule of a round of `study` that starts from `weights`.

    Args:
        study: The study.
        weights: Global weights before the round.
        parameters: Names of what has gradients.
        steps: By site, its `fednova.effective_steps`, where `normalises`.
        staleness: By site, rounds since it was asked, with fedbuff.
        losses: By site, the loss that it states, with qfedavg.
    """
    section, q = study.aggregation, study.federation.fairness_q
    if q is not None:
        rate = study.training.learning_rate
        return QFedAvg(weights, parameters, losses, q=q, learning_rate=rate)
    if normalises(study):
        return FedNova(weights, parameters, steps)
    if section.is_plugin:
        return bounded(PluginRule(study, weights), section)
    if study.federation.algorithm == "fedbuff":
        step = study.federation.server_learning_rate
        assert step is not None  # FederationSection writes it out
        return bounded(FedBuff(weights, step, staleness), section)
    return make_rule(section, weights)


def make_rule(section: AggregationSection, weights: StateDict) -> Rule:
    """Return medfed's own rule of a round that starts from `weights`."""
    rule: Rule = FedAvg(weights)
    if section.robust:
        rule = RobustRule(weights, _combine(section), section.min_updates)
    return bounded(rule, section)


def bounded(rule: Rule, section: AggregationSection) -> Rule:
    """Return `rule` behind the study's bound on each update's norm, if it has one."""
    return NormBounded(rule, section.max_norm) if section.max_norm else rule


def _combine(section: AggregationSection) -> Combine:
    hostile = section.num_byzantine or 0
    rules: dict[str, Combine] = {
        "median": coordinate_median,
        "trimmed_mean": partial(trimmed_mean, num_trimmed=hostile),
        "krum": partial(krum, num_byzantine=hostile),
        "multi_krum": partial(multi_krum, num_byzantine=hostile, num_selected=section.num_selected),
        "geometric_median": geometric_median,
    }
    return rules[section.rule]
