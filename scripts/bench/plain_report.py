"""The report study of `overhead.py` as a plain PyTorch script, network written out.

The network is medfed's `report_lstm` with the small CNN as encoder: an LSTM of plain linear layers
with additive attention over the encoder's grid, everything that does not depend on the state before
computed for all words at once. Reports are written greedily and judged by BLEU-4 over all of them.
It reads the arrays and texts that medfed's first run prepared and the vocabulary that its sites
agreed on, and imports nothing of medfed.

Shapes: B images in a batch, N images of a site, T words, V vocabulary, G cells of the grid.
"""

import json
import math
import re
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from plain_loop import EVALUATION_BATCH, federate, read_options, read_rows, to_model
from torch import Tensor, nn

LEARNING_RATE = 0.002
MAX_WORDS = 45
EMBEDDING, HIDDEN, ATTENTION = 64, 128, 64
PAD, BEGIN, END, UNKNOWN = 0, 1, 2, 3
_NUM_RESERVED = 4

Words = list[str]
Part = tuple[Tensor, Tensor, list[Words]]
"""uint8 [N, 1, H, W], int64 [N, MAX_WORDS + 2] and the words of each whole report."""
State = tuple[Tensor, Tensor, Tensor, Tensor]
"""Features [B, G, F], keys [B, G, A], hidden state and cell [B, H]."""


class ReportModel(nn.Module):
    """Images and the words so far to logits of the words that follow."""

    def __init__(self, num_words: int) -> None:
        super().__init__()
        features = 64
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, features, 3)
        self.initial_state = nn.Linear(features, 2 * HIDDEN)
        self.embedding = nn.Embedding(num_words, EMBEDDING)
        self.keys = nn.Linear(features, ATTENTION)
        self.query = nn.Linear(HIDDEN, ATTENTION, bias=False)
        self.score = nn.Linear(ATTENTION, 1, bias=False)
        self.word_gates = nn.Linear(EMBEDDING, 4 * HIDDEN)
        self.context_gates = nn.Linear(features, 4 * HIDDEN, bias=False)
        self.hidden_gates = nn.Linear(HIDDEN, 4 * HIDDEN, bias=False)
        self.output = nn.Linear(HIDDEN + features, num_words)
        nn.init.ones_(self.word_gates.bias[HIDDEN : 2 * HIDDEN])

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Return logits [B, T, V] of the word after each of `tokens` [B, T]."""
        state = self.start(images)
        read_out = []
        for gates in self.word_gates(self.embedding(tokens)).unbind(dim=1):
            seen, state = self.advance(state, gates)
            read_out.append(seen)
        return self.output(torch.stack(read_out, dim=1))

    def start(self, images: Tensor) -> State:
        hidden = F.max_pool2d(F.relu(self.conv1(images)), 2)
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)), 2)
        features = hidden.flatten(2).transpose(1, 2)
        first, cell = torch.tanh(self.initial_state(features.mean(dim=1))).chunk(2, dim=1)
        return features, self.keys(features), first, cell

    def advance(self, state: State, word_gates: Tensor) -> tuple[Tensor, State]:
        features, keys, hidden, cell = state
        scores = self.score(torch.tanh(keys + self.query(hidden).unsqueeze(1))).squeeze(2)
        context = torch.bmm(scores.softmax(dim=1).unsqueeze(1), features).squeeze(1)
        gates = word_gates + self.context_gates(context) + self.hidden_gates(hidden)
        let_in, keep, let_out, new = gates.chunk(4, dim=1)
        cell = torch.sigmoid(keep) * cell + torch.sigmoid(let_in) * torch.tanh(new)
        hidden = torch.sigmoid(let_out) * torch.tanh(cell)
        return torch.cat([hidden, context], dim=1), (features, keys, hidden, cell)

    def write(self, images: Tensor) -> list[list[int]]:
        """Return the ids of each image's report: at every word the most probable one."""
        state = self.start(images)
        words = torch.full((len(images),), BEGIN)
        written = []
        ended = torch.zeros(len(images), dtype=torch.bool)
        while len(written) < MAX_WORDS and not bool(ended.all()):
            seen, state = self.advance(state, self.word_gates(self.embedding(words)))
            logits = self.output(seen)
            logits[:, [PAD, BEGIN, UNKNOWN]] = -torch.inf
            words = logits.argmax(dim=1)
            ended |= words == END
            written.append(words)
        rows = torch.stack(written, dim=1).tolist()
        return [row[: row.index(END)] if END in row else row for row in rows]


