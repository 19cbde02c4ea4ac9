"""A convnet with batch norm learns scikit-learn's 8x8 digits, shown as MNIST shows them: 28x28.

    python examples/digits_convnet.py [--epochs N] [--eager]

Prints the mean loss of every epoch and the accuracy on digits held back. `--eager` runs the training step
undecorated; the numbers are the same. Needs scikit-learn.
"""

import argparse

import numpy as np
import tracegrad as torch
import tracegrad.nn.functional as F
from sklearn.datasets import load_digits
from tracegrad import nn
from tracegrad.utils.data import DataLoader, TensorDataset


def load():
    """(train images, train labels, test images, test labels); images are [n, 1, 28, 28] in 0..1."""
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32) / 16).unsqueeze(1)
    images = F.interpolate(images, size=(28, 28), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return images[:1500], labels[:1500], images[1500:], labels[1500:]


def convnet():
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def train(epochs=3, compiled=True, batch=50):
    """The loss of every step, and the accuracy on the digits held back."""
    torch.manual_seed(0)
    x, y, x_test, y_test = load()
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True)

    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    if compiled:
        step = torch.compile(step)
    losses = []
    for _ in range(epochs):
        for images, labels in loader:
            losses.append(step(images, labels).item())
    model.eval()
    with torch.no_grad():
        right = (model(x_test).argmax(1) == y_test).float().mean().item()
    return losses, right


def main():
    parser = argparse.ArgumentParser(description="Train a convnet on the digits.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--eager", action="store_true", help="do not compile the step")
    args = parser.parse_args()
    losses, right = train(args.epochs, not args.eager)
    per_epoch = len(losses) // args.epochs
    for e in range(args.epochs):
        print(f"epoch {e}: loss {np.mean(losses[e * per_epoch : (e + 1) * per_epoch]):.4f}")
    print(f"accuracy on 297 digits held back: {right:.3f}")


if __name__ == "__main__":
    main()
