"""Beam search: the most probable report, approximately, and where the model looked for each word.

At each length every unfinished beam is continued by every word; the best `beam_size` of all
continuations count. Those that end there are finished, and the best unfinished ones go on. An image
is done when no unfinished report can become the best, or when `beam_size` of them have finished
ahead of all unfinished ones (if any finished report counted, `beam_size` bad and short ones would
stop a good one half-way). One beam is greedy search; a beam as wide as there are reports finds the
very best.

Scores are log-probabilities divided by ((5 + length) / 6) ** length_penalty, or a longer report
would always be less probable.

Reference: Wu et al. 2016, https://arxiv.org/abs/1609.08144, equation 14 without the coverage term.

Shapes: B images, K beams of each, R = B K rows, V vocabulary, N candidates, G cells of the grid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from medfed.common.errors import StudyError
from medfed.common.models.report_lstm import ReportModel
from medfed.common.text import BEGIN, END, PAD, UNKNOWN

_NEVER = float("-inf")


@dataclass(frozen=True)
class Decoded:
    """One image's report.

    Attributes:
        tokens: Ids of its words, without BEGIN and END.
        log_probability: Of the words and the END after them, natural logarithm; not normalised by
            length. Minus infinity if the model gives no finite probabilities.
        attention: Where the model looked for each word, [len(tokens), *grid] on the CPU; each map
            has sum 1.
    """

    tokens: tuple[int, ...]
    log_probability: float
    attention: Tensor


@torch.inference_mode()
def beam_search(
    model: ReportModel,
    images: Tensor,
    *,
    beam_size: int,
    max_tokens: int,
    length_penalty: float,
) -> list[Decoded]:
    """Write a report for each of `images`.

    PAD, BEGIN and UNKNOWN are never written; their probability is not spread over the others, so
    that `log_probability` is that of teacher forcing. Of equal candidates the one from the earlier
    beam, then that with the lower id, comes first.

    Args:
        model: In evaluation mode, if it has layers that care.
        images: [B, C, *S].
        beam_size: K.
        max_tokens: Most words of a report; after that many, only END may follow.
        length_penalty: 0 compares log-probabilities as they are; 0.6 to 1 suit reports. The length
            counts END.

    Raises:
        StudyError: A beam size below 1, or a negative number of words or penalty.
    """
    if beam_size < 1 or max_tokens < 0 or length_penalty < 0:
        raise StudyError(
            "Expected beam_size >= 1, max_tokens >= 0 and length_penalty >= 0, got "
            f"{beam_size}, {max_tokens} and {length_penalty}. Set them under [task]."
        )
    state = model.start(images).repeated(beam_size)
    search = _Search(len(images), beam_size, max_tokens + 1, length_penalty, images.device)
    while search.goes_on():
        log_probs_RV, attention_RG, state = model.step(state, search.last_words_R)
        rows_R = search.extend(log_probs_RV, attention_RG)
        state = state.following(rows_R)
    return search.best(state.grid_shape)


@dataclass(frozen=True)
class _Extension:
    """How the beams grew by one word: what led to each new beam."""

    parents_BK: Tensor
    words_BK: Tensor
    attention_BKG: Tensor


class _Search:
    """The beams of all images, which are always of the same length."""

    def __init__(
        self,
        num_images: int,
        beam_size: int,
        max_length: int,
        length_penalty: float,
        device: torch.device,
    ) -> None:
        self._num_images = num_images
        self._beam_size = beam_size
        self._max_length = max_length
        self._length_penalty = length_penalty
        self._length = 0
        self._extensions: list[_Extension] = []
        # Log-probabilities of unfinished beams; at first all are the same empty report: keep one.
        self._alive_BK = torch.full((num_images, beam_size), _NEVER, device=device)
        self._alive_BK[:, 0] = 0.0
        self._first_rows_B1 = beam_size * torch.arange(num_images, device=device)[:, None]
        self.last_words_R = torch.full((num_images * beam_size,), BEGIN, device=device)
        # Of the best finished report: its score, log-probability, length with END, last beam.
        self._score_B = torch.full((num_images,), _NEVER, device=device)
        self._log_prob_B = self._score_B.clone()
        self._best_length_B = torch.zeros_like(self._score_B, dtype=torch.int64)
        self._best_beam_B = torch.zeros_like(self._best_length_B)
        self._num_ahead_B = torch.zeros_like(self._best_length_B)

    def goes_on(self) -> bool:
        """Whether any image has an unfinished beam worth continuing."""
        return self._length < self._max_length and bool((self._alive_BK > _NEVER).any())

    def extend(self, log_probs_RV: Tensor, attention_RG: Tensor) -> Tensor:
        """Take one more word into every beam; return the row [R] that each new beam comes from."""
        self._length += 1
        num_words = log_probs_RV.shape[1]
        log_probs_RV = self._allowed(log_probs_RV)
        totals_BKV = self._alive_BK[..., None] + log_probs_RV.view(-1, self._beam_size, num_words)
        # Twice as many: a beam ends in at most one way, so beam_size of these go on.
        totals_BN, index_BN = _highest(totals_BKV.flatten(1), 2 * self._beam_size)
        parents_BN, words_BN = index_BN // num_words, index_BN % num_words
        self._finish(totals_BN, parents_BN, words_BN == END)
        return self._continue(totals_BN, parents_BN, words_BN, attention_RG)

    def best(self, grid_shape: tuple[int, ...]) -> list[Decoded]:
        """Return each image's best report, read backwards from its end."""
        if not self._extensions:
            return []
        parents = torch.stack([e.parents_BK for e in self._extensions]).tolist()
        words = torch.stack([e.words_BK for e in self._extensions]).tolist()
        log_probs = self._log_prob_B.tolist()
        reports = []
        for image, beam in enumerate(self._best_beam_B.tolist()):
            tokens: list[int] = []
            maps: list[Tensor] = []
            for step in reversed(range(int(self._best_length_B[image]) - 1)):
                tokens.append(words[step][image][beam])
                beam = parents[step][image][beam]
                maps.append(self._extensions[step].attention_BKG[image, beam])
            attention = torch.stack(maps[::-1]).cpu() if maps else torch.zeros(0)
            attention = attention.view(len(maps), *grid_shape)
            reports.append(Decoded(tuple(tokens[::-1]), log_probs[image], attention))
        return reports

    def _allowed(self, log_probs_RV: Tensor) -> Tensor:
        allowed_V = torch.ones(log_probs_RV.shape[1], dtype=torch.bool, device=log_probs_RV.device)
        allowed_V[[PAD, BEGIN, UNKNOWN]] = False
        if self._length == self._max_length:
            allowed_V[:] = False
            allowed_V[END] = True
        # A model that diverged gives NaN, which compares with nothing.
        return log_probs_RV.masked_fill(log_probs_RV.isnan() | ~allowed_V, _NEVER)

    def _finish(self, totals_BN: Tensor, parents_BN: Tensor, is_end_BN: Tensor) -> None:
        """Keep the best report that ends here if it beats what there is, and count those ahead."""
        finished_BN = is_end_BN & (totals_BN > _NEVER)
        finished_BN[:, self._beam_size :] = False
        is_ahead_BN = (~is_end_BN).cumsum(dim=1) == 0
        self._num_ahead_B += (finished_BN & is_ahead_BN).sum(dim=1)
        # Candidates come best first, so the first that ends is the best of this length.
        first_B1 = finished_BN.int().argmax(dim=1, keepdim=True)
        log_prob_B = totals_BN.masked_fill(~finished_BN, _NEVER).gather(1, first_B1).squeeze(1)
        score_B = log_prob_B / self._normaliser(self._length)
        better_B = score_B > self._score_B
        self._score_B = torch.where(better_B, score_B, self._score_B)
        self._log_prob_B = torch.where(better_B, log_prob_B, self._log_prob_B)
        self._best_beam_B = torch.where(
            better_B, parents_BN.gather(1, first_B1).squeeze(1), self._best_beam_B
        )
        self._best_length_B = self._best_length_B.masked_fill(better_B, self._length)

    def _continue(
        self, totals_BN: Tensor, parents_BN: Tensor, words_BN: Tensor, attention_RG: Tensor
    ) -> Tensor:
        """Make the best candidates that do not end the new beams."""
        is_end_BN = words_BN == END
        # Stable: those that do not end come first, still best first.
        order_BK = is_end_BN.int().argsort(dim=1, stable=True)[:, : self._beam_size]
        parents_BK, words_BK = parents_BN.gather(1, order_BK), words_BN.gather(1, order_BK)
        alive_BK = totals_BN.masked_fill(is_end_BN, _NEVER).gather(1, order_BK)
        # Longer divides by more, and no word adds probability: a bound for all that may follow.
        most_B = alive_BK.amax(dim=1) / self._normaliser(self._max_length)
        done_B = (self._num_ahead_B >= self._beam_size) | (self._score_B >= most_B)
        self._alive_BK = alive_BK.masked_fill(done_B[:, None], _NEVER)
        rows_RG = attention_RG.view(self._num_images, self._beam_size, -1)
        self._extensions.append(_Extension(parents_BK, words_BK, rows_RG))
        self.last_words_R = words_BK.flatten()
        return (self._first_rows_B1 + parents_BK).flatten()

    def _normaliser(self, length: int) -> float:
        return float(((5 + length) / 6) ** self._length_penalty)


def _highest(values_BN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` highest values of each row, highest first, and their indices.

    Of equal values the lowest indices, in order. `torch.topk` promises neither, and a stable sort
    of everything takes longer than the model.
    """
    lowest_B1 = values_BN.topk(count, dim=1).values[:, -1:]
    above_BN, equal_BN = values_BN > lowest_B1, values_BN == lowest_B1
    places_left_B1 = count - above_BN.sum(dim=1, keepdim=True)
    among_equals_BN = equal_BN.cumsum(dim=1, dtype=torch.int32)
    chosen_BN = above_BN | (equal_BN & (among_equals_BN <= places_left_B1))
    index_BN = chosen_BN.nonzero()[:, 1].view(-1, count)
    highest_BN, order_BN = values_BN.gather(1, index_BN).sort(dim=1, descending=True, stable=True)
    return highest_BN, index_BN.gather(1, order_BN)
