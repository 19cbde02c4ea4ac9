"""Networks for text, graphs, tables and equations as people write them (family `models`)."""

from __future__ import annotations

from typing import Any

from ..record import Step, Workload
from .block import block_class
from .training import classify, train


def _gpt(
    tg: Any, letters: int, width: int, heads: int, layers: int, time: int, dropout: float, batch: int = 4
) -> Step:
    tg.manual_seed(0)
    nn = tg.nn
    block = block_class(tg, width, heads, dropout)

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.letter, self.place = nn.Embedding(letters, width), nn.Parameter(tg.zeros(time, width))
            self.blocks = nn.Sequential(*(block() for _ in range(layers)))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, letters, bias=False)

        def forward(self, x: Any) -> Any:
            return self.head(self.norm(self.blocks(self.letter(x) + self.place))).flatten(0, 1)

    return classify(tg, GPT(), letters, tg.randint(0, letters, (batch, time)))


def _gpt_letters(tg: Any) -> Step:
    """Three layers of 192, 256 places, dropout in attention and after it."""
    return _gpt(tg, 256, 192, 6, 3, 256, 0.1)


def _gpt_words(tg: Any) -> Step:
    """Two layers of 128 with a vocabulary of 16,000."""
    return _gpt(tg, 16000, 128, 4, 2, 128, 0.0)


def _gpt_long(tg: Any) -> Step:
    """Two layers of 128, one sequence of 2048 places."""
    return _gpt(tg, 256, 128, 4, 2, 2048, 0.0, 1)


def _bilstm(tg: Any) -> Step:
    """Two bidirectional LSTM layers with dropout between them."""
    tg.manual_seed(0)
    nn = tg.nn

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(2000, 64), nn.Linear(192, 5)
            self.lstm = nn.LSTM(64, 96, 2, batch_first=True, bidirectional=True, dropout=0.2)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(self.words(x))[0].mean(1))

    return classify(tg, Tagger(), 5, tg.randint(0, 2000, (32, 40)))


def _gru(tg: Any) -> Step:
    """A language model on a GRU of 256."""
    tg.manual_seed(0)
    nn = tg.nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.letters, self.head = nn.Embedding(100, 64), nn.Linear(256, 100)
            self.gru = nn.GRU(64, 256, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.head(self.gru(self.letters(x))[0]).flatten(0, 1)

    return classify(tg, Model(), 100, tg.randint(0, 100, (16, 100)))


def _graph(tg: Any) -> Step:
    """Three rounds of message passing over 15,000 random edges of 3,000 nodes."""
    tg.manual_seed(0)
    nn, F = tg.nn, tg.nn.functional
    nodes, edges = 3000, 15000
    source, target = tg.randint(0, nodes, (edges,)), tg.randint(0, nodes, (edges,))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 7)

        def messages(self, x: Any) -> Any:
            return tg.zeros(nodes, x.shape[1]).index_add(0, target, x[source])

        def forward(self, x: Any) -> Any:
            x = F.relu(self.one(self.messages(x)))
            return self.three(self.messages(F.relu(self.two(self.messages(x)))))

    return classify(tg, Net(), 7, tg.randn(nodes, 64))


def _recommender(tg: Any) -> Step:
    """Twelve embedding tables, dot products of all pairs, an MLP (DLRM's form)."""
    tg.manual_seed(0)
    nn = tg.nn
    tables = 12

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList([nn.Embedding(1000, 32) for _ in range(tables)])
            self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
            many = tables + 1
            self.register_buffer("pairs", tg.tensor([i * many + j for i in range(many) for j in range(i)]))
            wide = 32 + many * tables // 2
            self.top = nn.Sequential(nn.Linear(wide, 128), nn.ReLU(), nn.Linear(128, 2))

        def forward(self, numbers: Any, names: Any) -> Any:
            x = self.bottom(numbers)
            rows = tg.stack([x] + [table(names[:, i]) for i, table in enumerate(self.tables)], 1)
            products = tg.bmm(rows, rows.transpose(1, 2)).flatten(1)[:, self.pairs]
            return self.top(tg.cat([x, products], 1))

    return classify(tg, Net(), 2, tg.randn(256, 13), tg.randint(0, 1000, (256, tables)))


def _wide(tg: Any) -> Step:
    """2048-wide layers with dropout at batch 32: weights are most of the traffic."""
    tg.manual_seed(0)
    nn = tg.nn
    layers = [
        nn.Linear(2048, 2048),
        nn.Dropout(0.2),
        nn.ReLU(),
        nn.Linear(2048, 2048),
        nn.Dropout(0.2),
        nn.ReLU(),
    ]
    return classify(tg, nn.Sequential(*layers, nn.Linear(2048, 1000)), 1000, tg.randn(32, 2048))


def _equation(tg: Any) -> Step:
    """A heat equation's residual: second derivatives of a network by its inputs, in the loss."""
    tg.manual_seed(0)
    nn = tg.nn
    layers: list[Any] = [
        nn.Linear(2, 64),
        nn.Tanh(),
        nn.Linear(64, 64),
        nn.Tanh(),
        nn.Linear(64, 64),
        nn.Tanh(),
    ]
    model = nn.Sequential(*layers, nn.Linear(64, 1))
    places = tg.rand(2000, 2)

    def loss() -> Any:
        x = places.detach().requires_grad_()
        u = model(x)
        (first,) = tg.autograd.grad(u.sum(), x, create_graph=True)
        (second,) = tg.autograd.grad(first[:, 0].sum(), x, create_graph=True)
        return ((second[:, 0] - first[:, 1]) ** 2).mean() + (u**2).mean()

    return train(tg, model, loss)


OTHERS = tuple(
    Workload(f"model-{name}", build, family="models")
    for name, build in {
        "gpt": _gpt_letters, "gpt-16000": _gpt_words, "gpt-2048": _gpt_long, "bilstm": _bilstm,
        "gru-256": _gru, "graph": _graph, "recommender": _recommender, "wide-2048": _wide,
        "heat-equation": _equation,
    }.items()
)  # fmt: skip
