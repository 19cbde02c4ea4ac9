"""Speed of whole workloads against PyTorch and JAX. Run `python -m benchmarks --help`; not part of the
package.
"""
