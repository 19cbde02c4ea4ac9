"""What primitives are in CUDA C++: names of its functions, and the small device functions that a unit
defines when it uses them. Used by emit_expr and emit.

Accuracy is that of CUDA's accurate functions (at most a few units in the last place); nothing here uses fast
approximations.
"""

from __future__ import annotations

from ...ir import dtypes
from ...ir.dtypes import DType
from .emit_matrix import MATRIX_HELPERS
from .emit_names import C_TYPES, EmitError

#: f64 name of the float functions; f32 adds an f
FLOAT_FUNCTIONS = {
    **{n: n for n in (
        "floor", "ceil", "trunc", "sqrt", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin",
        "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
        "erf", "erfc", "pow", "fmod",
    )},
    "abs": "fabs",
    "round": "rint",
    "fma": "fma",
}  # fmt: skip

#: device functions by name, in the order in which they are defined; each only if something needs it
HELPERS: dict[str, str] = {
    "DYNAMIC_SHARED": """
#ifndef DYNAMIC_SHARED  // shared memory that the launch asks for
#define DYNAMIC_SHARED(bytes) extern __shared__ __align__(16) unsigned char dynamic_shared[]
#endif""",
    "INF_F32": "#define INF_F32 __int_as_float(0x7f800000)",
    "NAN_F32": "#define NAN_F32 __int_as_float(0x7fc00000)",
    "INF_F64": "#define INF_F64 __longlong_as_double(0x7ff0000000000000LL)",
    "NAN_F64": "#define NAN_F64 __longlong_as_double(0x7ff8000000000000LL)",
    "Pack": """
// N neighbours in memory, moved by one instruction.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T lane[N];
};

template <int N, typename T>
__device__ inline const Pack<T, N>& pack_at(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

template <int N, typename T>
__device__ inline Pack<T, N>& pack_at(T* p) {
  return *reinterpret_cast<Pack<T, N>*>(p);
}""",
    "copy_ahead": """
// Copies N bytes to shared memory while the thread goes on; zeros unless `there`.
template <int N>
__device__ inline void copy_ahead(void* to, const void* from, bool there = true) {
#ifdef EMULATED_CUDA
  emulated::copy_ahead(to, from, N, there);
#elif __CUDA_ARCH__ < 800  // at once
#pragma unroll
  for (int i = 0; i < N / 4; ++i) {
    static_cast<unsigned int*>(to)[i] = there ? static_cast<const unsigned int*>(from)[i] : 0u;
  }
#else
  const unsigned int at = static_cast<unsigned int>(__cvta_generic_to_shared(to));
  if (N == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(N == 16 ? 4 : N),
                 "r"(there ? N : 0)
                 : "memory");
  }
#endif
}""",
    "copies_done": """
__device__ inline void copies_done() {
#ifdef EMULATED_CUDA
  emulated::copies_done(0, true);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}""",
    "copies_batched": """
// Ends a batch of copies.
__device__ inline void copies_batched() {
#ifdef EMULATED_CUDA
  emulated::copies_batched();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}""",
    "copies_done_but": """
// Waits for all batches of copies but the last N.
template <int N>
__device__ inline void copies_done_but() {
#ifdef EMULATED_CUDA
  emulated::copies_done(N, false);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}""",
    **MATRIX_HELPERS,
    "minimum": """
// NaN if either is; -0 is below +0.
__device__ inline float minimum(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float c;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
#else
  if (a == b) return __int_as_float(__float_as_int(a) | __float_as_int(b));
  return a < b || a != a ? a : b;
#endif
}

__device__ inline double minimum(double a, double b) {
  if (a == b) return __longlong_as_double(__double_as_longlong(a) | __double_as_longlong(b));
  return a < b || a != a ? a : b;
}""",
    "maximum": """
// NaN if either is; +0 is above -0.
__device__ inline float maximum(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
#else
  if (a == b) return __int_as_float(__float_as_int(a) & __float_as_int(b));
  return a > b || a != a ? a : b;
#endif
}

__device__ inline double maximum(double a, double b) {
  if (a == b) return __longlong_as_double(__double_as_longlong(a) & __double_as_longlong(b));
  return a > b || a != a ? a : b;
}""",
    "sigmoid": """
__device__ inline float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

__device__ inline double sigmoid(double x) {
  const double e = exp(-fabs(x));
  return (x < 0.0 ? e : 1.0) / (1.0 + e);
}""",
    "truncated": """
// Towards zero; NaN and what no i64 holds give the lowest i64, as on the CPU.
template <typename T>
__device__ inline long long truncated(T x) {
  const T limit = static_cast<T>(9223372036854775808.0);
  return x >= -limit && x < limit ? static_cast<long long>(x) : -9223372036854775807LL - 1;
}""",
    "lesser": """
template <typename T>
__device__ inline T lesser(T a, T b) {
  return a < b ? a : b;
}""",
    "greater": """
template <typename T>
__device__ inline T greater(T a, T b) {
  return a > b ? a : b;
}""",
    "wrap_add": """
// Integers wrap around.
template <typename T>
__device__ inline T wrap_add(T a, T b) {
  return static_cast<T>(static_cast<unsigned long long>(a) + static_cast<unsigned long long>(b));
}""",
    "wrap_sub": """
template <typename T>
__device__ inline T wrap_sub(T a, T b) {
  return static_cast<T>(static_cast<unsigned long long>(a) - static_cast<unsigned long long>(b));
}""",
    "wrap_mul": """
template <typename T>
__device__ inline T wrap_mul(T a, T b) {
  return static_cast<T>(static_cast<unsigned long long>(a) * static_cast<unsigned long long>(b));
}""",
    "wrap_abs": """
template <typename T>
__device__ inline T wrap_abs(T a) {
  return a < 0 ? static_cast<T>(0ull - static_cast<unsigned long long>(a)) : a;
}""",
    "floor_div": """
// Rounds down; by zero gives 0, and the lowest number divided by -1 wraps to itself.
template <typename T>
__device__ inline T floor_div(T a, T b) {
  if (b == 0) return 0;
  if (b == static_cast<T>(-1)) return static_cast<T>(0ull - static_cast<unsigned long long>(a));
  const T q = static_cast<T>(a / b);
  return static_cast<T>(q - ((a % b != 0) && ((a < 0) != (b < 0))));
}""",
    "floor_mod": """
// Has the divisor's sign; by zero gives 0.
template <typename T>
__device__ inline T floor_mod(T a, T b) {
  if (b == 0 || b == static_cast<T>(-1)) return 0;
  const T r = static_cast<T>(a % b);
  return r != 0 && (r < 0) != (b < 0) ? static_cast<T>(r + b) : r;
}""",
    "unsigned_div": """
// By zero gives 0.
template <typename T>
__device__ inline T unsigned_div(T a, T b) {
  return b == 0 ? T(0) : static_cast<T>(a / b);
}""",
    "unsigned_mod": """
// By zero gives 0.
template <typename T>
__device__ inline T unsigned_mod(T a, T b) {
  return b == 0 ? T(0) : static_cast<T>(a % b);
}""",
}


