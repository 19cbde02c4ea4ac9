"""The hash that object code is known by: hashlib's blake2b, without loading OpenSSL as hashlib does."""

try:
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

__all__ = ["blake2b"]
