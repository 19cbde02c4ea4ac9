"""A critic under a gradient penalty measures how far apart two distributions are (Gulrajani et al. 2017).

    python examples/gradient_penalty.py [--steps N] [--eager]

The penalty pulls the critic's gradient with respect to its *input* to length one, so that training it
differentiates a gradient. Prints the estimated Wasserstein distance between two bells three apart.
"""

import argparse

import tracegrad as torch
from tracegrad import nn


def train(steps=300, compiled=True, batch=128, dims=4):
    """(loss, estimated distance) of every step."""
    torch.manual_seed(0)
    critic = nn.Sequential(
        nn.Linear(dims, 64), nn.Softplus(), nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 1)
    )
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.9))

    def step(real, fake, mix):
        optimizer.zero_grad()
        between = (mix * real + (1 - mix) * fake).requires_grad_()
        slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0]
        penalty = ((slope.norm(2, dim=1) - 1) ** 2).mean()
        distance = critic(real).mean() - critic(fake).mean()
        loss = 10 * penalty - distance
        loss.backward()
        optimizer.step()
        return loss, distance

    if compiled:
        step = torch.compile(step)
    results = []
    for _ in range(steps):
        real = torch.randn(batch, dims)
        fake = torch.randn(batch, dims) + 3 / dims**0.5
        loss, distance = step(real, fake, torch.rand(batch, 1))
        results.append((loss.item(), distance.item()))
    return results


def main():
    parser = argparse.ArgumentParser(description="Train a critic with a gradient penalty.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--eager", action="store_true", help="do not compile the step")
    args = parser.parse_args()
    results = train(args.steps, not args.eager)
    for i in range(0, len(results), 50):
        print(f"step {i}: loss {results[i][0]:+.4f}, distance {results[i][1]:.4f}")
    tail = [d for _, d in results[-50:]]
    print(f"estimated distance, mean of the last fifty steps: {sum(tail) / len(tail):.2f} (true: 3)")


if __name__ == "__main__":
    main()
