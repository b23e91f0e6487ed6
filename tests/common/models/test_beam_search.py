"""Beam search against all reports there are, against greedy search, and on what it must not do."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from medfed.common.errors import StudyError
from medfed.common.losses import word_losses
from medfed.common.models.beam_search import Decoded, _highest, beam_search
from medfed.common.models.report_lstm import ReportModel
from medfed.common.text import BEGIN, END, PAD, UNKNOWN, Vocabulary

NUM_WORDS = 7
WORDS = range(4, NUM_WORDS)
GRID = (3, 4)
# 1 + 3 + 9 + 27 reports of up to three words.
MAX_TOKENS = 3
NUM_REPORTS = 40


class Eye(nn.Module):
    """The smallest encoder that follows the contract."""

    num_features = 5
    head = ("classifier",)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, self.num_features, kernel_size=2, stride=2)
        self.classifier = nn.Linear(self.num_features, 1)

    def grid(self, images: Tensor) -> Tensor:
        return torch.tanh(self.conv(images))


def _model(seed: int = 0, num_words: int = NUM_WORDS, end_bias: float = 0.0) -> ReportModel:
    """A model with strong opinions, so that reports differ in probability."""
    torch.manual_seed(seed)
    model = ReportModel(
        Eye(), num_words=num_words, embedding_size=4, hidden_size=6, attention_size=4
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
        model.output.bias[END] += end_bias
    return model.eval()


def _images(num: int = 3) -> Tensor:
    return torch.randn(num, 1, 6, 8, generator=torch.Generator().manual_seed(1))


def _search(
    model: ReportModel,
    images: Tensor,
    beam_size: int,
    max_tokens: int = MAX_TOKENS,
    length_penalty: float = 0.7,
) -> list[Decoded]:
    return beam_search(
        model, images, beam_size=beam_size, max_tokens=max_tokens, length_penalty=length_penalty
    )


def _log_probability(model: ReportModel, image: Tensor, words: tuple[int, ...]) -> float:
    """Teacher forcing: the words, and END after them."""
    with torch.no_grad():
        logits = model(image[None], torch.tensor([[BEGIN, *words]]))
    picked = logits[0].log_softmax(dim=1)[range(len(words) + 1), [*words, END]]
    return float(picked.double().sum())


def _score(log_probability: float, num_words: int, length_penalty: float) -> float:
    """Wu et al. 2016, equation 14; the length counts END."""
    return log_probability / ((5 + num_words + 1) / 6) ** length_penalty


def _all_reports() -> list[tuple[int, ...]]:
    reports = [
        words
        for length in range(MAX_TOKENS + 1)
        for words in itertools.product(WORDS, repeat=length)
    ]
    assert len(reports) == NUM_REPORTS
    return reports


def _same(one: list[Decoded], other: list[Decoded]) -> bool:
    return all(
        a.tokens == b.tokens
        and a.log_probability == pytest.approx(b.log_probability, abs=1e-4)
        and torch.allclose(a.attention, b.attention, atol=1e-5)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beam_finds_the_best_of_all_reports(seed: int, length_penalty: float) -> None:
    model, images = _model(seed), _images()
    found = _search(model, images, NUM_REPORTS + 1, length_penalty=length_penalty)
    for image, decoded in zip(images, found, strict=True):
        scores = {
            words: _score(_log_probability(model, image, words), len(words), length_penalty)
            for words in _all_reports()
        }
        best = max(scores, key=lambda words: scores[words])
        assert decoded.tokens == best
        assert decoded.log_probability == pytest.approx(
            _log_probability(model, image, best), abs=1e-4
        )


def test_best_reports_differ_in_length_between_seeds_and_penalties() -> None:
    """Else the test above could not tell a search from a constant."""
    lengths = {
        len(decoded.tokens)
        for seed in range(4)
        for penalty in (0.0, 2.0)
        for decoded in _search(_model(seed), _images(), NUM_REPORTS + 1, length_penalty=penalty)
    }
    assert len(lengths) >= 3


def _greedy(model: ReportModel, image: Tensor, max_tokens: int) -> tuple[int, ...]:
    words: list[int] = []
    while len(words) < max_tokens:
        with torch.no_grad():
            logits = model(image[None], torch.tensor([[BEGIN, *words]]))[0, -1]
        logits[[PAD, BEGIN, UNKNOWN]] = float("-inf")
        word = int(logits.argmax())
        if word == END:
            break
        words.append(word)
    return tuple(words)


@pytest.mark.parametrize("seed", [1, 2, 5, 6, 7])
def test_one_beam_is_greedy_search(seed: int) -> None:
    model, images = _model(seed, num_words=15, end_bias=1.0), _images(6)
    found = _search(model, images, 1, max_tokens=8)
    assert [decoded.tokens for decoded in found] == [_greedy(model, i, 8) for i in images]


@pytest.mark.parametrize("beam_size", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_report_is_scored_as_teacher_forcing_scores_it(seed: int, beam_size: int) -> None:
    model, images = _model(seed, num_words=15, end_bias=-1.0), _images()
    found = _search(model, images, beam_size, max_tokens=7)
    assert any(decoded.tokens for decoded in found)
    for image, decoded in zip(images, found, strict=True):
        expected = _log_probability(model, image, decoded.tokens)
        assert decoded.log_probability == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_attention_is_where_the_model_looked_for_each_word(beam_size: int) -> None:
    model, images = _model(7, num_words=15, end_bias=1.0), _images()
    for image, decoded in zip(images, _search(model, images, beam_size, 6), strict=True):
        assert decoded.attention.shape == (len(decoded.tokens), *GRID)
        state = model.start(image[None])
        for previous, seen in zip([BEGIN, *decoded.tokens], decoded.attention, strict=False):
            with torch.no_grad():
                _, attention, state = model.step(state, torch.tensor([previous]))
            torch.testing.assert_close(seen, attention.view(GRID))
            assert float(seen.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_an_image_is_read_the_same_alone_and_in_any_batch(beam_size: int) -> None:
    model, images = _model(7, num_words=15, end_bias=1.0), _images(6)
    together = _search(model, images, beam_size, 8)
    assert len({len(decoded.tokens) for decoded in together}) > 1
    alone = [_search(model, image[None], beam_size, 8)[0] for image in images]
    assert _same(together, alone)
    assert _same(together[::-1], _search(model, images.flip(0), beam_size, 8))
    assert _search(model, images[:0], beam_size) == []


@pytest.mark.parametrize("beam_size", [1, 3])
def test_report_ends_when_no_more_words_are_allowed(beam_size: int) -> None:
    model, images = _model(end_bias=-50.0), _images()
    for max_tokens in (0, 1, 4):
        for image, decoded in zip(
            images, _search(model, images, beam_size, max_tokens), strict=True
        ):
            assert len(decoded.tokens) == max_tokens
            assert decoded.log_probability < -40
            assert decoded.log_probability == pytest.approx(
                _log_probability(model, image, decoded.tokens), abs=1e-3
            )


@pytest.mark.parametrize("beam_size", [1, 3, NUM_REPORTS])
def test_reserved_tokens_are_never_written(beam_size: int) -> None:
    model = _model()
    with torch.no_grad():
        model.output.bias[[PAD, BEGIN, UNKNOWN]] += 20.0
    found = _search(model, _images(), beam_size)
    assert {word for decoded in found for word in decoded.tokens} <= set(WORDS)
    # Their probability is not given to the others.
    assert all(decoded.log_probability < -10 for decoded in found)


def test_penalty_never_shortens_the_best_report() -> None:
    model, images = _model(1), _images(8)
    lengths = [
        [len(d.tokens) for d in _search(model, images, NUM_REPORTS, length_penalty=penalty)]
        for penalty in (0.0, 0.5, 1.0, 2.0, 5.0)
    ]
    for shorter, longer in itertools.pairwise(lengths):
        assert all(a <= b for a, b in zip(shorter, longer, strict=True))
    assert sum(lengths[0]) < sum(lengths[-1])


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.8, 4.0, 6.0])
def test_length_is_that_of_the_closed_form(length_penalty: float) -> None:
    """One word with probability 0.2 and END with 0.7, always: either nothing or all ten words.

    The change is at ln(1 + 10 ln 0.2 / ln 0.7) / ln(16 / 6) = 3.906.
    """
    model, most = _model(num_words=5), 10
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias[:] = torch.tensor([0, 0, 0.7, 0.1, 0.2]).log()
    scores = [
        (num * math.log(0.2) + math.log(0.7)) / ((5 + num + 1) / 6) ** length_penalty
        for num in range(most + 1)
    ]
    expected = scores.index(max(scores))
    (decoded,) = _search(model, _images(1), most + 2, most, length_penalty)
    assert decoded.tokens == (4,) * expected


def test_wider_beam_finds_no_less_without_a_penalty_on_this_model() -> None:
    model, images = _model(2), _images(8)
    sums = [
        sum(d.log_probability for d in _search(model, images, beams, length_penalty=0.0))
        for beams in (1, 4, NUM_REPORTS)
    ]
    assert sums[0] < sums[-1]
    assert sums[1] <= sums[-1] + 1e-4


@pytest.mark.parametrize("beam_size", [1, 2, 3])
def test_of_equal_words_the_lowest_ids_win(beam_size: int) -> None:
    model = _model()
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()
        model.output.bias[END] = -1.0
    # Every word is as likely as another, and likelier than END. Without a penalty of length the
    # shortest report wins as soon as END is among the candidates: behind the three words of one
    # beam, so only a beam of four would see it.
    found = _search(model, _images(), beam_size, max_tokens=3, length_penalty=0.0)
    assert [decoded.tokens for decoded in found] == [(4, 4, 4)] * 3
    with torch.no_grad():
        model.output.bias[END] = 0.0
    # END, id 2, comes before the words.
    assert [decoded.tokens for decoded in _search(model, _images(), beam_size)] == [()] * 3


def test_highest_equals_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(6)
    for count in (1, 4, 30):
        values = torch.randint(-3, 3, (50, 30), generator=generator).float()
        values[values == -3] = float("-inf")
        highest, index = _highest(values, count)
        expected, order = values.sort(dim=1, descending=True, stable=True)
        assert torch.equal(highest, expected[:, :count])
        assert torch.equal(index, order[:, :count])


@pytest.mark.parametrize("beam_size", [1, 3])
def test_model_that_diverged_writes_nothing(beam_size: int) -> None:
    model = _model()
    with torch.no_grad():
        model.output.weight.fill_(float("nan"))
    for decoded in _search(model, _images(), beam_size):
        assert decoded.tokens == ()
        assert decoded.log_probability == float("-inf")
        assert decoded.attention.shape == (0, *GRID)


@pytest.mark.parametrize(("beams", "words", "penalty"), [(0, 3, 1.0), (2, -1, 1.0), (2, 3, -0.5)])
def test_impossible_searches_are_refused(beams: int, words: int, penalty: float) -> None:
    with pytest.raises(StudyError, match=rf"got {beams}, {words} and {penalty}.*\[task\]"):
        _search(_model(), _images(), beams, words, penalty)


def test_model_learns_reports_by_heart_and_beam_search_writes_them() -> None:
    texts = [
        "no pleural effusion . heart size normal .",
        "small effusion on the left .",
        "small effusion on the right .",
        "large effusion on the left . heart enlarged .",
        "large effusion on the right .",
        "heart enlarged .",
        "no effusion .",
        "",
    ]
    vocabulary = Vocabulary(sorted({word for text in texts for word in text.split()}))
    max_tokens = 10
    tokens = torch.stack([torch.from_numpy(vocabulary.encode(text, max_tokens)) for text in texts])
    torch.manual_seed(7)
    images = torch.randn(len(texts), 1, 6, 8)
    model = ReportModel(
        Eye(), num_words=len(vocabulary), embedding_size=16, hidden_size=32, attention_size=16
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        losses = word_losses(model(images, tokens[:, :-1]), tokens[:, 1:], PAD)
        losses.mean().backward()
        optimizer.step()
    for beam_size in (1, 3):
        found = _search(model.eval(), images, beam_size, max_tokens)
        assert [" ".join(vocabulary.tokens(d.tokens)) for d in found] == texts
        assert all(d.log_probability > -0.7 for d in found)
