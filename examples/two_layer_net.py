"""A network of two layers out of nothing but tensors; gradients by autograd, updates by hand.

    python examples/two_layer_net.py

Trained twice, with the sum of squared errors and with their mean: the same learning rate is a hundred times
slower on the mean of a hundred points.
"""

import tracegrad

n, d_in, d_hidden, d_out = 100, 3, 32, 1
learning_rate = 1e-4


def train(activation, reduction):
    tracegrad.manual_seed(0)
    x = tracegrad.randn(n, d_in)
    y = x[:, 0:1] * 0.2 - x[:, 1:2] * 1.3 - x[:, 2:3] * 0.5 + tracegrad.randn(n, 1)

    w1 = tracegrad.randn(d_in, d_hidden, requires_grad=True)
    w2 = tracegrad.randn(d_hidden, d_out, requires_grad=True)
    b1 = tracegrad.zeros(1, d_hidden, requires_grad=True)
    b2 = tracegrad.zeros(1, d_out, requires_grad=True)

    for epoch in range(1, 201):
        y_pred = activation(x.mm(w1).add(b1)).mm(w2).add(b2)
        loss = reduction((y_pred - y).pow(2))
        if epoch % 10 == 0:
            print("Epoch: ", epoch, f"  Loss:  {loss.item():.7g}")
        loss.backward()
        with tracegrad.no_grad():  # the updates are no part of what is differentiated
            for weight in (w1, w2, b1, b2):
                weight.sub_(learning_rate * weight.grad)
                weight.grad.zero_()  # gradients add up otherwise


print("--- sum of squared errors")
train(lambda h: h.clamp(min=0), lambda errors: errors.sum())
print("--- mean of squared errors")
train(lambda h: h.relu(), lambda errors: errors.mean())
