"""A site's side of one round of secure aggregation: steps in this order, each possible once.

    offer_keys      -> public keys
    share_secrets   <- everyone's keys      -> the own secrets, shared out and encrypted
    receive_shares  <- the others' parcels     before the site trains, or spends anything
    mask                                    -> the masked vector
    reveal          <- who stayed           -> shares that unmask the sum

Between the steps a `SiteState` is kept at the site; it holds private keys and never leaves.

What the site itself sees to, whatever the server says: the threshold is more than half of the
sites asked; no vector leaves under masks that fewer than the threshold share; masks serve one
vector only (two under the same masks would tell their difference); of one owner it reveals its
share of the self seed or of the mask key, never both, and only once; and only if it stayed itself.

What it cannot see: whether keys that the server hands it are the other sites' own. docs/adr/0010
says what is protected against whom.

Reference: Bonawitz et al. 2017, https://eprint.iacr.org/2017/281.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from medfed.common.errors import MessageError, RefusalReason, SiteRefusal
from medfed.common.secure_sum import agreement, shamir, wire
from medfed.common.secure_sum.context import RoundContext
from medfed.common.secure_sum.masking import Vector, add_masks, subtract_masks

Step = Literal["keys offered", "secrets shared", "shares received", "masked", "revealed"]


@dataclass(frozen=True, kw_only=True)
class SiteState:
    """What a site remembers of a round. Secret: it stays in the site's memory.

    Attributes:
        context: The round.
        site: The site's own name.
        step: The last step taken.
        channel_key: X25519 private key for parcels.
        mask_key: X25519 private key for pair masks.
        seed: Seed of the site's own mask, from `share_secrets` on.
        keys: Everyone's public keys, from `share_secrets` on.
        shares: By owner, this site's shares of its self seed and mask key; the own ones from
            `share_secrets` on, the others' from `receive_shares` on.
    """

    context: RoundContext
    site: str
    step: Step
    channel_key: bytes
    mask_key: bytes
    seed: bytes = b""
    keys: Mapping[str, wire.PublicKeys] = field(default_factory=dict)
    shares: Mapping[str, tuple[bytes, bytes]] = field(default_factory=dict)

    @property
    def num_sharers(self) -> int:
        """After `receive_shares`: sites that masks are shared with, this one included."""
        return len(self.shares)

    def to_bytes(self) -> bytes:
        """Return the state as JSON."""
        values: dict[str, Any] = {
            "context": asdict(self.context),
            "site": self.site,
            "step": self.step,
            "channel_key": self.channel_key.hex(),
            "mask_key": self.mask_key.hex(),
            "seed": self.seed.hex(),
            "keys": {name: [k.channel.hex(), k.mask.hex()] for name, k in self.keys.items()},
            "shares": {name: [s.hex() for s in both] for name, both in self.shares.items()},
        }
        return json.dumps(values).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> "SiteState":
        """Read a state that `to_bytes` wrote."""
        values = json.loads(raw)
        text = bytes.fromhex
        return cls(
            context=RoundContext(**values["context"]),
            site=values["site"],
            step=values["step"],
            channel_key=text(values["channel_key"]),
            mask_key=text(values["mask_key"]),
            seed=text(values["seed"]),
            keys={
                name: wire.PublicKeys(channel=text(channel), mask=text(mask))
                for name, (channel, mask) in values["keys"].items()
            },
            shares={n: (text(seed), text(key)) for n, (seed, key) in values["shares"].items()},
        )


def offer_keys(context: RoundContext, site: str) -> tuple[SiteState, bytes]:
    """Begin a round: fresh keys from the operating system."""
    channel_key, mask_key = agreement.new_key(), agreement.new_key()
    state = SiteState(
        context=context,
        site=site,
        step="keys offered",
        channel_key=channel_key,
        mask_key=mask_key,
    )
    keys = wire.PublicKeys(
        channel=agreement.public_key(channel_key), mask=agreement.public_key(mask_key)
    )
    return state, keys.to_bytes()


def share_secrets(state: SiteState, roster: bytes) -> tuple[SiteState, bytes]:
    """Share the own secrets among the sites of `roster` (`wire.pack_roster`), this one included.

    Raises:
        SiteRefusal: Too few or too many sites, or the own keys were exchanged.
        MessageError: Damaged, two sites with one key, or a key of low order.
    """
    _expect(state, "keys offered")
    keys = wire.unpack_roster(roster)
    _check_roster(state, keys)
    context, site, seed = state.context, state.site, os.urandom(shamir.SECRET_BYTES)
    shares = dict(
        zip(
            keys,  # in alphabetical order: a site's number is its place in it
            zip(
                shamir.split(seed, context.threshold, len(keys)),
                shamir.split(state.mask_key, context.threshold, len(keys)),
                strict=True,
            ),
            strict=True,
        )
    )
    message = wire.Shares(
        seed_commitment=agreement.commit(context, agreement.SEED, seed, site),
        share_commitments={
            name: (
                agreement.commit(context, agreement.SEED, both[0], site, name),
                agreement.commit(context, agreement.KEY, both[1], site, name),
            )
            for name, both in shares.items()
        },
        parcels={
            name: agreement.seal_parcel(
                context, state.channel_key, keys[name].channel, site, name, both
            )
            for name, both in shares.items()
            if name != site
        },
    )
    after = replace(state, step="secrets shared", seed=seed, keys=keys, shares={site: shares[site]})
    return after, message.to_bytes()


def receive_shares(state: SiteState, parcels: bytes) -> SiteState:
    """Open the other sites' parcels for this one (`wire.pack_parcels`).

    Their senders are the sites that masks are shared with; `num_sharers` counts them, for the
    site's policy to judge.

    Raises:
        SiteRefusal: Fewer sites than the threshold.
        MessageError: Damaged parcels, or one of a site that offered no keys.
    """
    _expect(state, "secrets shared")
    context, site = state.context, state.site
    received = wire.unpack_parcels(parcels)
    if len(received) + 1 < context.threshold:
        raise _refusal(
            f"{len(received) + 1} sites shared their secrets, {context.threshold} must have."
        )
    if site in received or not set(received) <= set(state.keys):
        raise MessageError("Expected parcels of the other sites of the round, got others.")
    shares = dict(state.shares)
    for name, parcel in received.items():
        shares[name] = agreement.open_parcel(
            context, state.channel_key, state.keys[name].channel, name, site, parcel
        )
    return replace(state, step="shares received", shares=shares)


def mask(state: SiteState, vector: Vector) -> SiteState:
    """Mask this site's 1-D `vector` in place, once: from then on it may leave.

    Returns:
        The state after it. Keep it before the vector leaves.

    Raises:
        SiteRefusal: This round's masks were used, or are not agreed on.
        MessageError: A key of low order.
    """
    _expect(state, "shares received")
    context, site = state.context, state.site
    own = agreement.self_key(context, state.seed, site)
    pairs = {
        name: agreement.pair_key(context, state.mask_key, state.keys[name].mask, site, name)
        for name in state.shares
        if name != site
    }
    # Of two sites, the first by name adds the mask that both share and the other subtracts it.
    add_masks(vector, [own, *(key for name, key in pairs.items() if site < name)])
    subtract_masks(vector, [key for name, key in pairs.items() if site > name])
    return replace(state, step="masked")


def reveal(state: SiteState, survivors: bytes) -> tuple[SiteState, bytes]:
    """Return the shares that unmask the sum over `survivors` (`wire.pack_names`).

    The state after it holds no secrets any more. Keep it before the answer leaves: a second list
    could ask for the other secret of a site.

    Raises:
        SiteRefusal: Fewer survivors than the threshold, without this site, or not of the round.
        MessageError: Damaged.
    """
    _expect(state, "masked")
    stayed = wire.unpack_names(survivors)
    if len(stayed) < state.context.threshold:
        raise _refusal(f"{len(stayed)} sites stayed, {state.context.threshold} must have.")
    if state.site not in stayed or not stayed <= set(state.shares):
        raise _refusal("the sites said to have stayed are not those that shared secrets.")
    answer = wire.Reveal(
        seeds={name: both[0] for name, both in state.shares.items() if name in stayed},
        keys={name: both[1] for name, both in state.shares.items() if name not in stayed},
    )
    after = replace(state, step="revealed", channel_key=b"", mask_key=b"", seed=b"", shares={})
    return after, answer.to_bytes()


def _expect(state: SiteState, step: Step) -> None:
    if state.step != step:
        raise _refusal(
            f'expected the step after "{step}", the site is at "{state.step}".',
            RefusalReason.INTERNAL,
        )


def _check_roster(state: SiteState, keys: Mapping[str, wire.PublicKeys]) -> None:
    context = state.context
    if not context.threshold <= len(keys) <= context.num_participants:
        raise _refusal(
            f"{len(keys)} sites offered keys; {context.num_participants} were asked and "
            f"{context.threshold} are needed."
        )
    own = wire.PublicKeys(
        channel=agreement.public_key(state.channel_key), mask=agreement.public_key(state.mask_key)
    )
    if keys.get(state.site) != own:
        raise _refusal("the keys shown as this site's own are not.", RefusalReason.INTERNAL)
    single = {raw for each in keys.values() for raw in (each.channel, each.mask)}
    if len(single) != 2 * len(keys):
        raise MessageError("Expected a key of its own for each site, got one twice.")


def _refusal(detail: str, reason: RefusalReason = RefusalReason.POLICY) -> SiteRefusal:
    # Internal is not for good: a server that asks twice, or a kill, brings it about, too.
    return SiteRefusal(reason, f"Secure aggregation: {detail} Nothing more is sent in this round.")
