"""A variational autoencoder finds two numbers that tell a digit (Kingma & Welling 2013).

    python examples/vae.py [--epochs N] [--eager]

Prints the loss (negative evidence lower bound) of every epoch and a digit drawn from the middle of the code
space. Needs scikit-learn.
"""

import argparse

import numpy as np
import tracegrad as torch
import tracegrad.nn.functional as F
from sklearn.datasets import load_digits
from tracegrad import nn
from tracegrad.utils.data import DataLoader


class VAE(nn.Module):
    def __init__(self, pixels=64, hidden=128, code=2):
        super().__init__()
        self.code = code
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.Tanh())
        self.mean, self.log_var = nn.Linear(hidden, code), nn.Linear(hidden, code)
        self.decoder = nn.Sequential(nn.Linear(code, hidden), nn.Tanh(), nn.Linear(hidden, pixels))

    def forward(self, x, noise):
        h = self.encoder(x)
        mean, log_var = self.mean(h), self.log_var(h)
        return self.decoder(mean + torch.exp(0.5 * log_var) * noise), mean, log_var


def negative_elbo(logits, x, mean, log_var):
    """Bits to redraw x, and divergence of the code from a normal distribution, a digit."""
    redraw = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    divergence = -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
    return (redraw + divergence) / len(x)


def train(epochs=10, compiled=True, batch=64):
    """The loss of every step, and the trained model."""
    torch.manual_seed(0)
    images = torch.from_numpy(load_digits().data.astype(np.float32) / 16)
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loader = DataLoader(images, batch_size=batch, shuffle=True, drop_last=True)

    def step(x, noise):
        optimizer.zero_grad()
        logits, mean, log_var = model(x, noise)
        loss = negative_elbo(logits, x, mean, log_var)
        loss.backward()
        optimizer.step()
        return loss

    if compiled:
        step = torch.compile(step)
    losses = []
    for _ in range(epochs):
        for x in loader:
            losses.append(step(x, torch.randn(batch, model.code)).item())
    return losses, model


def main():
    parser = argparse.ArgumentParser(description="Train a variational autoencoder on the digits.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--eager", action="store_true", help="do not compile the step")
    args = parser.parse_args()
    losses, model = train(args.epochs, not args.eager)
    per_epoch = len(losses) // args.epochs
    for e in range(args.epochs):
        print(f"epoch {e}: loss {np.mean(losses[e * per_epoch : (e + 1) * per_epoch]):.3f}")
    with torch.no_grad():
        digit = model.decoder(torch.zeros(model.code)).sigmoid().reshape(8, 8)
    for row in digit.tolist():
        print("".join(" .:oO@"[int(5.99 * v)] for v in row))


if __name__ == "__main__":
    main()
