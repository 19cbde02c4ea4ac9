"""A program with a `main`: `standalone(unit, ...)` adds to a unit what loads its inputs from a safetensors
file, runs it a number of times, prints its scalar outputs and writes what it updated. Used by
`export_cuda`.

    nvcc train.cu -o train && ./train [steps [inputs.safetensors [results.safetensors]]]
"""

from __future__ import annotations

from ...ir import dtypes
from ...ir.dtypes import DType
from .emit import CudaUnit
from .emit_names import C_TYPES, EmitError

#: names of element types in safetensors files
FILE_TYPES: dict[DType, str] = {
    dtypes.float64: "F64", dtypes.float32: "F32", dtypes.float16: "F16", dtypes.bfloat16: "BF16",
    dtypes.int64: "I64", dtypes.int32: "I32", dtypes.int16: "I16", dtypes.int8: "I8", dtypes.uint8: "U8",
    dtypes.bool_: "BOOL", dtypes.uint32: "U32", dtypes.uint64: "U64",
}  # fmt: skip

_MAIN = r"""
#ifndef __CUDACC_RTC__
// --- the program: inputs from a safetensors file, steps, results into another one

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <string>
#include <vector>

struct Slot {
  const char* name;
  const char* dtype;
  const char* shape;
  unsigned long long bytes;
  bool input, updated;
  const char* format;  // of a scalar output that is printed
};

static const Slot slots[] = {
@SLOTS@};
static const int slot_count = @COUNT@;

static void fail(const std::string& why) {
  fprintf(stderr, "%s\n", why.c_str());
  exit(1);
}

static void check(int code, const std::string& what) {
  if (code) fail(what + ": " + cudaGetErrorString(static_cast<cudaError_t>(code)));
}

// The header of a safetensors file is JSON: an object of objects, strings and lists of numbers.
struct Reader {
  const std::string& text;
  size_t at;

  char peek() {
    while (at < text.size() && strchr(" \t\r\n", text[at])) ++at;
    return at < text.size() ? text[at] : '\0';
  }
  bool take(char c) {
    if (peek() != c) return false;
    ++at;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail("the file's header does not parse");
  }
  std::string word() {
    expect('"');
    std::string out;
    while (at < text.size() && text[at] != '"') {
      if (text[at] == '\\') ++at;
      if (at < text.size()) out += text[at++];
    }
    ++at;
    return out;
  }
  std::vector<unsigned long long> numbers() {
    std::vector<unsigned long long> out;
    expect('[');
    while (!take(']')) {
      peek();
      char* end = nullptr;
      out.push_back(strtoull(text.c_str() + at, &end, 10));
      if (end == text.c_str() + at) fail("the file's header does not parse");
      at = static_cast<size_t>(end - text.c_str());
      take(',');
    }
    return out;
  }
};

struct Entry {
  std::string dtype;
  std::vector<unsigned long long> place;
};

static std::map<std::string, Entry> entries(const std::string& header) {
  std::map<std::string, Entry> out;
  Reader r{header, 0};
  r.expect('{');
  while (!r.take('}')) {
    const std::string name = r.word();
    r.expect(':');
    r.expect('{');
    Entry e;
    while (!r.take('}')) {
      const std::string key = r.word();
      r.expect(':');
      if (r.peek() == '"') {
        const std::string value = r.word();
        if (key == "dtype") e.dtype = value;
      } else {
        const std::vector<unsigned long long> value = r.numbers();
        if (key == "data_offsets") e.place = value;
      }
      r.take(',');
    }
    out[name] = e;
    r.take(',');
  }
  return out;
}

static std::vector<char> contents(const char* path) {
  FILE* f = fopen(path, "rb");
  if (!f) fail(std::string("can't read ") + path);
  std::vector<char> out;
  char part[1 << 16];
  for (size_t n; (n = fread(part, 1, sizeof(part), f)) > 0;) out.insert(out.end(), part, part + n);
  fclose(f);
  return out;
}

static unsigned long long little(const char* p) {
  unsigned long long n = 0;
  for (int i = 7; i >= 0; --i) n = n << 8 | static_cast<unsigned char>(p[i]);
  return n;
}

// Uploads every input; what it must be is said where it is not.
static void load(const char* path, void** buffers) {
  const std::vector<char> file = contents(path);
  const std::string name = path;
  if (file.size() < 8 || little(file.data()) > file.size() - 8) fail(name + " is no safetensors file");
  const unsigned long long length = little(file.data()), start = 8 + length;
  const std::map<std::string, Entry> found = entries(std::string(file.data() + 8, length));
  for (int i = 0; i < slot_count; ++i) {
    const Slot& s = slots[i];
    if (!s.input) continue;
    const auto at = found.find(s.name);
    if (at == found.end()) fail(name + " has no tensor '" + s.name + "'");
    const Entry& e = at->second;
    if (e.dtype != s.dtype || e.place.size() != 2 || e.place[1] < e.place[0] ||
        e.place[1] - e.place[0] != s.bytes) {
      fail(name + ": tensor '" + s.name + "' is not " + s.dtype + s.shape);
    }
    if (e.place[1] > file.size() - start) fail(name + " is cut off");
    if (!s.bytes) continue;
    const char* from = file.data() + start + e.place[0];
    check(cudaMemcpy(buffers[i], from, s.bytes, cudaMemcpyHostToDevice), "upload");
  }
}

// Writes what the steps updated, under another name first, so that a file that is there stays whole.
static void save(const char* path, void* const* buffers) {
  std::string header = "{";
  unsigned long long place = 0;
  for (int i = 0; i < slot_count; ++i) {
    const Slot& s = slots[i];
    if (!s.updated) continue;
    header += std::string(header.size() > 1 ? "," : "") + "\"" + s.name + "\":{\"dtype\":\"" + s.dtype +
              "\",\"shape\":" + s.shape + ",\"data_offsets\":[" + std::to_string(place) + "," +
              std::to_string(place + s.bytes) + "]}";
    place += s.bytes;
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  const std::string temporary = std::string(path) + ".tmp";
  FILE* f = fopen(temporary.c_str(), "wb");
  if (!f) fail("can't write " + temporary);
  char length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i));
  bool whole = fwrite(length, 1, 8, f) == 8 && fwrite(header.data(), 1, header.size(), f) == header.size();
  for (int i = 0; i < slot_count; ++i) {
    const Slot& s = slots[i];
    if (!s.updated) continue;
    std::vector<char> data(s.bytes);
    check(cudaMemcpy(data.data(), buffers[i], s.bytes, cudaMemcpyDeviceToHost), "download");
    whole = whole && fwrite(data.data(), 1, s.bytes, f) == s.bytes;
  }
  whole = fclose(f) == 0 && whole;
  if (!whole || rename(temporary.c_str(), path) != 0) fail(std::string("can't write ") + path);
}

static void* room(unsigned long long bytes, const char* what) {
  void* p = nullptr;
  const cudaError_t code = cudaMalloc(&p, bytes ? bytes : 1);
  if (code != cudaErrorMemoryAllocation) check(code, "no GPU can be used");
  if (code != cudaSuccess) {
    fail("out of memory: " + std::to_string(bytes) + " bytes for " + what + "; all of it takes @PEAK@");
  }
  return p;
}

int main(int argc, char** argv) {
  if (argc > 4 || (argc > 1 && argv[1][0] == '-')) {
    printf("usage: %s [steps [inputs.safetensors [results.safetensors]]]\n", argv[0]);
    return argc > 4;
  }
  const long steps = argc > 1 ? strtol(argv[1], nullptr, 10) : 10;
  std::vector<void*> buffers;
  for (int i = 0; i < slot_count; ++i) buffers.push_back(room(slots[i].bytes, slots[i].name));
  void* const workspace = room(@ARENA@, "the workspace");
  load(argc > 2 ? argv[2] : "@STEM@.safetensors", buffers.data());
  for (long step = 1; step <= steps; ++step) {
    check(@ENTRY@(buffers.data(), workspace, nullptr), "step " + std::to_string(step));
    printf("%ld", step);
    for (int i = 0; i < slot_count; ++i) {
      if (!slots[i].format) continue;
      char raw[8] = {};
      check(cudaMemcpy(raw, buffers[static_cast<size_t>(i)], slots[i].bytes, cudaMemcpyDeviceToHost), "step");
      if (!strcmp(slots[i].dtype, "F32")) {
        float x;
        memcpy(&x, raw, sizeof(x));
        printf(slots[i].format, static_cast<double>(x));
      } else {
        double x;
        memcpy(&x, raw, sizeof(x));
        printf(slots[i].format, x);
      }
    }
    printf("\n");
  }
  save(argc > 3 ? argv[3] : "@STEM@.results.safetensors", buffers.data());
  for (void* p : buffers) check(cudaFree(p), "free");
  check(cudaFree(workspace), "free");
  return 0;
}
#endif
"""


