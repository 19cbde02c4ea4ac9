// CUDA on a CPU, for tests: what emitted units use of CUDA's language and runtime, for g++.
//
//   g++ -include emulate.h -x c++ unit.cu emulate.cpp
//
// The threads of a block are fibres of one thread of the system: they run in turn, and change places at
// barriers and shuffles. Blocks run one after the other. emulate.cpp has the fibres, and the checks of every
// access in units that were compiled with -fsanitize=thread and -fsanitize=bounds.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulated {

// Where the running thread is. Not checked for races.
struct Place {
  uint3 thread, block;
  dim3 threads, blocks;
};
extern Place place;

struct Argument {
  const void* address;
};

void run(const char* name, dim3 grid, dim3 block, void (*call)(void*), void* closure, size_t bytes,
         const Argument* arguments, int count);
void barrier();
// Gives `value` to the lanes that ask for it; `out` gets that of lane `source`.
void shuffle(unsigned mask, const void* value, void* out, size_t bytes, int source);
int lane();
// A copy to shared memory that happens at `copies_done`, or before: what looks there sooner is told on.
void copy_ahead(void* to, const void* from, size_t bytes, bool there);
void copies_batched();
void copies_done(int left, bool all);
// Shares of `count` matrices of 8 rows of 16 bytes, whose addresses lanes give.
void matrices(void* to, const void* from, int count, bool turned);
// sums += a * b by the lanes of a warp, each of which has `depth` / 2 elements of a and `depth` / 4 of b.
void mma(float* sums, const float* a, const float* b, int depth);

template <typename T>
Argument argument(T* p) {
  return {p};
}
template <typename T>
Argument argument(T) {
  return {nullptr};
}

template <typename F>
__attribute__((no_sanitize("thread"))) void call(void* closure) {
  (*static_cast<F*>(closure))();
}

template <typename F>
void launch(const char* name, dim3 grid, dim3 block, F body, const Argument* arguments, int count) {
  run(name, grid, block, call<F>, &body, sizeof(body), arguments, count);
}

template <typename... A, typename... P>
void start(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, A... arguments) {
  const Argument list[] = {argument(arguments)..., Argument{nullptr}};
  launch(name, grid, block, [=]() __attribute__((no_sanitize("thread"))) { kernel(arguments...); }, list,
         static_cast<int>(sizeof...(arguments)));
}

}  // namespace emulated

#define EMULATED_CUDA 1
#define LAUNCH(kernel, grid, block, stream, ...) \
  ((void)(stream), emulated::start(#kernel, kernel, grid, block, __VA_ARGS__))

#define LAUNCH_SHARED(kernel, grid, block, bytes, stream, ...) LAUNCH(kernel, grid, block, stream, __VA_ARGS__)
#define DYNAMIC_SHARED(bytes) static __align__(16) unsigned char dynamic_shared[bytes]

#define threadIdx (emulated::place.thread)
#define blockIdx (emulated::place.block)
#define blockDim (emulated::place.threads)
#define gridDim (emulated::place.blocks)

inline void __syncthreads() { emulated::barrier(); }

template <typename T>
T __shfl_sync(unsigned mask, T x, int source, int = 32) {
  T out;
  emulated::shuffle(mask, &x, &out, sizeof(T), source & 31);
  return out;
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int lanes, int = 32) {
  return __shfl_sync(mask, x, emulated::lane() ^ lanes);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T x, unsigned by, int = 32) {
  const int source = emulated::lane() + static_cast<int>(by);
  return __shfl_sync(mask, x, source < 32 ? source : emulated::lane());
}
template <typename T>
T __shfl_up_sync(unsigned mask, T x, unsigned by, int = 32) {
  const int source = emulated::lane() - static_cast<int>(by);
  return __shfl_sync(mask, x, source >= 0 ? source : emulated::lane());
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { __shfl_sync(mask, 0, emulated::lane()); }

// --- bits ----------------------------------------------------------------------------------------------------

template <typename To, typename From>
inline To emulated_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To out;
  memcpy(&out, &x, sizeof(out));
  return out;
}
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<unsigned long long>(a) * b) >> 32);
}

// --- halves --------------------------------------------------------------------------------------------------

struct __half {
  unsigned short bits;
};
struct __nv_bfloat16 {
  unsigned short bits;
};

inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const unsigned bits = __float_as_uint(x);
  if (x != x) return {static_cast<unsigned short>((bits >> 16) | 0x40)};
  return {static_cast<unsigned short>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
inline float __half2float(__half x) {
  const unsigned sign = (x.bits & 0x8000u) << 16, body = x.bits & 0x7fffu;
  if (body >= 0x7c00) return __uint_as_float(sign | 0x7f800000u | ((body & 0x3ff) << 13));
  const float small = static_cast<float>(body) * 0x1p-24f;  // exact where the exponent is zero
  return body < 0x400 ? (sign ? -small : small) : __uint_as_float(sign | ((body << 13) + (112u << 23)));
}
inline __half __float2half_rn(float x) {
  const unsigned bits = __float_as_uint(x), sign = (bits >> 16) & 0x8000u, body = bits & 0x7fffffffu;
  unsigned out;
  if (body > 0x7f800000u) {
    out = 0x7e00;
  } else if (body >= 143u << 23) {
    out = 0x7c00;
  } else if (body < 113u << 23) {  // added to 0.5, the sum's last bit is worth 2**-24
    out = __float_as_uint(__uint_as_float(body) + 0.5f) - (126u << 23);
  } else {
    out = (body + 0xfffu - (112u << 23) + ((body >> 13) & 1)) >> 13;
  }
  return {static_cast<unsigned short>(sign | out)};
}
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short x) { return {x}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return {x}; }

// --- small matrices ------------------------------------------------------------------------------------------

namespace emulated {

inline float tf32(float x) {
  return x != x ? x : __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);  // ties away from zero
}
inline void mma_tf32(float* sums, const float* a, const float* b) {
  float x[4], y[2];
  for (int i = 0; i < 4; ++i) x[i] = tf32(a[i]);
  for (int i = 0; i < 2; ++i) y[i] = tf32(b[i]);
  mma(sums, x, y, 8);
}
template <typename T, typename F>
void mma_halves(float* sums, const T* a, const T* b, F widen) {
  float x[8], y[4];
  for (int i = 0; i < 8; ++i) x[i] = widen(a[i]);
  for (int i = 0; i < 4; ++i) y[i] = widen(b[i]);
  mma(sums, x, y, 16);
}
inline void mma_f16(float* sums, const __half* a, const __half* b) { mma_halves(sums, a, b, __half2float); }
inline void mma_bf16(float* sums, const __nv_bfloat16* a, const __nv_bfloat16* b) {
  mma_halves(sums, a, b, __bfloat162float);
}

}  // namespace emulated

// --- the runtime ---------------------------------------------------------------------------------------------

typedef int cudaError_t;
typedef void* cudaStream_t;
enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorLaunchFailure = 719 };
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaMalloc(void** p, size_t bytes);
cudaError_t cudaFree(void* p);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t);
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