def words_of(text: str) -> Words:
    """Return lower-case words, numbers and full stops: enough for the phantom's reports."""
    return re.findall(r"\d+(?:[.,]\d+)*|[^\W\d_][^\W_]*(?:'[^\W\d_]+)*|\.", text.lower())


def load_sites(folder: Path) -> tuple[dict[str, tuple[Part, Part]], list[str]]:
    """Return every site's training and test images with their reports, and the vocabulary."""
    vocabulary = json.loads((folder / "vocabulary.json").read_text())["words"]
    number = {word: index for index, word in enumerate(vocabulary, start=_NUM_RESERVED)}
    images = torch.from_numpy(np.load(folder / "store" / "images.npy", allow_pickle=False))
    records = (folder / "store" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [words_of(json.loads(line)["report"]) for line in records]
    tokens = torch.full((len(texts), MAX_WORDS + 2), PAD)
    for row, words in zip(tokens, texts, strict=True):
        ids = [BEGIN, *(number.get(word, UNKNOWN) for word in words[:MAX_WORDS]), END]
        row[: len(ids)] = torch.tensor(ids)
    sites = {
        site: tuple(
            (images[rows[side]], tokens[rows[side]], [texts[row] for row in rows[side]])
            for side in ("train", "test")
        )
        for site, rows in read_rows(folder).items()
    }
    return sites, vocabulary


def losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross entropy of the next word, mean over each report's own words, [B]."""
    wanted = tokens[:, 1:]
    each = F.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD, reduction="none"
    )
    return each.reshape(wanted.shape).sum(dim=1) / (wanted != PAD).sum(dim=1)


def train(model: nn.Module, data: Part, epochs: int, batch_size: int) -> float:
    """Train in place with a fresh optimiser; return the mean loss."""
    images, tokens, _ = data
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    total, count = torch.zeros(()), 0
    for _ in range(epochs):
        for chosen in torch.randperm(len(tokens)).split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            ids = tokens[chosen]
            each = losses(model(to_model(images[chosen]), ids[:, :-1]), ids)
            each.mean().backward()
            optimizer.step()
            total += each.detach().sum()
            count += len(chosen)
    return float(total) / count


def evaluate(model: ReportModel, tests: list[Part], vocabulary: list[str]) -> dict[str, float]:
    """Return the loss and the BLEU-4 of all sites' test images, evaluated site by site."""
    model.eval()
    loss, written, references = [], [], []
    with torch.inference_mode():
        for images, tokens, texts in tests:
            batches = (images.split(EVALUATION_BATCH), tokens.split(EVALUATION_BATCH))
            for part, ids in zip(*batches, strict=True):
                pixels = to_model(part)
                loss.append(losses(model(pixels, ids[:, :-1]), ids))
                written += [[vocabulary[i - _NUM_RESERVED] for i in r] for r in model.write(pixels)]
            references += texts
    return {"loss": float(torch.cat(loss).mean()), "bleu4": bleu4(written, references)}


def bleu4(written: list[Words], references: list[Words]) -> float:
    """Return BLEU of all reports together, uniform weights up to 4 words, not smoothed."""
    logarithms = []
    for order in range(1, 5):
        matches = total = 0
        for ours, theirs in zip(written, references, strict=True):
            mine, other = _ngrams(ours, order), _ngrams(theirs, order)
            matches += (mine & other).total()
            total += mine.total()
        if not matches:
            return 0.0
        logarithms.append(math.log(matches / total))
    lengths = [sum(map(len, texts)) for texts in (written, references)]
    return math.exp(min(0.0, 1 - lengths[1] / lengths[0]) + sum(logarithms) / 4)


def _ngrams(words: Words, order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def main() -> None:
    options = read_options(__doc__)
    sites, vocabulary = load_sites(options.folder)
    history = federate(
        ReportModel(_NUM_RESERVED + len(vocabulary)),
        sites,
        options.rounds,
        partial(train, epochs=options.epochs, batch_size=options.batch_size),
        partial(evaluate, vocabulary=vocabulary),
    )
    options.out.write_text(json.dumps(history))


if __name__ == "__main__":
    main()
