// Copies ahead, and what the lanes of a warp do together with small matrices. Part of emulate.cpp, inside its
// namespace.

void copy_ahead(void* to, const void* from, size_t bytes, bool there) {
  void* const site = __builtin_return_address(0);
  Copy c{to, {}, bytes, batches[current]};
  if (reinterpret_cast<uintptr_t>(to) % bytes || (there && reinterpret_cast<uintptr_t>(from) % bytes)) {
    fail("copies %zu bytes that are not aligned", bytes);
  }
  if (there) {
    access(from, bytes, false, static_cast<char*>(site) + 1);
    memcpy(c.bytes, from, bytes);
  }
  access(to, bytes, true, site);
  copies[current].push_back(c);
  for (size_t i = 0; i < bytes; ++i) on_the_way[reinterpret_cast<uintptr_t>(to) + i] = current;
}

void copies_batched() { ++batches[current]; }

void copies_done(int left, bool all) {
  const bool counted = traffic.on;
  traffic.on = false;  // they were, when they set out
  std::vector<Copy> rest;
  for (const Copy& c : copies[current]) {
    if (!all && c.batch >= batches[current] - left) {
      rest.push_back(c);
      continue;
    }
    memcpy(c.to, c.bytes, c.size);
    for (size_t i = 0; i < c.size; ++i) on_the_way.erase(reinterpret_cast<uintptr_t>(c.to) + i);
    access(c.to, c.size, true, nullptr);
  }
  traffic.on = counted;
  copies[current] = rest;
}

void matrices(void* to, const void* from, int count, bool turned) {
  Fibre& f = fibres[current];
  const int turn = f.shuffles++ & 1, me = lane(), warp = current / 32;
  if (threads % 32) fail("matrices in a block of %d threads", threads);
  if (me < 8 * count) {
    if (reinterpret_cast<uintptr_t>(from) % 16) fail("a row of matrices at %p, which is not aligned", from);
    access(from, 16, false, __builtin_return_address(0));
  }
  memcpy(slots[warp][turn][me], &from, sizeof(from));
  f.mask = ~0u;
  yield_to_main(AT_SHUFFLE);
  for (int j = 0; j < count; ++j) {
    char* const mine = static_cast<char*>(to) + 4 * j;
    const auto row = [&](int r) {
      const char* p;
      memcpy(&p, slots[warp][turn][8 * j + r], sizeof(p));
      return p;
    };
    if (turned) {
      for (int e = 0; e < 2; ++e) memcpy(mine + 2 * e, row(me % 4 * 2 + e) + me / 4 * 2, 2);
    } else {
      memcpy(mine, row(me / 4) + me % 4 * 4, 4);
    }
  }
}

void mma(float* sums, const float* a, const float* b, int depth) {
  Fibre& f = fibres[current];
  const int turn = f.shuffles++ & 1, me = lane(), q = me % 4, r = me / 4;
  auto& all = fragments[current / 32][turn];
  if (threads % 32) fail("mma in a block of %d threads", threads);
  memcpy(all[me], a, sizeof(float) * static_cast<size_t>(depth / 2));
  memcpy(all[me] + 8, b, sizeof(float) * static_cast<size_t>(depth / 4));
  f.mask = ~0u;
  yield_to_main(AT_SHUFFLE);
  for (int e = 0; e < 4; ++e) {
    const int row = r + 8 * (e / 2), column = 2 * q + e % 2;
    double total = 0;
    for (int k = 0; k < depth; ++k) {
      // Who has term k, and where: of rows r and r + 8 the elements lie next to one another.
      const int lane = depth == 8 ? k % 4 : k % 8 / 2;
      const int ea = depth == 8 ? row / 8 + k / 4 * 2 : k % 2 + row / 8 * 2 + k / 8 * 4;
      const int eb = depth == 8 ? k / 4 : k % 2 + k / 8 * 2;
      total += static_cast<double>(all[row % 8 * 4 + lane][ea]) * all[column * 4 + lane][8 + eb];
    }
    sums[e] += static_cast<float>(total);
  }
}
