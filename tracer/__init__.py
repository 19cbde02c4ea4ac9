"""How Python becomes a program: tensors, recording, autograd, `compile`, random numbers."""
