"""Gradient descent down the long bent valley of the Rosenbrock function, whose minimum is at (1, 1).

    python examples/rosenbrock.py

First as one writes it in PyTorch, a step at a time; then with the step compiled and repeated natively 1000
times.
"""

import tracegrad

iterations = 1000
learning_rate = 0.01


def rosenbrock(x, a=1, b=5):
    x1, x2 = x[0], x[1]
    return (a - x1) ** 2 + b * (x2 - x1**2) ** 2


def report(i, value, gradient):
    print("Iteration: ", i)
    print(f"Value is:  {value:.7g}")
    print("Gradient is: ", " ".join(f"{g:.7g}" for g in gradient.tolist()))


print("--- a step at a time")
x = tracegrad.tensor([-1.0, 1.0], requires_grad=True)
for i in range(1, iterations + 1):
    value = rosenbrock(x)
    value.backward()
    if i % 100 == 0:
        report(i, value.item(), x.grad)
    with tracegrad.no_grad():
        x.sub_(learning_rate * x.grad)
        x.grad.zero_()
print("end point:", x)

print("\n--- compiled")
x = tracegrad.tensor([-1.0, 1.0], requires_grad=True)


@tracegrad.compile
def step():
    x.grad = None
    value = rosenbrock(x)
    value.backward()
    gradient = x.grad
    with tracegrad.no_grad():
        x.sub_(learning_rate * gradient)
    return value, gradient


values, gradients = step.repeat(iterations)
for i in range(100, iterations + 1, 100):
    report(i, values[i - 1].item(), gradients[i - 1])
print("end point:", x)
