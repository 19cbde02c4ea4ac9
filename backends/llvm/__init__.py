"""The CPU target: loops to LLVM IR, vector math, JIT engine, object cache, thread pool."""