def standalone(unit: CudaUnit, stem: str) -> str:
    """The unit's text with a `main` for its one program.

    - `stem`: the default names of its files are `<stem>.safetensors` and `<stem>.results.safetensors`.
    - Printed after each step: its number, and every output that is one f32 or f64.

    :raises EmitError: a dtype that files don't have, or several programs.
    """
    if len(unit.programs) != 1:
        raise EmitError("a program of its own has one entry")
    (p,), (names,) = unit.programs, unit.slots
    updated = set(p.updated)
    rows = []
    for i, (b, name) in enumerate(zip([*p.inputs, *p.outputs], names)):
        if b.dtype not in FILE_TYPES or b.dtype not in C_TYPES:
            raise EmitError(f"{b.name}: no tensor of {b.dtype.name} in a safetensors file")
        is_input = i < len(p.inputs)
        printed = not is_input and b.size == 1 and b.dtype in (dtypes.float32, dtypes.float64)
        digits = 9 if b.dtype is dtypes.float32 else 17
        shape = "[" + ",".join(map(str, b.shape)) + "]"
        flags = f"{_bool(is_input)}, {_bool(is_input and b in updated)}"
        show = f'" %.{digits}g"' if printed else "nullptr"
        rows.append(
            f'    {{"{name}", "{FILE_TYPES[b.dtype]}", "{shape}", {b.nbytes}ull, {flags}, {show}}},\n'
        )
    total = sum(b.nbytes for b in [*p.inputs, *p.outputs]) + p.arena_bytes
    filled = {
        "SLOTS": "".join(rows) or '    {"", "", "", 0ull, false, false, nullptr},\n',
        "COUNT": str(len(rows)),
        "PEAK": f"{total} bytes",
        "ARENA": unit.workspaces[0],
        "STEM": stem,
        "ENTRY": unit.entries[0],
    }
    text = _MAIN
    for key, value in filled.items():
        text = text.replace(f"@{key}@", value)
    return unit.text + text


def _bool(x: bool) -> str:
    return "true" if x else "false"
