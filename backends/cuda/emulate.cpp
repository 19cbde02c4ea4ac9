// The machine behind emulate.h: fibres, barriers, shuffles, and a shadow of memory for the checks.
//
// A checked unit is compiled with -fsanitize=thread, so that each of its memory accesses calls __tsan_read4,
// __tsan_write4 and so on. They are defined here, not by libtsan: they look whether the access lies in the
// kernel's buffers, whether shared memory was written before, and whether another thread touched the same byte
// with nothing to order the two (no barrier in between, or another block).
#include "emulate.h"

#include "emulate_traffic.h"

#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <map>
#include <string>
#include <unordered_map>
#include <vector>

namespace emulated {

Place place;

namespace {

enum State { READY, AT_BARRIER, AT_SHUFFLE, DONE };
constexpr size_t STACK = 256 << 10;
constexpr int MOST = 1024;

#if defined(__x86_64__)
extern "C" void emulated_switch(void** from, void* to);
asm(R"(
.text
.local emulated_switch
.type emulated_switch, @function
emulated_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emulated_switch, .-emulated_switch
)");
struct Context {
  void* stack = nullptr;
};
void change(Context& from, Context& to) { emulated_switch(&from.stack, to.stack); }
void prepare(Context& c, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + STACK) - 2;
  *top = reinterpret_cast<void*>(entry);
  top -= 6;
  memset(top, 0, 6 * sizeof(void*));
  c.stack = top;
}
#else
struct Context {
  ucontext_t u;
};
void change(Context& from, Context& to) { swapcontext(&from.u, &to.u); }
void prepare(Context& c, char* stack, void (*entry)()) {
  getcontext(&c.u);
  c.u.uc_stack.ss_sp = stack;
  c.u.uc_stack.ss_size = STACK;
  c.u.uc_link = nullptr;
  makecontext(&c.u, entry, 0);
}
#endif

struct Fibre {
  Context context;
  State state = DONE;
  unsigned mask = 0;
  int shuffles = 0;
};

struct Range {
  uintptr_t low, high;
  int argument;
};

// The last accesses of one byte.
struct Shadow {
  unsigned write_launch = 0, read_launch = 0;
  int write_block = 0, write_phase = 0, write_thread = 0;
  int read_block = 0, read_phase = 0, read_thread = 0;  // -1: several
};

Fibre fibres[MOST];
char* stacks = nullptr;
Context main_context;
int current = -1;
int threads = 0;
int phase = 0;
int block_number = 0;
unsigned launch_number = 0;
const char* kernel_name = "";
void (*body)(void*) = nullptr;
void* body_closure = nullptr;
size_t closure_bytes = 0;
char slots[MOST / 32][2][32][16];
float fragments[MOST / 32][2][32][12];  // of a and b, of each lane
struct Copy {
  void* to;
  char bytes[16];
  size_t size;
  int batch;
};
std::vector<Copy> copies[MOST];
int batches[MOST];  // that each thread ended
std::unordered_map<uintptr_t, int> on_the_way;  // bytes that copies will go to, and whose
std::string error;
std::map<std::string, std::vector<long long>> described;  // bytes of each argument
std::vector<Range> ranges;
std::unordered_map<uintptr_t, Shadow>* shadows = nullptr;
uintptr_t static_low = 0, static_high = 0, library = 0;
Traffic traffic;

bool running() { return current >= 0; }

__attribute__((noreturn)) void stop() {
  // The launch is given up: its fibres are never resumed.
  const int thread = current;
  current = -1;
  change(fibres[thread].context, main_context);
  abort();
}

void fail(const char* format, ...) {
  if (error.empty()) {
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof(text), format, list);
    va_end(list);
    char where[256];
    snprintf(where, sizeof(where), "kernel %s, block %d", kernel_name, block_number);
    error = std::string(where) + (running() ? ", thread " + std::to_string(current) : "") + ": " + text;
  }
  if (running()) stop();
}

void yield_to_main(State state) {
  Fibre& f = fibres[current];
  f.state = state;
  change(f.context, main_context);
}

void entry() {
  body(body_closure);
  fibres[current].state = DONE;
  change(fibres[current].context, main_context);
  abort();
}

void resume(int t) {
  current = t;
  const unsigned n = static_cast<unsigned>(t), x = place.threads.x, y = place.threads.y;
  place.thread = {n % x, n / x % y, n / x / y};
  change(main_context, fibres[t].context);
  current = -1;
}

// Lets the lanes of a warp go on that all wait at a shuffle; true if there are such.
bool release_warp(int first) {
  const int last = first + 32 < threads ? first + 32 : threads;
  unsigned waiting = 0, mask = 0;
  for (int t = first; t < last; ++t) {
    if (fibres[t].state == AT_SHUFFLE) {
      waiting |= 1u << (t - first);
      mask |= fibres[t].mask;
    }
  }
  if (!waiting || (mask & ~waiting)) return false;
  for (int t = first; t < last; ++t) {
    if (waiting >> (t - first) & 1) fibres[t].state = READY;
  }
  return true;
}

