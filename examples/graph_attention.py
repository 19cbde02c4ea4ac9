"""A graph attention layer sorts the members of a karate club from two labels (Velickovic et al. 2018).

    python examples/graph_attention.py [--steps N] [--eager]

Attention goes along edges: a softmax over each member's friends by `scatter_reduce` and `index_add`. Prints
the loss every twenty steps and how many of the 34 members end up in the right faction.
"""

import argparse

import networkx
import tracegrad as torch
import tracegrad.nn.functional as F
from tracegrad import nn


class GraphAttention(nn.Module):
    """[nodes, inputs] --> [nodes, heads * outputs]."""

    def __init__(self, inputs, outputs, heads):
        super().__init__()
        self.heads, self.outputs = heads, outputs
        self.project = nn.Linear(inputs, heads * outputs, bias=False)
        self.source = nn.Parameter(torch.empty(heads, outputs))
        self.target = nn.Parameter(torch.empty(heads, outputs))
        nn.init.xavier_uniform_(self.source)
        nn.init.xavier_uniform_(self.target)

    def forward(self, x, edges):
        source, target = edges
        h = self.project(x).view(-1, self.heads, self.outputs)
        score = (h * self.source).sum(-1)[source] + (h * self.target).sum(-1)[target]
        score = F.leaky_relu(score, 0.2)
        nodes = torch.zeros(len(x), self.heads)
        index = target.unsqueeze(1).expand(-1, self.heads)
        top = torch.scatter_reduce(nodes, 0, index, score, "amax", include_self=False).detach()
        weight = torch.exp(score - top[target])
        weight = weight / torch.scatter_add(nodes, 0, index, weight)[target]
        out = torch.zeros_like(h).index_add(0, target, weight.unsqueeze(-1) * h[source])
        return out.flatten(1)


class Net(nn.Module):
    def __init__(self, members):
        super().__init__()
        self.first = GraphAttention(members, 8, heads=4)
        self.second = GraphAttention(32, 2, heads=1)

    def forward(self, x, edges):
        return self.second(F.elu(self.first(x, edges)), edges)


def club():
    """(edges [2, n] with loops, factions [34])."""
    graph = networkx.karate_club_graph()
    pairs = [(a, b) for a, b in graph.edges] + [(b, a) for a, b in graph.edges] + [(a, a) for a in graph]
    faction = [int(graph.nodes[i]["club"] != "Mr. Hi") for i in graph]
    return torch.tensor(pairs).t().contiguous(), torch.tensor(faction)


def train(steps=100, compiled=True):
    """The loss of every step, and how many members are sorted right."""
    torch.manual_seed(0)
    edges, faction = club()
    x = torch.eye(len(faction))
    model = Net(len(faction))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    known = torch.tensor([0, 33])  # the two leaders

    def step(x, edges):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x, edges)[known], faction[known])
        loss.backward()
        optimizer.step()
        return loss

    if compiled:
        step = torch.compile(step)
    losses = [step(x, edges).item() for _ in range(steps)]
    with torch.no_grad():
        right = (model(x, edges).argmax(1) == faction).sum().item()
    return losses, right


def main():
    parser = argparse.ArgumentParser(description="Sort a karate club with graph attention.")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--eager", action="store_true", help="do not compile the step")
    args = parser.parse_args()
    losses, right = train(args.steps, not args.eager)
    for i in range(0, len(losses), 20):
        print(f"step {i}: loss {losses[i]:.4f}")
    print(f"{right} of 34 members sorted right")


if __name__ == "__main__":
    main()
