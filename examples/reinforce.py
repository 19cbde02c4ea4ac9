"""REINFORCE balances a pole on a cart (Williams 1992; the cart of Barto, Sutton & Anderson 1983, in NumPy).

    python examples/reinforce.py [--batches N] [--eager]

Prints the mean length of every ten batches of episodes.
"""

import argparse
import math

import numpy as np
import tracegrad as torch
import tracegrad.nn.functional as F
from tracegrad import nn

STEPS = 100  # an episode is at most this long


class Carts:
    """Many carts at once. State: position, speed, angle, angular speed; falls past 12 degrees or 2.4 m."""

    def __init__(self, count, seed):
        self.random = np.random.default_rng(seed)
        self.count = count

    def reset(self):
        self.state = self.random.uniform(-0.05, 0.05, (self.count, 4)).astype(np.float32)
        self.alive = np.ones(self.count, dtype=bool)
        return self.state

    def step(self, action):
        """(new state, still up before this step)."""
        up = self.alive.copy()
        x, v, angle, spin = self.state.T
        force = np.where(action == 1, 10.0, -10.0)
        sin, cos = np.sin(angle), np.cos(angle)
        push = (force + 0.05 * spin**2 * sin) / 1.1
        turn = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        slide = push - 0.05 * turn * cos / 1.1
        new = np.stack([x + 0.02 * v, v + 0.02 * slide, angle + 0.02 * spin, spin + 0.02 * turn], axis=1)
        self.state = new.astype(np.float32)
        self.alive &= (np.abs(new[:, 0]) < 2.4) & (np.abs(new[:, 2]) < 12 * math.pi / 180)
        return self.state, up


def train(batches=30, compiled=True, count=16):
    """The loss and the mean episode length of every batch."""
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    carts = Carts(count, seed=0)

    def learn(states, actions, weights):
        optimizer.zero_grad()
        log_p = F.log_softmax(policy(states), dim=-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        loss = -(log_p * weights).sum() / count
        loss.backward()
        optimizer.step()
        return loss

    def act(states):
        return torch.softmax(policy(states), dim=-1)

    if compiled:
        learn, act = torch.compile(learn), torch.compile(act)
    losses, lengths = [], []
    for _ in range(batches):
        states = np.zeros((STEPS, count, 4), dtype=np.float32)
        actions = np.zeros((STEPS, count), dtype=np.int64)
        rewards = np.zeros((STEPS, count), dtype=np.float32)
        state = carts.reset()
        for t in range(STEPS):
            with torch.no_grad():
                choice = torch.multinomial(act(torch.from_numpy(state)), 1).squeeze(1).numpy()
            states[t], actions[t] = state, choice
            state, up = carts.step(choice)
            rewards[t] = up
        to_go = np.cumsum(rewards[::-1], axis=0)[::-1]
        weights = (to_go - to_go.mean()) / to_go.std() * rewards
        losses.append(learn(*map(torch.from_numpy, (states, actions, weights))).item())
        lengths.append(float(rewards.sum(0).mean()))
    return losses, lengths


def main():
    parser = argparse.ArgumentParser(description="Balance a pole by policy gradients.")
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--eager", action="store_true", help="do not compile the step")
    args = parser.parse_args()
    _, lengths = train(args.batches, not args.eager)
    for i in range(0, len(lengths), 10):
        print(f"batches {i} to {i + 9}: {np.mean(lengths[i : i + 10]):.1f} of {STEPS} steps")


if __name__ == "__main__":
    main()
