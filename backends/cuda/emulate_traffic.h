// What accesses to memory cost a GPU, counted while a checked unit runs: bank conflicts of shared memory, and
// sectors of global memory. Part of emulate.cpp.
//
// The accesses of a warp's lanes at one place of the code, each lane's n-th there, are one request. Shared
// memory has 32 banks of 4 bytes and serves 128 bytes at a time: a request takes as many turns as the busiest
// bank has different words. Global memory is moved in sectors of 32 bytes: a request takes as many as it
// touches. The least that the same bytes could take stands beside it.
#pragma once
#include <stdint.h>

#include <algorithm>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace emulated {

class Traffic {
 public:
  bool on = false;

  void start_block(int threads) {
    if (on) threads_ = threads;
  }

  void add(uintptr_t site, int thread, uintptr_t address, unsigned bytes, bool shared, bool write) {
    Place& place = places_[site];
    if (place.turns.empty()) {
      place.turns.resize(static_cast<size_t>(threads_));
      place.requests.resize(static_cast<size_t>(threads_ + 31) / 32);
    }
    place.bytes = std::max(place.bytes, bytes);
    place.shared = shared;
    place.write = write;
    auto& requests = place.requests[static_cast<size_t>(thread) / 32];
    const size_t turn = place.turns[static_cast<size_t>(thread)]++;
    if (requests.size() <= turn) requests.resize(turn + 1);
    requests[turn].push_back({thread % 32, address});
  }

  void end_block(const char* kernel) {
    if (!on) return;
    for (auto& [site, place] : places_) {
      Total& total = totals_[{kernel, site}];
      total.bytes = place.bytes;
      total.shared = place.shared;
      total.write = place.write;
      for (auto& warp : place.requests) {
        for (auto& lanes : warp) {
          std::sort(lanes.begin(), lanes.end());
          const auto [cost, least] = place.shared ? banks(lanes, place.bytes) : sectors(lanes, place.bytes);
          ++total.requests;
          total.cost += cost;
          total.least += least;
          total.worst = std::max(total.worst, static_cast<double>(cost) / static_cast<double>(least));
        }
      }
    }
    places_.clear();
  }

  // A line for each place: kernel, place, shared, write, bytes, requests, cost, least, worst.
  std::string text(uintptr_t base) const {
    std::string out;
    for (const auto& [key, t] : totals_) {
      out += key.first + " " + std::to_string(key.second - base) + " " + std::to_string(t.shared) + " " +
             std::to_string(t.write) + " " + std::to_string(t.bytes) + " " + std::to_string(t.requests) + " " +
             std::to_string(t.cost) + " " + std::to_string(t.least) + " " + std::to_string(t.worst) + "\n";
    }
    return out;
  }

  void clear() {
    places_.clear();
    totals_.clear();
  }

 private:
  using Lanes = std::vector<std::pair<int, uintptr_t>>;
  struct Place {
    unsigned bytes = 0;
    bool shared = false, write = false;
    std::vector<size_t> turns;                 // of each thread
    std::vector<std::vector<Lanes>> requests;  // of each warp
  };
  struct Total {
    unsigned bytes = 0;
    bool shared = false, write = false;
    long long requests = 0, cost = 0, least = 0;
    double worst = 0;
  };

  // Lanes whose bytes together are 128 go at once.
  static std::pair<long long, long long> banks(const Lanes& lanes, unsigned bytes) {
    const int together = bytes > 4 ? static_cast<int>(128 / bytes) : 32;
    long long cost = 0, least = 0;
    for (size_t at = 0; at < lanes.size();) {
      const int group = lanes[at].first / together;
      std::vector<uintptr_t> words;
      for (; at < lanes.size() && lanes[at].first / together == group; ++at) {
        for (uintptr_t w = lanes[at].second / 4; w <= (lanes[at].second + bytes - 1) / 4; ++w) words.push_back(w);
      }
      std::sort(words.begin(), words.end());
      words.erase(std::unique(words.begin(), words.end()), words.end());
      int busy[32] = {};
      for (const uintptr_t w : words) ++busy[w % 32];
      cost += *std::max_element(busy, busy + 32);
      ++least;
    }
    return {cost, least};
  }

  static std::pair<long long, long long> sectors(const Lanes& lanes, unsigned bytes) {
    std::vector<uintptr_t> touched, found;
    for (const auto& [lane, a] : lanes) {
      for (uintptr_t b = a; b < a + bytes; ++b) touched.push_back(b);
    }
    std::sort(touched.begin(), touched.end());
    touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
    for (const uintptr_t b : touched) {
      if (found.empty() || found.back() != b / 32) found.push_back(b / 32);
    }
    return {static_cast<long long>(found.size()), static_cast<long long>((touched.size() + 31) / 32)};
  }

  int threads_ = 1;
  std::unordered_map<uintptr_t, Place> places_;
  std::map<std::pair<std::string, uintptr_t>, Total> totals_;
};

}  // namespace emulated
