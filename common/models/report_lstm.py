"""Report generator: an image's grid of features, read out word by word by an LSTM with attention.

At every word the LSTM looks back at the grid: additive attention weighs the G cells by how well
they answer its state, and their weighted mean goes in with the word before. The gates are plain
linear layers, because `nn.LSTMCell` writes in place and does not run under `torch.func.vmap`. What
does not depend on the state before (words to gates, attention keys, states to logits) is computed
for all words at once.

Reference: Xu et al. 2015 (soft attention), https://arxiv.org/abs/1502.03044; additive attention:
Bahdanau et al. 2014, https://arxiv.org/abs/1409.0473.

Shapes: B images, T words, V vocabulary, G cells of the grid, F features of a cell, A attention,
H hidden state, K = 4 H its gates; R rows of decoding: images, or several beams of each.
"""

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from medfed.common.models.encoders import Encoder, remove_classifier


@dataclass(frozen=True)
class State:
    """Where decoding stands.

    Attributes:
        features_RGF: What the encoder saw.
        keys_RGA: The same, ready to be compared with a state.
        hidden_RH: Of the LSTM.
        cell_RH: Of the LSTM.
        grid_shape: How the G cells lie, (H', W') or (D', H', W'); the last side varies fastest.
    """

    features_RGF: Tensor
    keys_RGA: Tensor
    hidden_RH: Tensor
    cell_RH: Tensor
    grid_shape: tuple[int, ...]

    def repeated(self, times: int) -> "State":
        """Return every row `times` times, one after the other."""
        return State(
            self.features_RGF.repeat_interleave(times, dim=0),
            self.keys_RGA.repeat_interleave(times, dim=0),
            self.hidden_RH.repeat_interleave(times, dim=0),
            self.cell_RH.repeat_interleave(times, dim=0),
            self.grid_shape,
        )

    def following(self, rows_R: Tensor) -> "State":
        """Return the state in which row i goes on from `rows_R[i]`, a row of the same image."""
        return replace(self, hidden_RH=self.hidden_RH[rows_R], cell_RH=self.cell_RH[rows_R])


class ReportModel(nn.Module):
    """Images and the words so far to logits of the words that follow.

    Args:
        encoder: A classification network (`common/models/classifiers.py`); its classifier is
            removed.
        num_words: Size V of the vocabulary, reserved ids included.
        embedding_size: Numbers a word becomes.
        hidden_size: H.
        attention_size: A.
    """

    head: tuple[str, ...] = ("output",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        num_words: int,
        embedding_size: int,
        hidden_size: int,
        attention_size: int,
    ) -> None:
        super().__init__()
        remove_classifier(encoder)
        num_features = cast(Encoder, encoder).num_features
        self.encoder = encoder
        self.initial_state = nn.Linear(num_features, 2 * hidden_size)
        self.embedding = nn.Embedding(num_words, embedding_size)
        self.keys = nn.Linear(num_features, attention_size)
        self.query = nn.Linear(hidden_size, attention_size, bias=False)
        self.score = nn.Linear(attention_size, 1, bias=False)
        # One bias is enough for the three.
        self.word_gates = nn.Linear(embedding_size, 4 * hidden_size)
        self.context_gates = nn.Linear(num_features, 4 * hidden_size, bias=False)
        self.hidden_gates = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.output = nn.Linear(hidden_size + num_features, num_words)
        # Jozefowicz et al. 2015: an LSTM that starts out keeping its state learns longer texts.
        nn.init.ones_(self.word_gates.bias[hidden_size : 2 * hidden_size])

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Return logits [B, T, V]: at each position, of the word after it.

        Args:
            images: [B, C, *S].
            tokens: int64 [B, T], the report from BEGIN on without its last word.
        """
        state = self.start(images)
        word_gates_BTK = self.word_gates(self.embedding(tokens))
        read_out = []
        for gates_BK in word_gates_BTK.unbind(dim=1):
            read_out_B, _, state = self._advance(state, gates_BK)
            read_out.append(read_out_B)
        logits: Tensor = self.output(torch.stack(read_out, dim=1))
        return logits

    def start(self, images: Tensor) -> State:
        """Return the state before the first word, a row an image."""
        grid = cast(Encoder, self.encoder).grid(images)
        features_RGF = grid.flatten(2).transpose(1, 2)
        initial = torch.tanh(self.initial_state(features_RGF.mean(dim=1)))
        hidden_RH, cell_RH = initial.chunk(2, dim=1)
        keys_RGA = self.keys(features_RGF)
        return State(features_RGF, keys_RGA, hidden_RH, cell_RH, tuple(grid.shape[2:]))

    def step(self, state: State, token_ids: Tensor) -> tuple[Tensor, Tensor, State]:
        """Read one word and say what may follow.

        Args:
            state: Of `start`, or of the step before.
            token_ids: int64 [R], the word before: BEGIN at first.

        Returns:
            Log-probabilities of the next word [R, V]; where the model looked for it, attention
            [R, G] of sum 1 a row; the state after.
        """
        read_out_R, attention_RG, after = self._advance(
            state, self.word_gates(self.embedding(token_ids))
        )
        return self.output(read_out_R).log_softmax(dim=1), attention_RG, after

    def _advance(self, state: State, word_gates_RK: Tensor) -> tuple[Tensor, Tensor, State]:
        """Return what the output layer reads [R, H + F], the attention, and the state after."""
        query_RA = self.query(state.hidden_RH)
        scores_RG = self.score(torch.tanh(state.keys_RGA + query_RA.unsqueeze(1))).squeeze(2)
        attention_RG = scores_RG.softmax(dim=1)
        context_RF = torch.bmm(attention_RG.unsqueeze(1), state.features_RGF).squeeze(1)
        gates_RK = (
            word_gates_RK + self.context_gates(context_RF) + self.hidden_gates(state.hidden_RH)
        )
        let_in, keep, let_out, new = gates_RK.chunk(4, dim=1)
        cell_RH = torch.sigmoid(keep) * state.cell_RH + torch.sigmoid(let_in) * torch.tanh(new)
        hidden_RH = torch.sigmoid(let_out) * torch.tanh(cell_RH)
        after = replace(state, hidden_RH=hidden_RH, cell_RH=cell_RH)
        return torch.cat([hidden_RH, context_RF], dim=1), attention_RG, after
