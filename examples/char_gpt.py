"""A character GPT: two transformer blocks learn a page of this project, CONTRIBUTING.md, letter by letter.

    python examples/char_gpt.py [--steps N] [--eager]

Prints the loss every twenty steps and then a few words of its own.
"""

import argparse
from pathlib import Path

import tracegrad as torch
import tracegrad.nn.functional as F
from tracegrad import nn

TEXT = (Path(__file__).resolve().parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
LETTERS = sorted(set(TEXT))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, time, width))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, letters, context=32, width=48, heads=4, layers=2):
        super().__init__()
        self.context = context
        self.letter, self.place = nn.Embedding(letters, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, letters, bias=False)
        self.head.weight = self.letter.weight  # one matrix reads letters and writes them

    def forward(self, letters):
        x = self.letter(letters) + self.place(torch.arange(letters.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def train(steps=200, compiled=True, batch=16):
    """The loss of every step, and the trained model."""
    torch.manual_seed(0)
    data = torch.tensor([LETTERS.index(c) for c in TEXT])
    model = GPT(len(LETTERS))
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)

    def step(x, y):
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    if compiled:
        step = torch.compile(step)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(data) - model.context - 1, (batch, 1))
        windows = data[starts + torch.arange(model.context + 1)]
        losses.append(step(windows[:, :-1], windows[:, 1:]).item())
    return losses, model


def write(model, start, length, seed=0):
    """`start` and the `length` letters that the model thinks follow."""
    torch.manual_seed(seed)
    letters = [LETTERS.index(c) for c in start]
    with torch.no_grad():
        for _ in range(length):
            logits = model(torch.tensor([letters[-model.context :]]))[0, -1]
            letters.append(torch.multinomial(F.softmax(logits / 0.7, dim=0), 1).item())
    return "".join(LETTERS[i] for i in letters)


def main():
    parser = argparse.ArgumentParser(description="Train a character GPT on a page of English.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--eager", action="store_true", help="do not compile the step")
    args = parser.parse_args()
    losses, model = train(args.steps, not args.eager)
    for i in range(0, len(losses), 20):
        print(f"step {i}: loss {losses[i]:.4f}")
    print(f"step {len(losses) - 1}: loss {losses[-1]:.4f}")
    print(write(model, "A test ", 60))


if __name__ == "__main__":
    main()
