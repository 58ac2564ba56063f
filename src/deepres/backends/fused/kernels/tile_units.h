// What the convolutions on tiles share: scratch memory, units of 32 elements, memory asked for ahead.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <memory>

#include "layer.h"
#include "simd.h"

namespace {

constexpr int kTileElements = 512;  // elements of an operand's tile
constexpr int kTileSums = 256;      // floats of a tile of sums

struct alignas(64) TileScratch {
  Element operand[17 * 34 * 32 + 64];     // the largest left operand of a convolution: 16 channels, 32 rows
  GUARD(after_operand)
  Element input[32 * 32 * 16];            // one image's input
  GUARD(after_input)
  Element transposed[8 * 3 * 2 * 64 * 32];  // inputs, transposed: of 8 images of 64 channels
  GUARD(after_transposed)
  Element pairs[8 * 10 * 8 * 64];         // the gradients of their outputs, in pairs of pixels
  GUARD(after_pairs)
  float sums[2][8 * kTileSums];           // of two tasks
};

inline TileScratch& thread_tile_scratch() {
  static thread_local const std::unique_ptr<TileScratch> scratch = std::make_unique<TileScratch>();
  return *scratch;
}

// Asks for the memory of the next image while this one is computed, a part at a time, to have it in the second-level
// cache when its turn comes.
class Ahead {
 public:
  explicit Ahead(int num_parts) : num_parts_(num_parts) {}
  void add(const Element* p, int num_elements, bool to_write = false) {
    if (!p) return;
    const int lines = (num_elements / 32 + num_parts_ - 1) / num_parts_;
    streams_[count_++] = {reinterpret_cast<const char*>(p), lines, to_write};
  }
  void advance() {
    for (int i = 0; i < count_; i++) {
      Stream& stream = streams_[i];
      if (stream.to_write) {
        for (int line = 0; line < stream.lines; line++, stream.next += 64) __builtin_prefetch(stream.next, 1, 2);
      } else {
        for (int line = 0; line < stream.lines; line++, stream.next += 64) _mm_prefetch(stream.next, _MM_HINT_T1);
      }
    }
  }

 private:
  struct Stream {
    const char* next;
    int lines;  // of a part
    bool to_write;
  };
  Stream streams_[6];
  int count_ = 0, num_parts_;
};

// A unit is 32 elements that lie side by side: 32 channels of a pixel, or, of a tensor of 16 channels, two pixels.
struct Unit {
  Vec low, high;
};
inline Unit widen(Packed elements) {
  alignas(64) static constexpr uint16_t kLow[32] = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                                    0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
  const Packed low = _mm512_load_si512(kLow), high = _mm512_or_si512(low, _mm512_set1_epi16(16));
  return {_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, low, elements)),
          _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, high, elements))};
}
inline Unit operator+(Unit x, Unit y) { return {x.low + y.low, x.high + y.high}; }
inline Unit multiply_add(Unit x, Unit y, Unit sum) {
  return {multiply_add(x.low, y.low, sum.low), multiply_add(x.high, y.high, sum.high)};
}
inline Packed narrow(Unit unit) { return (__m512i)_mm512_cvtne2ps_pbh(unit.high, unit.low); }
inline void store_packed(Element* p, Packed elements) { _mm512_storeu_si512(p, elements); }

// Of each 16 channels, or of 16 in both halves where there are no more.
template <int kChannels>
inline Unit load_per_channel(const float* values) {
  return {load_floats(values), load_floats(values + (kChannels == 16 ? 0 : kLanes))};
}
template <int kChannels>
inline void add_per_channel(float* values, Unit sum) {
  if constexpr (kChannels == 16) {
    store_floats(values, load_floats(values) + (sum.low + sum.high));
  } else {
    store_floats(values, load_floats(values) + sum.low);
    store_floats(values + kLanes, load_floats(values + kLanes) + sum.high);
  }
}

}  // namespace
