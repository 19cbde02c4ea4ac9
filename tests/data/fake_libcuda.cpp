// A driver without a GPU, for tests: libcuda.so.1 with the functions that Tracegrad calls, so that NVIDIA's own
// Python package packs the arguments. Device memory is the host's; kernels are those of a library that g++ built
// (runtime/cuda_emulated.py), whose path takes the place of machine code. Whatever is not as the driver's
// documentation asks is an error: no current context, handles of another kind, addresses that nobody allocated,
// calls that a capture forbids.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace {

enum Status {
  kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNotInitialized = 3, kNoDevice = 100, kInvalidDevice = 101,
  kInvalidImage = 200, kInvalidContext = 201, kInvalidHandle = 400, kNotFound = 500, kNotReady = 600,
  kIllegalAddress = 700, kLaunchFailed = 719, kCaptureUnsupported = 900,
};

enum Kind { kContext = 0xc0, kStream, kEvent, kModule, kFunction, kGraph, kExec };

using Work = std::function<int()>;

struct Object {
  explicit Object(int k) : magic(0x7ac30000 + k) {}
  int magic;
  bool alive = true;
};
struct Context : Object { Context() : Object(kContext) {} int device = 0; };
struct Stream : Object { Stream() : Object(kStream) {} bool capturing = false; std::vector<Work> noted; };
struct Event : Object { Event() : Object(kEvent) {} unsigned flags = 0; bool recorded = false; double at = 0; };
struct Module : Object { Module() : Object(kModule) {} void* library = nullptr; };
struct Graph : Object { Graph() : Object(kGraph) {} std::vector<Work> noted; };
struct Exec : Object { Exec() : Object(kExec) {} std::vector<Work> noted; };
struct Function : Object {
  Function() : Object(kFunction) {}
  Module* module = nullptr;
  void (*launch)(const unsigned*, void**) = nullptr;
  std::vector<int> sizes;
};

bool g_started = false;
size_t g_used = 0;
double g_clock = 0;
std::string g_said;
std::map<uint64_t, size_t> g_memory, g_pinned;
Context g_context;
thread_local Context* t_current = nullptr;

size_t total() {
  const char* given = getenv("FAKE_CUDA_MEMORY");
  return given ? strtoull(given, nullptr, 10) : size_t{1} << 30;
}

template <typename T>
bool is(const void* p, int kind) {
  return p && static_cast<const T*>(p)->magic == 0x7ac30000 + kind && static_cast<const T*>(p)->alive;
}

bool inside(uint64_t p, size_t n) {
  auto it = g_memory.upper_bound(p);
  if (it == g_memory.begin()) return false;
  --it;
  return p + n <= it->first + it->second;
}

int give(void* stream, Work work, bool host) {
  if (!is<Stream>(stream, kStream)) return kInvalidHandle;
  auto* s = static_cast<Stream*>(stream);
  if (!s->capturing) return work();
  if (host) return kCaptureUnsupported;
  s->noted.push_back(std::move(work));
  return kSuccess;
}

}  // namespace

#define NEEDS_CONTEXT \
  if (!g_started) return kNotInitialized; \
  if (!t_current) return kInvalidContext

extern "C" {

int cuInit(unsigned flags) {
  if (flags) return kInvalidValue;
  if (getenv("FAKE_CUDA_NONE")) return kNoDevice;
  g_started = true;
  return kSuccess;
}
int cuDriverGetVersion(int* v) { *v = 13000; return kSuccess; }
int cuDeviceGetCount(int* n) { *n = 1; return g_started ? kSuccess : kNotInitialized; }
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? kSuccess : kInvalidDevice;
}
int cuDeviceGetName(char* name, int length, int) { return snprintf(name, length, "a fake GPU"), kSuccess; }
int cuDeviceGetAttribute(int* out, int what, int) {
  *out = what == 75 ? 8 : what == 76 ? 0 : what == 16 ? 4 : 1 << 20;
  return kSuccess;
}
int cuDevicePrimaryCtxRetain(void** c, int) { *c = &g_context; return g_started ? kSuccess : kNotInitialized; }
int cuCtxSetCurrent(void* c) {
  if (!is<Context>(c, kContext)) return kInvalidContext;
  t_current = static_cast<Context*>(c);
  return kSuccess;
}
int cuGetErrorString(int status, const char** text) {
  static const std::map<int, const char*> known = {
      {kInvalidValue, "invalid argument"}, {kOutOfMemory, "out of memory"}, {kNoDevice, "no device"},
      {kInvalidContext, "invalid device context"}, {kInvalidHandle, "invalid resource handle"},
      {kInvalidImage, "device kernel image is invalid"}, {kIllegalAddress, "an illegal memory access"},
      {kCaptureUnsupported, "operation not permitted when stream is capturing"}};
  auto it = known.find(status);
  *text = status == kLaunchFailed ? g_said.c_str() : it == known.end() ? "unknown error" : it->second;
  return kSuccess;
}

