"""A generator and a discriminator, each with its optimiser, learn eight spots on a ring (Goodfellow et al.
2014).

    python examples/gan.py [--steps N] [--eager]

Prints both losses every hundred steps and how far generated points lie from the nearest spot.
"""

import argparse
import math

import tracegrad as torch
import tracegrad.nn.functional as F
from tracegrad import nn


def ring(count):
    """`count` points near eight spots on the unit circle: [count, 2]."""
    angle = torch.randint(8, (count,)).float() * (2 * math.pi / 8)
    return torch.stack([angle.cos(), angle.sin()], dim=1) + 0.05 * torch.randn(count, 2)


def mlp(inputs, outputs, hidden=64):
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, outputs),
    )


def train(steps=600, compiled=True, batch=128, code=4):
    """(discriminator loss, generator loss) of every step, and the generator."""
    torch.manual_seed(0)
    generator, discriminator = mlp(code, 2), mlp(2, 1)
    opt_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    one, zero = torch.ones(batch, 1), torch.zeros(batch, 1)

    def step(real, noise):
        fake = generator(noise)
        opt_d.zero_grad()
        loss_d = F.binary_cross_entropy_with_logits(discriminator(real), one)
        loss_d = loss_d + F.binary_cross_entropy_with_logits(discriminator(fake.detach()), zero)
        loss_d.backward()
        opt_d.step()
        opt_g.zero_grad()
        loss_g = F.binary_cross_entropy_with_logits(discriminator(fake), one)
        loss_g.backward()
        opt_g.step()
        return loss_d, loss_g

    if compiled:
        step = torch.compile(step)
    losses = []
    for _ in range(steps):
        loss_d, loss_g = step(ring(batch), torch.randn(batch, code))
        losses.append((loss_d.item(), loss_g.item()))
    return losses, generator


def main():
    parser = argparse.ArgumentParser(description="Train a GAN on eight spots on a ring.")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--eager", action="store_true", help="do not compile the step")
    args = parser.parse_args()
    losses, generator = train(args.steps, not args.eager)
    for i in range(0, len(losses), 100):
        print(f"step {i}: discriminator {losses[i][0]:.4f}, generator {losses[i][1]:.4f}")
    with torch.no_grad():
        points = generator(torch.randn(256, 4))
        angle = torch.arange(8) * (2 * math.pi / 8)
        spots = torch.stack([angle.cos(), angle.sin()], dim=1)
        distance = torch.cdist(points, spots).amin(dim=1).mean().item()
    print(f"mean distance to the nearest spot: {distance:.3f}")


if __name__ == "__main__":
    main()