void run_block() {
  for (int t = 0; t < threads; ++t) {
    fibres[t].state = READY;
    fibres[t].shuffles = 0;
    prepare(fibres[t].context, stacks + STACK * static_cast<size_t>(t), entry);
  }
  for (int t = 0; t < threads; ++t) {
    copies[t].clear();
    batches[t] = 0;
  }
  on_the_way.clear();
  phase = 0;
  while (error.empty()) {
    bool moved = false;
    int done = 0, at_barrier = 0;
    for (int t = 0; t < threads && error.empty(); ++t) {
      if (fibres[t].state == READY) {
        resume(t);
        moved = true;
      }
      done += fibres[t].state == DONE;
      at_barrier += fibres[t].state == AT_BARRIER;
    }
    if (!error.empty() || done == threads) return;
    for (int first = 0; first < threads; first += 32) moved |= release_warp(first);
    if (at_barrier == threads) {
      ++phase;
      for (int t = 0; t < threads; ++t) fibres[t].state = READY;
      moved = true;
    }
    if (!moved) {
      if (at_barrier) {
        fail("%d of %d threads wait at a barrier that the others don't reach", at_barrier, threads);
      } else {
        fail("lanes wait at a shuffle that others of their warp don't reach");
      }
    }
  }
}

int find_static(dl_phdr_info* info, size_t, void*) {
  const uintptr_t here = reinterpret_cast<uintptr_t>(&launch_number);
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& p = info->dlpi_phdr[i];
    if (p.p_type != PT_LOAD) continue;
    const uintptr_t low = info->dlpi_addr + p.p_vaddr, high = low + p.p_memsz;
    if (low <= here && here < high) {
      static_low = low;
      static_high = high;
      library = info->dlpi_addr;
      return 1;
    }
  }
  return 0;
}

bool inside(uintptr_t a, const void* p, size_t bytes) {
  const uintptr_t low = reinterpret_cast<uintptr_t>(p);
  return low <= a && a < low + bytes;
}

void touch(Shadow& s, uintptr_t a, bool write, bool shared) {
  const int t = current;
  const bool written = s.write_launch == launch_number && (!shared || s.write_block == block_number);
  if (written && (s.write_block != block_number || (s.write_phase == phase && s.write_thread != t))) {
    fail("race with thread %d of block %d, which wrote %s memory at %p too", s.write_thread, s.write_block,
         shared ? "shared" : "global", reinterpret_cast<void*>(a));
  }
  if (shared && !write && !written) fail("reads shared memory that was not written, at %p", reinterpret_cast<void*>(a));
  const bool read = s.read_launch == launch_number && (!shared || s.read_block == block_number);
  if (write) {
    if (read && (s.read_block != block_number || (s.read_phase == phase && s.read_thread != t))) {
      fail("race: writes %s memory at %p that thread %d of block %d reads", shared ? "shared" : "global",
           reinterpret_cast<void*>(a), s.read_thread, s.read_block);
    }
    s.write_launch = launch_number;
    s.write_block = block_number;
    s.write_phase = phase;
    s.write_thread = t;
  } else if (!read || s.read_block == block_number) {
    s.read_thread = read && s.read_phase == phase && s.read_thread != t ? -1 : t;
    s.read_launch = launch_number;
    s.read_block = block_number;
    s.read_phase = phase;
  } else {
    s.read_block = -1;  // other blocks, too
  }
}

void access(const void* p, size_t bytes, bool write, const void* site) {
  if (!running() || described.find(kernel_name) == described.end()) return;
  const uintptr_t a = reinterpret_cast<uintptr_t>(p);
  if (inside(a, stacks, STACK * MOST) || inside(a, &place, sizeof(place))) return;
  if (inside(a, body_closure, closure_bytes)) return;
  bool shared = false;
  bool found = false;
  for (const Range& r : ranges) {
    if (r.low <= a && a + bytes <= r.high) {
      found = true;
      break;
    }
  }
  if (!found) {
    shared = static_low <= a && a + bytes <= static_high;
    if (!shared) {
      fail("%s %zu bytes outside of the kernel's buffers, at %p", write ? "writes" : "reads", bytes, p);
      return;
    }
  }
  if ((bytes & (bytes - 1)) == 0 && a % bytes) fail("%s %zu bytes at %p, which are not aligned", write ? "writes" : "reads", bytes, p);
  if (traffic.on) traffic.add(reinterpret_cast<uintptr_t>(site), current, a, static_cast<unsigned>(bytes), shared, write);
  if (!shadows) shadows = new std::unordered_map<uintptr_t, Shadow>;
  for (size_t i = 0; shared && !on_the_way.empty() && i < bytes; ++i) {
    const auto copy = on_the_way.find(a + i);
    if (copy == on_the_way.end()) continue;
    fail("%s shared memory at %p that a copy of thread %d is on its way to", write ? "writes" : "reads",
         reinterpret_cast<void*>(a + i), copy->second);
  }
  for (size_t i = 0; i < bytes; ++i) touch((*shadows)[a + i], a + i, write, shared);
}

}  // namespace

