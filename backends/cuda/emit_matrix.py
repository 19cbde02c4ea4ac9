"""Device functions for tensor cores: products of small matrices by a warp, and the loads of their shares. One
text for all architectures: where a GPU's tensor cores don't take a type, lanes pass one another the factors
by shuffles. Used by emit_math, whose table of helpers they are part of.
"""

from __future__ import annotations

_BY_LANES = """
// sums += a * b by a warp without tensor cores for the type: lanes pass one another the factors, each of
// which has P neighbouring terms.
template <int P>
__device__ inline void mma_by_lanes(float* sums, const float* a, const float* b) {
#ifdef EMULATED_CUDA
  const int lane = emulated::lane();
#else
  int lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
#endif
#pragma unroll
  for (int k = 0; k < 8; ++k) {  // 4 lanes, of whose terms two
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int from = k % 4, half = k / 4;
      const float x0 = __shfl_sync(0xffffffffu, a[half * 2 * P + p], lane / 4 * 4 + from);
      const float x1 = __shfl_sync(0xffffffffu, a[half * 2 * P + P + p], lane / 4 * 4 + from);
      const float y0 = __shfl_sync(0xffffffffu, b[half * P + p], lane % 4 * 8 + from);
      const float y1 = __shfl_sync(0xffffffffu, b[half * P + p], lane % 4 * 8 + 4 + from);
      sums[0] = fmaf(x0, y0, sums[0]);
      sums[1] = fmaf(x0, y1, sums[1]);
      sums[2] = fmaf(x1, y0, sums[2]);
      sums[3] = fmaf(x1, y1, sums[3]);
    }
  }
}"""

_TF32 = """
// sums += a * b by a warp, 16 x 8 sums of 8 products, whose factors are rounded to 10 bits of mantissa.
__device__ inline void mma_tf32(float* sums, const float* a, const float* b) {
#if defined(EMULATED_CUDA) && !defined(EMULATED_LANES)
  emulated::mma_tf32(sums, a, b);
#elif __CUDA_ARCH__ >= 800
  unsigned int x[4], y[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(x[i]) : "f"(a[i]));
#pragma unroll
  for (int i = 0; i < 2; ++i) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y[i]) : "f"(b[i]));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
#else
  float x[4], y[2];
#pragma unroll
  for (int i = 0; i < 6; ++i) {
    const float v = i < 4 ? a[i] : b[i - 4];
    const float near = v != v ? v : __int_as_float((__float_as_int(v) + 0x1000) & ~0x1fff);
    if (i < 4) x[i] = near; else y[i - 4] = near;
  }
  mma_by_lanes<1>(sums, x, y);
#endif
}"""

_HALVES = """
// sums += a * b by a warp, 16 x 8 sums of 16 products.
__device__ inline void mma_{kind}(float* sums, const {c}* a, const {c}* b) {{
#if defined(EMULATED_CUDA) && !defined(EMULATED_LANES)
  emulated::mma_{kind}(sums, a, b);
#elif __CUDA_ARCH__ >= {least}
  unsigned int x[4], y[2];
  memcpy(x, a, sizeof(x));
  memcpy(y, b, sizeof(y));
{asm}
#else
  float x[8], y[4];
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = {widen}(a[i]);
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = {widen}(b[i]);
  mma_by_lanes<2>(sums, x, y);
#endif
}}"""

_DEEP = """  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "
      "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));"""

#: sm_75 takes 8 terms of f16 at a time
_F16 = f"""#if __CUDA_ARCH__ >= 800
{_DEEP.format(kind="f16")}
#else
#pragma unroll
  for (int i = 0; i < 2; ++i) {{
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{{%0, %1, %2, %3}}, {{%4, %5}}, {{%6}}, {{%0, %1, %2, %3}};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(x[2 * i]), "r"(x[2 * i + 1]), "r"(y[i]));
  }}
#endif"""


def _matrices(count: int, turned: bool) -> str:
    places = ", ".join(f"%{i}" for i in range(count))
    made = ", ".join(f'"=r"(word[{i}])' for i in range(count))
    return f"""
// A lane's shares of {count} matrices of 8 rows of 16 bytes; lane t says where row t % 8 of matrix t / 8 is.
template <typename T>
__device__ inline void matrices_{"t" if turned else "x"}{count}(T* to, const T* from) {{
#ifdef EMULATED_CUDA
  emulated::matrices(to, from, {count}, {"true" if turned else "false"});
#else
  const unsigned int at = static_cast<unsigned int>(__cvta_generic_to_shared(from));
  unsigned int word[{count}];
  asm volatile("ldmatrix.sync.aligned.m8n8.x{count}{".trans" if turned else ""}.shared.b16 "
               "{{{places}}}, [%{count}];"
               : {made}
               : "r"(at)
               : "memory");
  memcpy(to, word, sizeof(word));
#endif
}}"""


#: in the order in which they are defined
MATRIX_HELPERS: dict[str, str] = {
    **{f"matrices_{'t' if t else 'x'}{n}": _matrices(n, t) for t in (False, True) for n in (1, 2, 4)},
    "mma_by_lanes": _BY_LANES,
    "mma_tf32": _TF32,
    "mma_f16": _HALVES.format(kind="f16", c="__half", least=750, asm=_F16, widen="__half2float"),
    "mma_bf16": _HALVES.format(
        kind="bf16", c="__nv_bfloat16", least=800, asm=_DEEP.format(kind="bf16"), widen="__bfloat162float"
    ),
}
