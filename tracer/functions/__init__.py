"""Functions of the public API by family; each module has a FUNCTIONS table. tracer/methods.py binds them to
Tensor.
"""
