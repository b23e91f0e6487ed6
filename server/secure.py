"""The server's side of one round of secure aggregation. It sees masked vectors and their sum.

    on_keys   for each site asked,     then roster()       to each that answered
    on_shares for each of those,       then parcels(site)  to each of sharers(), to train
    on_masked for each of those,       then survivors()    to each of summed
    on_reveal for each of those,       then result()

A phase ends when its summary is asked for; who has not answered by then has dropped out. The round
is lost when fewer sites than the threshold are left. Masked vectors are folded into one accumulator
as they come, so memory does not grow with the number of sites.

A wrong share is found by its commitment and left out; a site that shared out wrong secrets is found
by the commitment to its self seed, or by its public key, and named in `culprits`.

Reference: Bonawitz et al. 2017, https://eprint.iacr.org/2017/281.
"""

from collections.abc import Callable, Collection
from hmac import compare_digest

import numpy as np

from medfed.common.errors import MessageError, RunError
from medfed.common.secure_sum import agreement, shamir, wire
from medfed.common.secure_sum.context import RoundContext
from medfed.common.secure_sum.masking import Vector, add_masks, subtract_masks


class SecureRound:
    """One round; call its methods in the order of the phases.

    Args:
        context: The round.
        sites: Names of the sites asked.
        num_values: Length of the vectors to sum.

    Attributes:
        culprits: Sites that sent something wrong on purpose or through damage, found in `result`.
            A share that does not fit may be its holder's fault or its owner's: the holder is named.
    """

    def __init__(self, context: RoundContext, sites: Collection[str], num_values: int) -> None:
        if len(set(sites)) != len(sites) or len(sites) != context.num_participants:
            raise ValueError("Expected context.num_participants different sites.")
        self._context = context
        self._awaited = set(sites)
        self._phase = 1
        self._keys: dict[str, wire.PublicKeys] = {}
        self._shares: dict[str, wire.Shares] = {}
        self._survivors: set[str] = set()
        self._sum: Vector = np.zeros(num_values, dtype=np.uint32)
        self._reveals: dict[str, wire.Reveal] = {}
        self.culprits: set[str] = set()

    def on_keys(self, site: str, answer: bytes) -> None:
        """Take a site's public keys; MessageError if they cannot be used."""
        self._expect(site, 1)
        keys = wire.PublicKeys.from_bytes(answer)
        taken = {raw for known in self._keys.values() for raw in (known.channel, known.mask)}
        if {keys.channel, keys.mask} & taken or keys.channel == keys.mask:
            raise MessageError(f"{site} offered a key that is taken.")
        self._keys[site] = keys
        self._awaited.discard(site)

    def roster(self) -> bytes:
        """Return everyone's keys for everyone who offered some.

        Raises:
            RunError: Too few.
        """
        self._close(1, self._keys)
        return wire.pack_roster(self._keys)

    @property
    def offered(self) -> frozenset[str]:
        """The sites whose keys came."""
        return frozenset(self._keys)

    def on_shares(self, site: str, answer: bytes) -> None:
        """Take a site's shared secrets; MessageError if they cannot be used."""
        self._expect(site, 2)
        shares = wire.Shares.from_bytes(answer)
        everyone = set(self._keys)
        if set(shares.parcels) != everyone - {site} or set(shares.share_commitments) != everyone:
            raise MessageError(f"{site} did not share its secrets with exactly the others.")
        self._shares[site] = shares
        self._awaited.discard(site)

    def sharers(self) -> frozenset[str]:
        """Return who may train: the sites whose shares came.

        Raises:
            RunError: Too few.
        """
        self._close(2, self._shares)
        return frozenset(self._shares)

    def parcels(self, site: str) -> bytes:
        """Return the others' parcels for one of `sharers`."""
        if self._phase != 3 or site not in self._shares:
            raise ValueError("Expected one of sharers(), called before.")
        return wire.pack_parcels(
            {name: s.parcels[site] for name, s in self._shares.items() if name != site}
        )

    def on_masked(self, site: str, vector: Vector) -> None:
        """Fold a masked vector in; MessageError if it cannot be used: nothing was added."""
        self._expect(site, 3)
        if vector.dtype != np.uint32 or vector.shape != self._sum.shape:
            raise MessageError(
                f"{site}: expected {self._sum.size} masked values of uint32, got {vector.dtype} of "
                f"shape {list(vector.shape)}."
            )
        self._sum += vector  # modulo 2**32, so the order does not matter
        self._survivors.add(site)
        self._awaited.discard(site)

    def survivors(self) -> bytes:
        """Return, for each of them, who stayed.

        Raises:
            RunError: Too few.
        """
        self._close(3, self._survivors)
        return wire.pack_names(self._survivors)

    @property
    def summed(self) -> frozenset[str]:
        """The sites whose vectors are in the sum."""
        return frozenset(self._survivors)

    def on_reveal(self, site: str, answer: bytes) -> None:
        """Take a survivor's shares; MessageError if they cannot be used."""
        self._expect(site, 4)
        reveal = wire.Reveal.from_bytes(answer)
        dropped = set(self._shares) - self._survivors
        if set(reveal.seeds) != self._survivors or set(reveal.keys) != dropped:
            raise MessageError(f"{site} did not reveal what it was asked for.")
        self._reveals[site] = reveal
        self._awaited.discard(site)

    def result(self) -> Vector:
        """Return the exact sum over `summed`, modulo 2**32.

        Raises:
            RunError: Too few shares, or a site shared out wrong secrets (see `culprits`).
        """
        self._close(4, self._reveals)
        context = self._context
        # Both first: nothing is unmasked unless all of it will be.
        seeds = {owner: self._seed_of(owner) for owner in sorted(self._survivors)}
        dropped = sorted(set(self._shares) - self._survivors)
        private = {owner: self._mask_key_of(owner) for owner in dropped}
        subtract_masks(
            self._sum, [agreement.self_key(context, seed, owner) for owner, seed in seeds.items()]
        )
        for owner, key in private.items():
            pairs = {
                name: agreement.pair_key(context, key, self._keys[name].mask, owner, name)
                for name in self._survivors
            }
            # Undo what each survivor did with the mask it shared with the one that left.
            subtract_masks(self._sum, [pair for name, pair in pairs.items() if name < owner])
            add_masks(self._sum, [pair for name, pair in pairs.items() if name > owner])
        return self._sum

    def _seed_of(self, owner: str) -> bytes:
        def right(seed: bytes) -> bool:
            made = agreement.commit(self._context, agreement.SEED, seed, owner)
            return compare_digest(made, self._shares[owner].seed_commitment)

        shares = {name: reveal.seeds[owner] for name, reveal in self._reveals.items()}
        return self._open(owner, agreement.SEED, shares, right)

    def _mask_key_of(self, owner: str) -> bytes:
        def right(key: bytes) -> bool:
            return compare_digest(agreement.public_key(key), self._keys[owner].mask)

        shares = {name: reveal.keys[owner] for name, reveal in self._reveals.items()}
        return self._open(owner, agreement.KEY, shares, right)

    def _open(
        self, owner: str, what: str, shares: dict[str, bytes], right: Callable[[bytes], bool]
    ) -> bytes:
        """Join the shares that fit their commitments and check what comes out."""
        place = 0 if what == agreement.SEED else 1
        commitments = self._shares[owner].share_commitments
        good: dict[int, bytes] = {}
        for number, name in enumerate(sorted(self._keys), start=1):
            if name not in shares:
                continue
            made = agreement.commit(self._context, what, shares[name], owner, name)
            if compare_digest(made, commitments[name][place]):
                good[number] = shares[name]
            else:
                self.culprits.add(name)
        needed = self._context.threshold
        if len(good) < needed:
            raise RunError(
                f"Expected {needed} right shares of {owner}'s {what}, got {len(good)}; wrong ones "
                f"came from {', '.join(sorted(self.culprits)) or 'nobody'}. The round is lost; "
                "repeat it, without them if it happens again."
            )
        try:
            secret = shamir.join(dict(list(good.items())[:needed]))
        except ValueError:
            secret = b""
        if len(secret) != shamir.SECRET_BYTES or not right(secret):
            self.culprits.add(owner)
            raise RunError(
                f"{owner} shared out a {what} that is not the one it committed to. The round is "
                f"lost; repeat it without {owner}."
            )
        return secret

    def _expect(self, site: str, phase: int) -> None:
        if self._phase != phase or site not in self._awaited:
            raise MessageError(f"An answer of {site} came twice, too late, or was not asked for.")

    def _close(self, phase: int, came: Collection[str]) -> None:
        """End a phase: those that `came` are asked next."""
        if self._phase != phase:
            raise ValueError(f"Phase {phase} was ended before, or is still to come.")
        needed = self._context.threshold
        if len(came) < needed:
            step = ("keys", "shares", "masked updates", "reveals")[phase - 1]
            raise RunError(
                f"Secure aggregation of round {self._context.round_number}: {len(came)} sites sent "
                f"{step}, {needed} are needed. Nothing of their updates is known. Repeat the round "
                "once the sites are back, or lower secure_aggregation.threshold."
            )
        self._phase += 1
        self._awaited = set(came)
