// The tile instructions of AMX in a thin layer, with a scalar twin of the same interface.
//
// A tile is a register of up to 16 rows of 64 bytes. `multiply` adds the product of two tiles of bfloat16 to one of
// float32: sums[m][n] += x[m][2 k] * y[k][2 n] + x[m][2 k + 1] * y[k][2 n + 1], summed over k. The rows of x and of
// the sums, and the pairs k, are those of the configuration that the thread loaded last.
//
// With -DDEEPRES_TILES=1 the instructions are those of the processor, which the process must have asked for; with
// -DDEEPRES_TILES=2 they are computed by the scalar twin, which serves to test on processors without them.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace {
namespace tiles {

constexpr int kRows = 16, kRowBytes = 64;

// The operand of the instruction that configures all tiles.
struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles below num_sums hold sums of `rows` rows, those below first_y left operands of the same rows and `pairs` pairs
// of bfloat16 each, and the others right operands of `pairs` rows.
constexpr Config make_config(int rows, int pairs, int num_sums, int first_y) {
  Config config;
  for (int i = 0; i < 8; i++) {
    config.rows[i] = static_cast<uint8_t>(i < first_y ? rows : pairs);
    config.row_bytes[i] = static_cast<uint16_t>(i < num_sums || i >= first_y ? kRowBytes : pairs * 4);
  }
  return config;
}

// action(std::integral_constant<int, i>{}) for i = 0 ... kCount - 1: the number of a tile is part of the instruction.
template <int... i, typename Action>
__attribute__((always_inline)) inline void unroll(std::integer_sequence<int, i...>, Action action) {
  (action(std::integral_constant<int, i>{}), ...);
}
template <int kCount, typename Action>
__attribute__((always_inline)) inline void unroll(Action action) {
  unroll(std::make_integer_sequence<int, kCount>{}, action);
}

#if DEEPRES_TILES == 1

inline void configure(const Config& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
inline void release() { asm volatile("tilerelease"); }

template <int kTile>
inline void zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

// stride: bytes from row to row.
template <int kTile>
inline void load(const void* p, std::ptrdiff_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void store(void* p, std::ptrdiff_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kSums, int kX, int kY>
inline void multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kX), "i"(kY));
}

#else

struct State {
  Config config;
  uint8_t values[8][kRows][kRowBytes];
};
inline State& state() {
  static thread_local State state;
  return state;
}

inline void configure(const Config& config) {
  state().config = config;
  memset(state().values, 0, sizeof state().values);
}
inline void release() {}

template <int kTile>
inline void zero() {
  memset(state().values[kTile], 0, sizeof state().values[kTile]);
}
template <int kTile>
inline void load(const void* p, std::ptrdiff_t stride) {
  State& s = state();
  for (int m = 0; m < s.config.rows[kTile]; m++) {
    memcpy(s.values[kTile][m], static_cast<const char*>(p) + m * stride, s.config.row_bytes[kTile]);
  }
}
template <int kTile>
inline void store(void* p, std::ptrdiff_t stride) {
  const State& s = state();
  for (int m = 0; m < s.config.rows[kTile]; m++) {
    memcpy(static_cast<char*>(p) + m * stride, s.values[kTile][m], s.config.row_bytes[kTile]);
  }
}
template <int kSums, int kX, int kY>
inline void multiply() {
  State& s = state();
  const auto element = [&](int tile, int row, int i) {
    uint16_t bits;
    memcpy(&bits, s.values[tile][row] + 2 * i, sizeof bits);
    const uint32_t wide = uint32_t{bits} << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
  };
  for (int m = 0; m < s.config.rows[kSums]; m++) {
    for (int n = 0; n < kRowBytes / 4; n++) {
      float sum;
      memcpy(&sum, s.values[kSums][m] + 4 * n, sizeof sum);
      for (int k = 0; k < s.config.row_bytes[kX] / 4; k++) {
        const float product = element(kX, m, 2 * k + 1) * element(kY, k, 2 * n + 1);
        sum += std::fma(element(kX, m, 2 * k), element(kY, k, 2 * n), product);
      }
      memcpy(s.values[kSums][m] + 4 * n, &sum, sizeof sum);
    }
  }
}

#endif

}  // namespace tiles
}  // namespace