int cuMemGetInfo(size_t* free, size_t* all) { NEEDS_CONTEXT; *free = total() - g_used; *all = total(); return 0; }
int cuMemAlloc(uint64_t* p, size_t n) {
  NEEDS_CONTEXT;
  if (!n) return kInvalidValue;
  if (g_used + n > total()) return kOutOfMemory;
  *p = reinterpret_cast<uint64_t>(aligned_alloc(512, (n + 511) / 512 * 512));
  memset(reinterpret_cast<void*>(*p), 0xa5, n);
  g_memory[*p] = n;
  g_used += n;
  return kSuccess;
}
int cuMemFree(uint64_t p) {
  NEEDS_CONTEXT;
  auto it = g_memory.find(p);
  if (it == g_memory.end()) return kInvalidValue;
  g_used -= it->second;
  g_memory.erase(it);
  free(reinterpret_cast<void*>(p));
  return kSuccess;
}
int cuMemHostAlloc(void** p, size_t n, unsigned flags) {
  NEEDS_CONTEXT;
  if (!n || flags > 7) return kInvalidValue;
  *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096);
  g_pinned[reinterpret_cast<uint64_t>(*p)] = n;
  return kSuccess;
}
int cuMemFreeHost(void* p) {
  NEEDS_CONTEXT;
  if (!g_pinned.erase(reinterpret_cast<uint64_t>(p))) return kInvalidValue;
  free(p);
  return kSuccess;
}
int cuMemcpyHtoDAsync(uint64_t to, const void* from, size_t n, void* s) {
  NEEDS_CONTEXT;
  if (!inside(to, n)) return kIllegalAddress;
  return give(s, [=] { memcpy(reinterpret_cast<void*>(to), from, n); return 0; }, true);
}
int cuMemcpyDtoHAsync(void* to, uint64_t from, size_t n, void* s) {
  NEEDS_CONTEXT;
  if (!inside(from, n)) return kIllegalAddress;
  return give(s, [=] { memcpy(to, reinterpret_cast<void*>(from), n); return 0; }, true);
}
int cuMemcpyDtoDAsync(uint64_t to, uint64_t from, size_t n, void* s) {
  NEEDS_CONTEXT;
  if (!inside(to, n) || !inside(from, n)) return kIllegalAddress;
  return give(s, [=] { memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), n); return 0; }, false);
}

int cuStreamCreate(void** s, unsigned flags) {
  NEEDS_CONTEXT;
  if (flags > 1) return kInvalidValue;
  *s = new Stream;
  return kSuccess;
}
int cuStreamSynchronize(void* s) { NEEDS_CONTEXT; return give(s, [] { return 0; }, true); }
int cuStreamQuery(void* s) { return cuStreamSynchronize(s); }
int cuStreamBeginCapture(void* s, int mode) {
  NEEDS_CONTEXT;
  if (!is<Stream>(s, kStream) || mode < 0 || mode > 2) return kInvalidValue;
  static_cast<Stream*>(s)->capturing = true;
  return kSuccess;
}
int cuStreamEndCapture(void* s, void** graph) {
  NEEDS_CONTEXT;
  auto* stream = static_cast<Stream*>(s);
  if (!is<Stream>(s, kStream) || !stream->capturing) return kInvalidHandle;
  auto* g = new Graph;
  g->noted.swap(stream->noted);
  stream->capturing = false;
  *graph = g;
  return kSuccess;
}
int cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long flags) {
  NEEDS_CONTEXT;
  if (!is<Graph>(graph, kGraph) || flags) return kInvalidValue;
  auto* e = new Exec;
  e->noted = static_cast<Graph*>(graph)->noted;
  *exec = e;
  return kSuccess;
}
int cuGraphDestroy(void* g) {
  if (!is<Graph>(g, kGraph)) return kInvalidHandle;
  static_cast<Graph*>(g)->alive = false;
  return kSuccess;
}
int cuGraphExecDestroy(void* g) {
  if (!is<Exec>(g, kExec)) return kInvalidHandle;
  static_cast<Exec*>(g)->alive = false;
  return kSuccess;
}
int cuGraphLaunch(void* g, void* s) {
  NEEDS_CONTEXT;
  if (!is<Exec>(g, kExec) || !is<Stream>(s, kStream)) return kInvalidHandle;
  for (auto& w : static_cast<Exec*>(g)->noted)
    if (int status = w()) return status;
  return kSuccess;
}
int cuEventCreate(void** e, unsigned flags) {
  NEEDS_CONTEXT;
  auto* made = new Event;
  made->flags = flags;
  *e = made;
  return kSuccess;
}
int cuEventDestroy(void* e) {
  if (!is<Event>(e, kEvent)) return kInvalidHandle;
  static_cast<Event*>(e)->alive = false;
  return kSuccess;
}
int cuEventRecord(void* e, void* s) {
  NEEDS_CONTEXT;
  if (!is<Event>(e, kEvent) || !is<Stream>(s, kStream)) return kInvalidHandle;
  auto* event = static_cast<Event*>(e);
  event->recorded = true;
  event->at = g_clock += 1;
  return kSuccess;
}
int cuEventQuery(void* e) { NEEDS_CONTEXT; return is<Event>(e, kEvent) ? kSuccess : kInvalidHandle; }
int cuEventSynchronize(void* e) { return cuEventQuery(e); }
int cuEventElapsedTime(float* ms, void* a, void* b) {
  NEEDS_CONTEXT;
  if (!is<Event>(a, kEvent) || !is<Event>(b, kEvent)) return kInvalidHandle;
  auto *start = static_cast<Event*>(a), *end = static_cast<Event*>(b);
  if ((start->flags | end->flags) & 2 || !start->recorded || !end->recorded) return kInvalidHandle;
  *ms = static_cast<float>(end->at - start->at);
  return kSuccess;
}

