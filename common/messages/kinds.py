"""What server and sites say to one another, as plain values."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medfed.common.errors import RefusalReason
from medfed.common.messages.records import check_finite_packed, digest_of_packed
from medfed.common.metrics import MetricSums
from medfed.common.state_dicts import StateDict, check_finite, digest
from medfed.common.study import StudyConfig

Array = npt.NDArray[np.generic]

JOIN = "query.join"
WORDS = "query.words"
STATISTICS = "query.statistics"
SECURE_KEYS = "query.secure_keys"
SECURE_SHARES = "query.secure_shares"
SECURE_REVEAL = "query.secure_reveal"
TRAIN = "train"
SPLIT_FRONT = "train.split_front"
SPLIT_BACK = "train.split_back"
TRAINING = (TRAIN, SPLIT_FRONT, SPLIT_BACK)
EVALUATE = "evaluate"
MASKED = "masked"
ACTIVATIONS = "activations"
FEATURES = "features"
GRADIENT = "gradient"


@dataclass(frozen=True, kw_only=True)
class JoinRequest:
    """The server asks who a site is and whether it will take part in `study`."""

    study: StudyConfig
    run: str


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """Train or evaluate `weights`.

    Attributes:
        study: The whole study.
        run: The run's identifier.
        round_number: 1-based.
        weights: What trains of the global model and travels.
        frozen_sha256: Hash of what does not train of it, which every site has by itself.
        words: The vocabulary of a report task.
        reference: With data.harmonise, the grey levels that all sites' images are brought to:
            quantile functions, channel after channel (`common.harmonisation`); empty without.
        num_participants: Sites that take part in this round, this one included.
        countersignature: The server's countersignature of the ledger head that this site last
            sent, as JSON; empty if there is none to send.
        parcels: Under secure aggregation, the other sites' shares for this one
            (`secure_sum.wire`); empty without.
        weight: Under secure aggregation, this site's public weight in the mean.
        total_weight: The weights of all participants together.
        correction: With scaffold, what this site adds to its gradients in training: c - c_i, by
            parameter; None without, and where the model is evaluated.
        counted_round: The last round in which this site's update counted; 0 for none. With error
            feedback (`client.compression`) that decides what it still owes.
        packed_weights: What `weights` came in, if they came in a message and are not large.
    """

    study: StudyConfig
    run: str
    round_number: int
    weights: StateDict
    frozen_sha256: str
    words: tuple[str, ...] = ()
    reference: tuple[float, ...] = ()
    num_participants: int = 1
    countersignature: str = ""
    parcels: bytes = b""
    weight: int = 1
    total_weight: int = 1
    correction: StateDict | None = None
    counted_round: int = 0
    packed_weights: bytes = field(default=b"", repr=False, compare=False)

    def weights_digest(self) -> str:
        """Return the digest of `weights`."""
        packed = self.packed_weights
        return digest_of_packed(packed) if packed else digest(self.weights)

    def check_finite(self) -> None:
        """Check that no weight is NaN or infinite.

        Raises:
            MessageError: Naming the first array with one.
        """
        if self.packed_weights:
            check_finite_packed(self.packed_weights)
        else:
            check_finite(self.weights)


@dataclass(frozen=True, kw_only=True)
class WordsRequest:
    """The server asks which words of its reports a site will name."""

    study: StudyConfig
    run: str


@dataclass(frozen=True, kw_only=True)
class StatisticsRequest:
    """The server asks what a site will say of its training data."""

    study: StudyConfig
    run: str


@dataclass(frozen=True, kw_only=True)
class SecureRequest:
    """A phase of secure aggregation before or after training (`client.secure`).

    Attributes:
        study: The whole study.
        run: The run's identifier.
        round_number: 1-based.
        num_participants: Sites asked in the round's first phase.
        payload: The phase's content in `secure_sum.wire`'s format; empty when keys are asked for.
    """

    study: StudyConfig
    run: str
    round_number: int
    num_participants: int
    payload: bytes = b""


@dataclass(frozen=True, kw_only=True)
class SplitRequest:
    """Half a step of split learning (`client.split`): SPLIT_FRONT or SPLIT_BACK.

    Attributes:
        study: The whole study.
        run: The run's identifier.
        round_number: 1-based.
        step: 0-based step of the round that is asked for.
        frozen_sha256: Hash of what does not train of the model, which every site has by itself.
        arrays: SPLIT_FRONT: with step 0 the weights of front and back; else `GRADIENT`, of the last
            step's loss with respect to the front's output. SPLIT_BACK: `FEATURES`, the middle's
            output.
        reference: As in `ModelRequest`.
        num_participants: Sites that take part in this round, this one included.
        countersignature: As in `ModelRequest`; with step 0.
    """

    study: StudyConfig
    run: str
    round_number: int
    step: int
    frozen_sha256: str
    arrays: StateDict
    reference: tuple[float, ...] = ()
    num_participants: int = 1
    countersignature: str = ""


@dataclass(frozen=True, kw_only=True)
class JoinReply:
    """The site takes part."""

    site: str
    public_num_patients: int | None


@dataclass(frozen=True, kw_only=True)
class WordsReply:
    """The words that a site names, in alphabetical order.

    Attributes:
        site: The site's name.
        words: What its policy lets out.
        epsilon: What this data set has spent in all, after this; None if it cost nothing.
        ledger_head: Hash of the ledger entry that the words were charged to; empty without.
    """

    site: str
    words: tuple[str, ...]
    epsilon: float | None = None
    ledger_head: str = ""


@dataclass(frozen=True, kw_only=True)
class StatisticsReply:
    """What a site says of its training data.

    Attributes:
        site: The site's name.
        values: By quantity (`common.statistics`); NaN for what its policy keeps.
        min_count: Fewest patients that a number is about; 0 with noise.
        noise: secure, seeded or none.
        epsilon: What this data set has spent in all, after this; None if it cost nothing.
        ledger_head: Hash of the ledger entry that they were charged to; empty without.
    """

    site: str
    values: StateDict
    min_count: int
    noise: str
    epsilon: float | None = None
    ledger_head: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainReply:
    """A site's update.

    Attributes:
        site: The site's name.
        update: New minus global weights; under secure aggregation one masked vector, `MASKED`.
        num_examples: Training images; None under DP, where it is private.
        loss: Mean training loss; with qfedavg that of the weights that were sent; None under DP.
        epsilon: What this data set has spent in all, after this round; None without DP.
        noise: secure, seeded or none.
        ledger_head: Hash of the last entry of the site's ledger, for the server to countersign.
    """

    site: str
    update: StateDict
    num_examples: int | None
    loss: float | None
    epsilon: float | None
    noise: str
    ledger_head: str = ""


@dataclass(frozen=True, kw_only=True)
class SecureReply:
    """A site's part in a phase of secure aggregation, in `secure_sum.wire`'s format."""

    site: str
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class SplitReply:
    """What a site sends to the middle of the network.

    Attributes:
        site: The site's name.
        name: `ACTIVATIONS`, the front's output, or `GRADIENT`, of the mean loss with respect to
            the middle's output.
        array: float32 [B, ...].
    """

    site: str
    name: str
    array: Array


@dataclass(frozen=True, kw_only=True)
class EvaluateReply:
    """A site's metric sums over its held-out images; None where its policy releases none.

    Attributes:
        site: The site's name.
        sums: Of the model that the site uses.
        global_sums: Of the global model, where the site uses a personal one.
    """

    site: str
    sums: MetricSums | None
    global_sums: MetricSums | None = None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """The site said no."""

    site: str
    reason: RefusalReason


Reply = (
    JoinReply
    | WordsReply
    | StatisticsReply
    | TrainReply
    | SplitReply
    | EvaluateReply
    | SecureReply
    | Refusal
)
