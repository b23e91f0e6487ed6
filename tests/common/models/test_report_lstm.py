"""The report generator against a plain loop over PyTorch's own cell; what it may not look at."""

import pytest
import torch
from torch import Tensor, nn

from medfed.common.models.classifiers import build_classifier
from medfed.common.models.report_lstm import ReportModel
from medfed.common.text import BEGIN

NUM_WORDS = 9
SIDE = 16


def _model(dims: int = 2, channels: int = 1) -> ReportModel:
    torch.manual_seed(4)
    encoder = build_classifier(
        "cnn",
        spatial_dims=dims,
        in_channels=channels,
        num_outputs=1,
        image_size=SIDE,
        norm="group",
    )
    return ReportModel(
        encoder, num_words=NUM_WORDS, embedding_size=5, hidden_size=6, attention_size=7
    )


def _batch(num: int, num_tokens: int, dims: int = 2, channels: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(num, channels, *[SIDE] * dims, generator=generator)
    tokens = torch.randint(4, NUM_WORDS, (num, num_tokens), generator=generator)
    tokens[:, 0] = BEGIN
    return images, tokens


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 4])
def test_model_gives_logits_for_every_position(dims: int, channels: int) -> None:
    model = _model(dims, channels)
    images, tokens = _batch(3, 5, dims, channels)
    logits = model(images, tokens)
    assert logits.shape == (3, 5, NUM_WORDS)
    logits.square().sum().backward()
    # Nothing without use would travel and be noised.
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def _features(model: ReportModel, images: Tensor) -> Tensor:
    """Return the grid as rows: cell g is (g // width, g % width)."""
    grid = model.encoder.grid(images)  # type: ignore[operator]
    height, width = grid.shape[2:]
    return torch.stack([grid[:, :, g // width, g % width] for g in range(height * width)], dim=1)


def _torch_cell(model: ReportModel) -> nn.LSTMCell:
    """PyTorch's cell with the model's weights; its gates come as in, keep, new, out."""
    embedding, features = model.word_gates.in_features, model.context_gates.in_features
    hidden = model.hidden_gates.in_features
    cell = nn.LSTMCell(embedding + features, hidden)
    ours = torch.arange(4 * hidden).view(4, hidden)[[0, 1, 3, 2]].flatten()
    inputs = torch.cat([model.word_gates.weight, model.context_gates.weight], dim=1)
    with torch.no_grad():
        cell.weight_ih.copy_(inputs[ours])
        cell.weight_hh.copy_(model.hidden_gates.weight[ours])
        cell.bias_ih.copy_(model.word_gates.bias[ours])
        cell.bias_hh.zero_()
    return cell


def test_model_equals_a_plain_loop_over_torchs_cell_and_the_grid() -> None:
    model = _model()
    images, tokens = _batch(2, 4)
    cell = _torch_cell(model)
    features = _features(model, images)
    mean = sum(features.unbind(dim=1)) / features.shape[1]  # type: ignore[operator]
    hidden, memory = torch.tanh(model.initial_state(mean)).chunk(2, dim=1)
    for position in range(4):
        # Bahdanau et al. 2014, equations 5 and 6, appendix A.1.2; one cell of the grid at a time.
        energies = [
            model.score(torch.tanh(model.keys(cell_features) + model.query(hidden)))
            for cell_features in features.unbind(dim=1)
        ]
        weights = torch.cat(energies, dim=1).exp()
        weights = weights / weights.sum(dim=1, keepdim=True)
        context = (weights[:, :, None] * features).sum(dim=1)
        word = model.embedding.weight[tokens[:, position]]
        hidden, memory = cell(torch.cat([word, context], dim=1), (hidden, memory))
        expected = model.output(torch.cat([hidden, context], dim=1))
        torch.testing.assert_close(model(images, tokens)[:, position], expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_step_by_step_equals_teacher_forcing(dims: int) -> None:
    model = _model(dims)
    images, tokens = _batch(2, 4, dims)
    together = model(images, tokens).log_softmax(dim=2)
    state = model.start(images)
    assert len(state.grid_shape) == dims
    for position in range(4):
        log_probs, attention, state = model.step(state, tokens[:, position])
        torch.testing.assert_close(log_probs, together[:, position])
        assert attention.shape == (2, torch.tensor(state.grid_shape).prod())
        assert (attention >= 0).all()
        torch.testing.assert_close(attention.sum(dim=1), torch.ones(2))


def test_attention_depends_on_the_image_and_on_the_words_before_the_last() -> None:
    model = _model()
    images, _ = _batch(1, 1)
    begin, four, five = (torch.tensor([word]) for word in (BEGIN, 4, 5))
    _, first, state = model.step(model.start(images), begin)
    _, on_four, after_four = model.step(state, four)
    _, on_five, after_five = model.step(state, five)
    # The last word goes in together with what the model looked at, so it cannot direct the look.
    torch.testing.assert_close(on_four, on_five)
    _, later_four, _ = model.step(after_four, four)
    _, later_five, _ = model.step(after_five, four)
    assert not torch.allclose(later_four, later_five, rtol=1e-5, atol=0)
    _, elsewhere, _ = model.step(model.start(images.flip(3)), begin)
    assert not torch.allclose(first, elsewhere, rtol=1e-4, atol=0)


def test_no_position_sees_a_later_word() -> None:
    model = _model()
    images, tokens = _batch(2, 6)
    changed = tokens.clone()
    changed[:, 3] = (tokens[:, 3] - 3) % 5 + 4
    one, other = model(images, tokens), model(images, changed)
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.allclose(one[:, 3:], other[:, 3:], rtol=1e-3, atol=1e-4)


def test_no_image_sees_another() -> None:
    model = _model().train()
    images, tokens = _batch(2, 5)
    with torch.no_grad():
        together = model(images, tokens)
        other = model(torch.stack([images[0], 100 * images[1] + 7]), tokens)
        alone = model(images[:1], tokens[:1])
    torch.testing.assert_close(together[:1], alone)
    torch.testing.assert_close(together[0], other[0])
    assert not torch.allclose(together[1], other[1])


def test_state_follows_its_rows_and_keeps_the_image() -> None:
    model = _model()
    images, _ = _batch(2, 1)
    words = torch.tensor([4, 5, 6, 7])
    _, _, state = model.step(model.start(images).repeated(2), words)
    rows = torch.tensor([1, 1, 3, 2])
    swapped, _, _ = model.step(state.following(rows), words)
    expected, _, _ = model.step(state, words)
    # Rows 1 and 3 of the first image's and the second's beams; then fed with their own words.
    torch.testing.assert_close(swapped[1], expected[1])
    assert not torch.allclose(swapped[0], expected[0], rtol=1e-4, atol=1e-5)
    one, _, _ = model.step(model.start(images[1:]), words[3:])
    torch.testing.assert_close(model.step(model.start(images).repeated(2), words)[0][3:], one)


def test_head_is_the_layer_that_names_the_words() -> None:
    model = _model()
    (head,) = model.head
    layer = model.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == NUM_WORDS
    with torch.no_grad():
        layer.weight.zero_()
    logits = model(*_batch(2, 3))
    torch.testing.assert_close(logits, layer.bias.expand(2, 3, NUM_WORDS))


def test_parameters_are_those_of_the_layers() -> None:
    names = {name for name, _ in _model().named_parameters() if not name.startswith("encoder.")}
    with_bias = ("initial_state", "keys", "word_gates", "output")
    without = ("embedding", "query", "score", "context_gates", "hidden_gates")
    assert names == {
        *(f"{layer}.weight" for layer in with_bias + without),
        *(f"{layer}.bias" for layer in with_bias),
    }