def float_function(name: str, dtype: DType) -> str:
    """CUDA's function for a primitive of f32 or f64."""
    if name not in FLOAT_FUNCTIONS:
        raise EmitError(f"no CUDA function for primitive {name} of {dtype.name}")
    return FLOAT_FUNCTIONS[name] + ("f" if dtype is dtypes.float32 else "")


_COMBINE = {
    "add": "x = x + y", "mul": "x = x * y", "and_": "x = x & y", "or_": "x = x | y", "xor": "x = x ^ y",
}  # fmt: skip


def warp_function(name: str, dtype: DType, lanes: int) -> tuple[str, str, list[str]]:
    """A function that combines a value over the lanes of a warp: its name, its text, and what it needs.

    Small types travel as int: a shuffle moves 32 or 64 bits.
    """
    c = C_TYPES[dtype]
    needs: list[str] = []
    if dtype.kind == "f" and dtype.bits == 16:
        raise EmitError(f"a warp reduction of {dtype.name}: accumulate in f32")
    combine = _COMBINE.get(name)
    if name in ("minimum", "maximum"):
        if dtype.kind == "f":
            helper = name
        else:
            helper = ("lesser" if name == "minimum" else "greater") + f"<{c}>"
        needs.append(helper.partition("<")[0])
        combine = f"x = {helper}(x, y)"
    elif name in ("add", "mul") and dtype.kind == "i":
        needs.append(f"wrap_{name}")
        combine = f"x = wrap_{name}<{c}>(x, y)"
    if combine is None:
        raise EmitError(f"a warp reduction by {name}")
    symbol = f"warp_{name.rstrip('_')}_{dtype.name}" + ("" if lanes == 32 else f"_{lanes}")
    mask = f"0x{(1 << lanes) - 1:x}u"
    moved = f"__shfl_xor_sync({mask}, x, d)"
    if dtype.bits < 32:
        moved = f"static_cast<{c}>(__shfl_xor_sync({mask}, static_cast<int>(x), d))"
    text = f"""
// Over {lanes} lanes, lane i with lane i ^ d; every lane gets the same.
__device__ inline {c} {symbol}({c} x) {{
#pragma unroll
  for (int d = {lanes // 2}; d > 0; d /= 2) {{
    const {c} y = {moved};
    {combine};
  }}
  return x;
}}"""
    return symbol, text, needs