int cuModuleLoadData(void** m, const void* image) {
  NEEDS_CONTEXT;
  void* library = dlopen(static_cast<const char*>(image), RTLD_NOW | RTLD_LOCAL);
  if (!library) return kInvalidImage;
  auto* module = new Module;
  module->library = library;
  *m = module;
  return kSuccess;
}
int cuModuleUnload(void* m) {
  NEEDS_CONTEXT;
  if (!is<Module>(m, kModule)) return kInvalidHandle;
  static_cast<Module*>(m)->alive = false;
  return kSuccess;
}
int cuModuleGetFunction(void** f, void* m, const char* name) {
  NEEDS_CONTEXT;
  if (!is<Module>(m, kModule)) return kInvalidHandle;
  auto* module = static_cast<Module*>(m);
  void* launch = dlsym(module->library, (std::string("packed_") + name).c_str());
  void* list = dlsym(module->library, (std::string("parameters_") + name).c_str());
  if (!launch || !list) return kNotFound;
  auto* made = new Function;
  made->module = module;
  made->launch = reinterpret_cast<void (*)(const unsigned*, void**)>(launch);
  made->sizes.resize(4096);
  made->sizes.resize(reinterpret_cast<int (*)(int*)>(list)(made->sizes.data()));
  *f = made;
  return kSuccess;
}
int cuFuncSetAttribute(void* f, int what, int) {
  NEEDS_CONTEXT;
  return is<Function>(f, kFunction) && what == 8 ? kSuccess : kInvalidValue;
}
int cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* s, void** parameters, void** extra) {
  NEEDS_CONTEXT;
  if (!is<Function>(f, kFunction)) return kInvalidHandle;
  auto* function = static_cast<Function*>(f);
  if (!function->module->alive || extra || !gx || !gy || !gz || bx * by * bz > 1024 || shared > 227 << 10)
    return kInvalidValue;
  // The values are read now, as the driver reads them, and by their sizes.
  std::vector<std::vector<char>> values;
  for (size_t i = 0; i < function->sizes.size(); ++i) {
    auto* at = static_cast<const char*>(parameters[i]);
    values.emplace_back(at, at + function->sizes[i]);
    if (function->sizes[i] == 8) {
      uint64_t p;
      memcpy(&p, at, 8);
      if (p >= 1u << 20 && !inside(p, 1)) return kIllegalAddress;
    }
  }
  Work work = [=]() mutable {
    unsigned sizes[6] = {gx, gy, gz, bx, by, bz};
    std::vector<void*> places;
    for (auto& v : values) places.push_back(v.data());
    void* library = function->module->library;
    reinterpret_cast<void (*)()>(dlsym(library, "emulated_clear"))();
    function->launch(sizes, places.data());
    const char* error = reinterpret_cast<const char* (*)()>(dlsym(library, "emulated_error"))();
    if (error && *error) {
      g_said = error;
      return static_cast<int>(kLaunchFailed);
    }
    return static_cast<int>(kSuccess);
  };
  return give(s, work, false);
}

// NVRTC asks for it where there is a driver.
int cuGetExportTable(const void** table, const void*) { *table = nullptr; return kNotFound; }

int cuGetProcAddress_v2(const char* name, void** found, int, uint64_t, int* status) {
  std::string wanted = strcmp(name, "cuGraphInstantiate") ? name : "cuGraphInstantiateWithFlags";
  if (wanted == "cuGetProcAddress") wanted = "cuGetProcAddress_v2";
  static void* self = [] {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&cuInit), &info);
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }();
  *found = dlsym(self, wanted.c_str());
  if (status) *status = *found ? 0 : 1;
  return kSuccess;
}
int cuGetProcAddress(const char* name, void** found, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, found, version, flags, nullptr);
}

}  // extern "C"
