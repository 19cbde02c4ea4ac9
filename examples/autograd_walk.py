"""What autograd records: the gradient functions behind a result, and the gradients they give.

python examples/autograd_walk.py
"""

import tracegrad


def walk(function, depth=1):
    """Prints a gradient function and those it hands its results to, down to the leaves."""
    print("  " * depth + function.name())
    for following, _ in function.next_functions:
        if following is not None:  # a number or a tensor without gradient
            walk(following, depth + 1)


# The mean of four ones: each contributes a quarter.
x = tracegrad.ones(2, 2, requires_grad=True)
y = x.mean()
print("y.grad_fn is", y.grad_fn.name())
y.backward()
print("x.grad =", x.grad, "\n")

# A longer chain. Gradients of intermediates are kept only where asked for.
x1 = tracegrad.ones(2, 2, requires_grad=True)
x2 = tracegrad.tensor(1.1, requires_grad=True)
y = x1 * (x2 + 2)
z = y.pow(2) * 3
out = z.mean()
y.retain_grad()
z.retain_grad()

print("from out back to its leaves:")
walk(out.grad_fn)
out.backward()
for name, tensor in {"z": z, "y": y, "x2": x2, "x1": x1}.items():
    print(f"{name}.grad =", tensor.grad)

# A function of two variables, at (2, 2).
x1 = tracegrad.tensor([2.0], requires_grad=True)
x2 = tracegrad.tensor([2.0], requires_grad=True)
f = 0.2 * x1.pow(2) + 0.2 * x2.pow(2) - 5
print("\nf(2, 2) =", f)
f.backward()
print("df/dx1 =", x1.grad)
print("df/dx2 =", x2.grad)