void run(const char* name, dim3 grid, dim3 block, void (*call)(void*), void* closure, size_t bytes,
         const Argument* arguments, int count) {
  if (!error.empty()) return;  // as CUDA does after a failed launch
  if (!stacks) {
    void* p = mmap(nullptr, STACK * MOST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      error = "no memory for the stacks of the emulated threads";
      return;
    }
    stacks = static_cast<char*>(p);
    dl_iterate_phdr(find_static, nullptr);
  }
  kernel_name = name;
  const size_t many = static_cast<size_t>(block.x) * block.y * block.z;
  if (!many || many > MOST || !grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535) {
    error = std::string("kernel ") + name + ": a grid or block that can't be launched";
    return;
  }
  threads = static_cast<int>(many);
  place.threads = block;
  place.blocks = grid;
  body = call;
  body_closure = closure;
  closure_bytes = bytes;
  ++launch_number;
  ranges.clear();
  const auto found = described.find(name);
  if (found != described.end()) {
    for (int i = 0; i < count; ++i) {
      const uintptr_t low = reinterpret_cast<uintptr_t>(arguments[i].address);
      if (low) ranges.push_back({low, low + static_cast<uintptr_t>(found->second[static_cast<size_t>(i)]), i});
    }
  }
  block_number = 0;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x, ++block_number) {
        place.block = {x, y, z};
        traffic.start_block(threads);
        run_block();
        traffic.end_block(name);
        if (!error.empty()) return;
      }
    }
  }
}

void barrier() {
  if (threads > 1) yield_to_main(AT_BARRIER);
}

int lane() { return current & 31; }

void shuffle(unsigned mask, const void* value, void* out, size_t bytes, int source) {
  Fibre& f = fibres[current];
  const int warp = current / 32, turn = f.shuffles++ & 1;
  if (!(mask >> lane() & 1) || !(mask >> source & 1)) fail("shuffle with a mask that leaves out a lane it needs");
  memcpy(slots[warp][turn][lane()], value, bytes);
  f.mask = mask;
  yield_to_main(AT_SHUFFLE);
  memcpy(out, slots[warp][turn][source], bytes);
}

#include "emulate_warps.h"

}  // namespace emulated

using namespace emulated;

cudaError_t cudaGetLastError() { return error.empty() ? cudaSuccess : cudaErrorLaunchFailure; }
const char* cudaGetErrorString(cudaError_t code) { return code ? error.c_str() : "no error"; }
cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = aligned_alloc(256, (bytes + 256) / 256 * 256);
  return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* p) {
  free(p);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  if (!error.empty()) return cudaErrorLaunchFailure;
  memmove(to, from, bytes);
  return cudaSuccess;
}

extern "C" {

// How many bytes each argument of a kernel has: from then on its accesses are checked.
void emulated_describe(const char* kernel, int count, const long long* bytes) {
  described[kernel].assign(bytes, bytes + count);
}
// From then on accesses of described kernels are counted; what they cost, as text.
void emulated_count(int on) {
  traffic.on = on;
  traffic.clear();
}
const char* emulated_traffic() {
  static std::string text;
  text = traffic.text(library);
  return text.c_str();
}
const char* emulated_error() { return error.c_str(); }
void emulated_clear() {
  error.clear();
  if (shadows) shadows->clear();
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define CHECK(name, n) \
  void __tsan_read##name(void* p) { access(p, n, false, __builtin_return_address(0)); } \
  void __tsan_write##name(void* p) { access(p, n, true, __builtin_return_address(0)); } \
  void __tsan_unaligned_read##name(void* p) { access(p, n, false, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##name(void* p) { access(p, n, true, __builtin_return_address(0)); } \
  void __tsan_volatile_read##name(void* p) { access(p, n, false, __builtin_return_address(0)); } \
  void __tsan_volatile_write##name(void* p) { access(p, n, true, __builtin_return_address(0)); }
CHECK(1, 1)
CHECK(2, 2)
CHECK(4, 4)
CHECK(8, 8)
CHECK(16, 16)
void __tsan_read_range(void* p, unsigned long n) { access(p, n, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, unsigned long n) { access(p, n, true, __builtin_return_address(0)); }

struct Site {
  const char* file;
  unsigned line, column;
};
void __ubsan_handle_out_of_bounds(Site* site, void* index) {
  if (running()) fail("line %u: index %lld is outside of its array", site->line, reinterpret_cast<long long>(index));
}
}
