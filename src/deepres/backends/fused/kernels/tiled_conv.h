// The convolutions on matrix tiles (tiles.h), included by kernels.cpp when it is compiled for them.
//
// A tile load is fast only where each row of the tile lies in one cache line: measured on Granite Rapids, 2.3 ns
// against 14.7 ns, and a multiplication takes 4.4 ns. So each operand is laid out such that all loads are aligned.
//
// Forward and data gradient. A left operand holds 16 pixels as rows (fewer where the image's rows demand it) and, in 64
// bytes each, 32 elements of the summed dimension, which runs over taps and channels in steps of 32:
//
//     4 channels   a copy of each row of pixels and of the next three pixels: a step is a row of taps
//     16 channels  two rows of the image side by side, [row pair][column][2][16], so that a step has two rows of taps.
//                  Two output rows are computed at once, as if they were 32 output channels: the row pairs (0, 1) and
//                  (2, 3) serve both, with weights (w0, w1), (w2, 0) for the upper and (0, w0), (w1, w2) for the lower
//     32 channels  the zero-padded image as it is: a step is a tap
//     64 channels  three copies of the image, each shifted by a column and without the zeros at its sides, so that
//                  tiles run on from row to row: two steps a tap
//
// The right operand, 16 pairs of elements x 16 outputs, is a kilobyte of packed weights, in the order of use:
// [block of 16 outputs][step][16 pairs][16 outputs][2].
//
// Weight gradient. The summed dimension is the pixel. The left operand is the transposed input, 16 channels x up to 32
// pixels, one copy for each column of taps, shifted, with zeros where the tap falls beside the image; the right operand
// is the output's gradient in pairs of pixels, with a row of zeros above and below: a row of taps is an offset in it.

#pragma once

constexpr int kTileElements = 512;  // elements of an operand's tile
constexpr int kTileSums = 256;      // floats of a tile of sums

struct alignas(64) TileScratch {
  Element operand[17 * 34 * 32 + 64];     // the largest left operand of a convolution: 16 channels, 32 rows
  Element input[32 * 32 * 16];            // one image's input
  Element transposed[8 * 3 * 2 * 64 * 32];  // inputs, transposed: of 8 images of 64 channels
  Element pairs[8 * 10 * 8 * 64];         // the gradients of their outputs, in pairs of pixels
  float sums[2][8 * kTileSums];           // of two tasks
};

inline TileScratch& thread_tile_scratch() {
  static thread_local const std::unique_ptr<TileScratch> scratch = std::make_unique<TileScratch>();
  return *scratch;
}

// Load the configuration unless the thread has it.
inline const tiles::Config*& current_config() {
  static thread_local const tiles::Config* current = nullptr;
  return current;
}
template <int kTileRows, int kPairs, int kNumSums, int kFirstY>
inline void use_config() {
  static constexpr tiles::Config kConfig = tiles::make_config(kTileRows, kPairs, kNumSums, kFirstY);
  if (current_config() == &kConfig) return;
  tiles::configure(kConfig);
  current_config() = &kConfig;
}
inline void release_tiles() {
  tiles::release();
  current_config() = nullptr;
}

// Sum the products of kGroups left operands and kBlocks right ones over kSteps, to `sums`, kGroups x kBlocks tiles.
// `first` is called once the products are under way: what it does costs little.
template <int kGroups, int kBlocks, int kSteps, typename First>
inline void multiply_tiles(const Element* x, std::ptrdiff_t group_step, std::ptrdiff_t row_bytes, const int* offsets,
                           const Element* y, std::ptrdiff_t block_step, float* sums, First first) {
  static_assert(kGroups * kBlocks <= 4);
  tiles::unroll<kGroups * kBlocks>([](auto i) ALWAYS_INLINE { tiles::zero<i>(); });
  for (int step = 0; step < kSteps; step++) {
    const Element* xs = x + offsets[step];
    const Element* ys = y + step * kTileElements;
    if constexpr (kBlocks <= 2) {  // tiles 4 and 5 in turn for x, 6 and 7 for y
      tiles::unroll<kBlocks>([&](auto b) ALWAYS_INLINE { tiles::load<6 + b>(ys + b * block_step, 64); });
      tiles::unroll<kGroups>([&](auto g) ALWAYS_INLINE {
        tiles::load<4 + g % 2>(xs + g * group_step, row_bytes);
        tiles::unroll<kBlocks>([&](auto b) ALWAYS_INLINE { tiles::multiply<g * kBlocks + b, 4 + g % 2, 6 + b>(); });
      });
    } else {
      static_assert(kBlocks <= 2 || kGroups == 1);
      tiles::load<4>(xs, row_bytes);
      tiles::unroll<kBlocks>([&](auto b) ALWAYS_INLINE {
        tiles::load<6 + b % 2>(ys + b * block_step, 64);
        tiles::multiply<b, 4, 6 + b % 2>();
      });
    }
  }
  first();
  tiles::unroll<kGroups * kBlocks>([&](auto i) ALWAYS_INLINE { tiles::store<i>(sums + i * kTileSums, 64); });
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
inline Unit add(Unit x, Unit y) { return {add(x.low, y.low), add(x.high, y.high)}; }
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
    store_floats(values, add(load_floats(values), add(sum.low, sum.high)));
  } else {
    store_floats(values, add(load_floats(values), sum.low));
    store_floats(values + kLanes, add(load_floats(values + kLanes), sum.high));
  }
}

// The left operand of a convolution with kStride over images of kChannels channels and kSize rows, as said above.
template <int kChannels, int kSize, int kStride>
struct Operand {
  static constexpr int kOutSize = kSize / kStride;
  static constexpr bool kRowPairs = kChannels == 16, kCopies = kChannels == 64;
  static_assert(!kCopies || kStride == 1);

  // A group is what a tile holds: kGroupRows pixels. kGroups of them are multiplied at once with kBlocks.
  static constexpr int kGroupRows =
      kCopies ? (kSize * kSize % 16 == 0 ? 16 : 12) : kOutSize % 16 == 0 ? 16 : kOutSize % 12 == 0 ? 12 : kOutSize;
  static constexpr int kNumGroups = kOutSize * kOutSize / kGroupRows / (kRowPairs && kStride == 1 ? 2 : 1);
  static constexpr int kGroupsARow = kOutSize / kGroupRows;  // not for copies
  static constexpr int kGroups = kCopies ? kNumGroups : kChannels == 4 ? 4 : 2;
  static constexpr int kBlocks = kCopies ? 4 / kGroups : kChannels == 4 ? 1 : 2;
  static constexpr int kSteps = kChannels == 4 ? 3 : kRowPairs ? 6 : 9 * kChannels / 32;
  static constexpr int kPairs = kChannels == 4 ? 8 : 16;
  static constexpr int kPitch = kChannels == 4 ? kOutSize * 16 : kRowPairs ? (kSize + 2) * 32 : (kSize + 2) * kChannels;
  static constexpr int kCopy = (kSize + 2) * kSize * kChannels;  // elements of a copy
  static constexpr int kPixelStep = kChannels == 4 ? 16 : kStride * (kRowPairs ? 32 : kChannels);
  static constexpr int kElements = kCopies ? 3 * kCopy : kRowPairs ? (kSize / 2 + 1) * kPitch : (kSize + 2) * kPitch;

  struct Offsets {
    int values[kSteps];
  };
  static constexpr Offsets offsets() {
    Offsets result{};
    for (int i = 0; i < kSteps; i++) {
      if constexpr (kChannels == 4) {
        result.values[i] = i * kPitch;
      } else if constexpr (kRowPairs) {
        result.values[i] = i / 3 * kPitch + i % 3 * 32;
      } else if constexpr (kCopies) {
        result.values[i] = i / 2 % 3 * kCopy + i / 6 * kSize * kChannels + i % 2 * 32;
      } else {
        result.values[i] = i / (3 * kChannels / 32) * kPitch + i % (3 * kChannels / 32) * 32;
      }
    }
    return result;
  }
  static constexpr Offsets kOffsets = offsets();

  // Where the first pixel of a group lies.
  static constexpr int group_offset(int group) {
    if constexpr (kCopies) return group * kGroupRows * kChannels;
    const int row = group / kGroupsARow, column = group % kGroupsARow * kGroupRows;
    return row * (kRowPairs || kChannels == 4 ? 1 : kStride) * kPitch + column * kPixelStep;
  }

  static void clear(Element* operand) { memset(operand, 0, kElements * sizeof(Element)); }

  // Store a unit: 32 channels of a pixel from `channel` on, or two pixels of 16 channels.
  static void put(Element* operand, int row, int column, int channel, Packed values) {
    if constexpr (kRowPairs) {
      Element* target = operand + (row + 1) / 2 * kPitch + (column + 1) * 32 + (row + 1) % 2 * 16;
      _mm256_store_si256(reinterpret_cast<__m256i*>(target), _mm512_castsi512_si256(values));
      _mm256_store_si256(reinterpret_cast<__m256i*>(target + 32), _mm512_extracti64x4_epi64(values, 1));
    } else if constexpr (kCopies) {
      Element* target = operand + kCopy + ((row + 1) * kSize + column) * kChannels + channel;
      _mm512_store_si512(target, values);  // the copy of the middle column of taps, and the others, if it has a place
      if (column + 1 < kSize) _mm512_store_si512(target - kCopy + kChannels, values);
      if (column > 0) _mm512_store_si512(target + kCopy - kChannels, values);
    } else {
      _mm512_store_si512(operand + (row + 1) * kPitch + (column + 1) * kChannels + channel, values);
    }
  }

  // Copy an image of 4 channels.
  static void put_image(Element* operand, const Element* image) {
    static_assert(kChannels == 4);
    alignas(64) Element row[(kSize + 4) * 4] = {};
    for (int h = 0; h < kSize; h++) {
      memcpy(row + 4, image + h * kSize * 4, kSize * 4 * sizeof(Element));
      Element* target = operand + (h + 1) * kPitch;
      for (int w = 0; w < kSize; w++) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(target + w * 16),
                           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + w * 4)));
      }
    }
  }

  // The weight that step `step` of block `block` multiplies with element `element` of its 32: weight(out, in, tap).
  template <typename Weight>
  static float packed_value(int block, int step, int element, int lane, Weight weight) {
    if constexpr (kChannels == 4) {
      return element < 16 && element / 4 < 3 ? weight(block * 16 + lane, element % 4, step * 3 + element / 4) : 0.0f;
    } else if constexpr (kRowPairs) {
      const bool lower = kStride == 1 && block % 2;
      const int row = step / 3 * 2 + element / 16 - lower;
      const int out = kStride == 1 ? block / 2 * 16 + lane : block * 16 + lane;
      return row >= 0 && row < 3 ? weight(out, element % 16, row * 3 + step % 3) : 0.0f;
    } else {
      constexpr int kParts = kChannels / 32;
      return weight(block * 16 + lane, step % kParts * 32 + element, step / kParts);
    }
  }

  static constexpr int num_blocks(int outputs) { return outputs / 16 * (kRowPairs && kStride == 1 ? 2 : 1); }

  template <typename Weight>
  static void pack(Element* target, int outputs, Weight weight) {
    for (int block = 0; block < num_blocks(outputs); block++) {
      for (int step = 0; step < kSteps; step++, target += kTileElements) {
        for (int element = 0; element < 32; element++) {
          for (int lane = 0; lane < 16; lane++) {
            const float value = packed_value(block, step, element, lane, weight);
            target[element / 2 * 32 + lane * 2 + element % 2] = to_element(value);
          }
        }
      }
    }
  }

  // A finished piece: kUnits units of an image's outputs, `step` floats apart; a unit's halves are `high` floats apart.
  static constexpr bool kPixelPairs = kChannels == 4 || (kRowPairs && kStride == 1);  // 16 channels of output
  static constexpr int kRounds = kCopies && kBlocks == 1 ? 2 : 1;                     // multiplications of a task
  static constexpr int kUnits = kPixelPairs ? kGroupRows / 2 : kGroupRows;
  static constexpr int kUnitStep = kPixelPairs ? 2 * kLanes : kLanes;
  static constexpr int kHigh = kPixelPairs ? kLanes : kRounds == 2 ? kGroups * kTileSums : kTileSums;

  static constexpr int num_pieces(int num_elements) { return num_elements / 32 / kUnits; }

  // finish(sums, first channel, first pixel) for each piece of an image's outputs.
  template <int kOutputs, typename Finish>
  static void convolve(const Element* operand, const Element* weights, float (&sums)[2][8 * kTileSums], Finish finish) {
    constexpr int kTaskBlocks = kBlocks * kRounds, kGroupTasks = kNumGroups / kGroups;
    constexpr int kTasks = kGroupTasks * (num_blocks(kOutputs) / kTaskBlocks);
    static_assert(kNumGroups % kGroups == 0 && num_blocks(kOutputs) % kTaskBlocks == 0);
    use_config<kGroupRows, kPairs, 4, 6>();
    const auto finish_task = [&](int task) ALWAYS_INLINE {
      const int group = task % kGroupTasks * kGroups, block = task / kGroupTasks * kTaskBlocks;
      for (int g = 0; g < kGroups; g++) {
        for (int b = 0; b < kTaskBlocks; b += kPixelPairs ? 1 : 2) {
          const float* tile = sums[task % 2] + (kRounds == 2 ? g : g * kBlocks + b) * kTileSums;
          if constexpr (kCopies) {
            finish(tile, (block + b) * 16, (group + g) * kGroupRows);
          } else {
            const int row = (group + g) / kGroupsARow, column = (group + g) % kGroupsARow * kGroupRows;
            if constexpr (kRowPairs && kStride == 1) {
              finish(tile, 0, (2 * row + b) * kOutSize + column);
            } else {
              finish(tile, (block + b) * 16, row * kOutSize + column);
            }
          }
        }
      }
    };
    for (int task = 0; task < kTasks; task++) {
      const int group = task % kGroupTasks * kGroups, block = task / kGroupTasks * kTaskBlocks;
      for (int round = 0; round < kRounds; round++) {
        multiply_tiles<kGroups, kBlocks, kSteps>(operand + group_offset(group), group_offset(1) - group_offset(0),
                                                 kPixelStep * sizeof(Element), kOffsets.values,
                                                 weights + (block + round) * kSteps * kTileElements,
                                                 kSteps * kTileElements,
                                                 sums[task % 2] + round * kGroups * kTileSums, [&]() ALWAYS_INLINE {
                                                   if (task > 0 && round == 0) finish_task(task - 1);
                                                 });
      }
    }
    finish_task(kTasks - 1);
  }
};

// The left operand of the data gradient of a convolution with stride 2: the output's gradient with a row and a column
// of zeros after it. Input pixels of one parity in each dimension form a class, which is reached by one, two or four taps.
template <int kIn, int kOut, int kOutSize>
struct GradOperand {
  static constexpr int kPitch = (kOutSize + 1) * kOut, kElements = (kOutSize + 1) * kPitch;
  static constexpr int kParts = kOut / 32, kSteps = 9 * kParts;
  static constexpr int kBlocks = kIn / 16, kGroups = 4 / kBlocks;
  static_assert(kOutSize % kGroups == 0);

  static constexpr int num_taps(int parity) { return parity ? 2 : 1; }
  static constexpr int tap(int parity, int i) { return parity ? 2 * i : 1; }
  template <int kClass>
  struct Class {
    static constexpr int kRow = kClass / 2, kColumn = kClass % 2;
    static constexpr int kColumnTaps = num_taps(kColumn), kTaps = num_taps(kRow) * kColumnTaps;
    static constexpr int kFirstTap = kClass == 0 ? 0 : kClass == 1 ? 1 : kClass == 2 ? 3 : 5;
    static constexpr int row_tap(int i) { return tap(kRow, i / kColumnTaps); }
    static constexpr int column_tap(int i) { return tap(kColumn, i % kColumnTaps); }
    struct Offsets {
      int values[kTaps * kParts];
    };
    static constexpr Offsets offsets() {
      Offsets result{};
      for (int i = 0; i < kTaps * kParts; i++) {
        const int tap = i / kParts;
        result.values[i] = row_tap(tap) / 2 * kPitch + column_tap(tap) / 2 * kOut + i % kParts * 32;
      }
      return result;
    }
    static constexpr Offsets kOffsets = offsets();
  };

  static constexpr int num_pieces(int) { return 4 * kOutSize; }

  static void clear(Element* operand) { memset(operand, 0, kElements * sizeof(Element)); }

  static void put(Element* operand, int row, int column, int channel, Packed values) {
    _mm512_store_si512(operand + row * kPitch + column * kOut + channel, values);
  }

  // weight(input channel, output channel, tap of the rotated filter)
  template <typename Weight>
  static void pack(Element* target, Weight weight) {
    for (int block = 0; block < kBlocks; block++) {
      tiles::unroll<4>([&](auto index) {
        using Taps = Class<index>;
        for (int step = 0; step < Taps::kTaps * kParts; step++, target += kTileElements) {
          const int tap = Taps::row_tap(step / kParts) * 3 + Taps::column_tap(step / kParts);
          for (int element = 0; element < 32; element++) {
            for (int lane = 0; lane < 16; lane++) {
              const float value = weight(block * 16 + lane, step % kParts * 32 + element, tap);
              target[element / 2 * 32 + lane * 2 + element % 2] = to_element(value);
            }
          }
        }
      });
    }
  }

  // finish(sums, row of the gradient, row parity, column parity): kOutSize input pixels x kIn channels, kBlocks tiles.
  template <typename Finish>
  static void convolve(const Element* operand, const Element* weights, float (&sums)[2][8 * kTileSums], Finish finish) {
    use_config<kOutSize, 16, 4, 6>();
    tiles::unroll<4>([&](auto index) ALWAYS_INLINE {
      using Taps = Class<index>;
      constexpr int kTasks = kOutSize / kGroups;
      const auto finish_task = [&](int task) ALWAYS_INLINE {
        for (int g = 0; g < kGroups; g++) {
          finish(sums[task % 2] + g * kBlocks * kTileSums, task * kGroups + g, Taps::kRow, Taps::kColumn);
        }
      };
      for (int task = 0; task < kTasks; task++) {
        multiply_tiles<kGroups, kBlocks, Taps::kTaps * kParts>(
            operand + task * kGroups * kPitch, kPitch, kOut * sizeof(Element), Taps::kOffsets.values,
            weights + Taps::kFirstTap * kParts * kTileElements, kSteps * kTileElements, sums[task % 2],
            [&]() ALWAYS_INLINE {
              if (task > 0) finish_task(task - 1);
            });
      }
      finish_task(kTasks - 1);
    });
  }
};

// ---------------------------------------------------------------------------------------------------------------
// The weight gradient

// Transpose 16 x 16 lanes.
inline void transpose_lanes(Packed (&r)[16]) {
  Packed t[16];
  UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  UNROLL for (int i = 0; i < 16; i += 4) {
    UNROLL for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
    }
  }
  // r[4 i + j], lane 4 k + l: row 4 i + l, column 4 k + j
  UNROLL for (int j = 0; j < 4; j++) {
    const Packed a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), b = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const Packed c = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    const Packed d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
    t[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
    t[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
  UNROLL for (int i = 0; i < 16; i++) r[i] = t[i];
}

// The greatest divisor of `value` that is no more than `most`.
constexpr int divisor_up_to(int value, int most) {
  int divisor = std::min(value, most);
  while (value % divisor != 0) divisor--;
  return divisor;
}

// From kInSize x kInSize inputs of kIn channels to kOutSize x kOutSize outputs of kOut channels.
template <int kIn, int kOut, int kInSize, int kStride>
struct WeightGrad {
  static constexpr int kOutSize = kInSize / kStride;
  static constexpr int kStepRows = divisor_up_to(kOutSize, 32 / kOutSize), kStepPixels = kStepRows * kOutSize;
  static constexpr int kNumSteps = kOutSize / kStepRows;
  static constexpr int kInRows = kIn < 16 ? 12 : 16;                     // rows of a tile of the input
  // Images whose gradients are summed before the sums are written to memory. A single image is taken in parts: some
  // steps of 16 channels, whose transposed inputs stay in the first-level cache.
  static constexpr int kImages = kIn == 32 ? (kStride == 1 ? 2 : 4) : kOutSize * kOutSize >= 144 ? 1 : 8;
  static constexpr int kPartChannels = kImages == 1 ? 16 : kIn;
  static constexpr int kPartSteps = kImages == 1 ? divisor_up_to(kNumSteps, 8 / kStride) : kNumSteps;
  static constexpr int kStep = kPartChannels * 32;                       // elements of a step of a transposed copy
  static constexpr int kParity = kPartSteps * kStep;                     // of the rows of a copy that have one parity
  static constexpr int kCopy = kIn < 16 ? 0 : kStride * kParity;         // of a copy; 4 channels: a tile has all copies
  static constexpr int kTransposed = kIn < 16 ? kParity : 3 * kCopy;     // of an image
  static constexpr int kPairRow = kOutSize * kOut;
  static constexpr int kPairs = (kOutSize + 2) * kPairRow;               // of an image
  static_assert(kImages * kTransposed <= int(sizeof(TileScratch::transposed) / sizeof(Element)));
  static_assert(kImages * kPairs <= int(sizeof(TileScratch::pairs) / sizeof(Element)));

  struct Shift {
    alignas(64) uint16_t order[32];
    uint32_t mask;
  };
  static constexpr Shift make_shift(int step) {  // pixel i gets that of i + step, or zero beside the image
    Shift shift{};
    for (int i = 0; i < 32; i++) {
      const int column = i % kOutSize + step;
      shift.order[i] = static_cast<uint16_t>((i + step) & 31);
      if (column >= 0 && column < kOutSize && i < kStepPixels) shift.mask |= uint32_t{1} << i;
    }
    return shift;
  }
  static constexpr Shift kLeft = make_shift(-1), kRight = make_shift(1);
  static Packed shifted(Packed pixels, const Shift& shift) {
    return _mm512_maskz_permutexvar_epi16(shift.mask, _mm512_load_si512(shift.order), pixels);
  }

  static void clear_pairs(Element* pairs) {
    for (int image = 0; image < kImages; image++) {
      memset(pairs + image * kPairs, 0, kPairRow * sizeof(Element));
      memset(pairs + (image * (kOutSize + 2) + kOutSize + 1) * kPairRow, 0, kPairRow * sizeof(Element));
    }
  }

  // 16 channels of kStepPixels pixels, from rows kStride * kInSize * kIn apart and columns kStride apart.
  static void transpose(const Element* x, Packed (&r)[16]) {
    UNROLL for (int j = 0; j < 16; j++) {
      if (2 * j < kStepPixels) {
        const Element* pixel = x + (2 * j / kOutSize * kInSize + 2 * j % kOutSize) * kStride * kIn;
        r[j] = interleave(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixel)),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixel + kStride * kIn)));
      } else {
        r[j] = _mm512_setzero_si512();
      }
    }
    transpose_lanes(r);
  }

  // Transpose kPartChannels channels of kPartSteps steps.
  static void transpose_part(Element* target, const Element* x, int first_channel, int first_step) {
    if constexpr (kIn < 16) {
      transpose_images(target, x + first_step * kStepPixels * 4);
    } else {
      for (int step = 0; step < kPartSteps; step++) {
        for (int parity = 0; parity < kStride; parity++) {
          const Element* row = x + ((first_step + step) * kStepRows * kStride + parity) * kInSize * kIn + first_channel;
          for (int channel = 0; channel < kPartChannels; channel += 16) {
            Element* out = target + parity * kParity + step * kStep + channel * 32;
            Packed r[16];
            transpose(row + channel, r);
            UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(out + kCopy + i * 32, r[i]);
            if constexpr (kStride == 1) {
              UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(out + i * 32, shifted(r[i], kLeft));
              UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(out + 2 * kCopy + i * 32, shifted(r[i], kRight));
            } else {
              transpose(row + kIn + channel, r);
              UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(out + i * 32, shifted(r[i], kLeft));
              UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(out + 2 * kCopy + i * 32, r[i]);
            }
          }
        }
      }
    }
  }

  // Of 4 channels: row 4 * copy + channel of a tile.
  static void transpose_images(Element* target, const Element* x) {
    alignas(64) static constexpr uint16_t kOrder[32] = {0, 4, 8,  12, 16, 20, 24, 28, 1, 5, 9,  13, 17, 21, 25, 29,
                                                        2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31};
    for (int i = 0; i < kPartSteps * kStepPixels; i += 8) {
      const Packed planes = _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), load_packed(x + i * 4));
      Element* out = target + i / kStepPixels * kStep + 4 * 32 + i % kStepPixels;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_extracti32x4_epi32(planes, 0));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 32), _mm512_extracti32x4_epi32(planes, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 64), _mm512_extracti32x4_epi32(planes, 2));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 96), _mm512_extracti32x4_epi32(planes, 3));
    }
    for (int step = 0; step < kPartSteps; step++) {
      Element* out = target + step * kStep;
      for (int channel = 0; channel < 4; channel++) {
        const Packed pixels = _mm512_load_si512(out + (4 + channel) * 32);
        _mm512_store_si512(out + channel * 32, shifted(pixels, kLeft));
        _mm512_store_si512(out + (8 + channel) * 32, shifted(pixels, kRight));
      }
    }
  }

  // Take image number `held` of those in scratch, with its gradients already there. After the last one, `last`, or when
  // scratch is full, add what they contribute to weight_grad, [3][3][kIn][kOut]. Return how many scratch then holds.
  static int take(TileScratch& scratch, int held, const Element* x, bool last, float* weight_grad) {
    if constexpr (kImages == 1) {
      for (int channel = 0; channel < kIn; channel += kPartChannels) {
        for (int step = 0; step < kNumSteps; step += kPartSteps) {
          transpose_part(scratch.transposed, x, channel, step);
          add_part(scratch, 1, channel, step, weight_grad);
        }
      }
      return 0;
    } else {
      transpose_part(scratch.transposed + held * kTransposed, x, 0, 0);
      if (++held < kImages && !last) return held;
      add_part(scratch, held, 0, 0, weight_grad);
      return 0;
    }
  }

  static void add_part(const TileScratch& scratch, int num_images, int first_channel, int first_step,
                       float* weight_grad) {
    constexpr int kBlocks = kOut == 16 ? 1 : 2;  // of outputs, at once
    use_config<kInRows, kStepPixels / 2, 6, 7>();
    for (int out = 0; out < kOut; out += kBlocks * 16) {
      for (int column = 0; column < (kIn < 16 ? 1 : 3); column++) {
        for (int in = 0; in < kPartChannels; in += 16) {
          // For 4 channels the three columns of taps are the rows of the tile, and of weight_grad.
          float* sums = weight_grad + (column * kIn + first_channel + in) * kOut + out;
          const Element* x = scratch.transposed + column * kCopy + in * 32;
          const Element* grads = scratch.pairs + (first_step * kStepRows + 1) * kPairRow + out * 2;
          constexpr int kTapRow = 3 * kIn * kOut;
          tiles::unroll<3 * kBlocks>([&](auto i) ALWAYS_INLINE {
            tiles::load<i>(sums + i / kBlocks * kTapRow + i % kBlocks * 16, kOut * sizeof(float));
          });
          for (int image = 0; image < num_images; image++) {
            for (int step = 0; step < kPartSteps; step++) {
              const Element* tile = x + image * kTransposed + step * kStep;
              const Element* g = grads + image * kPairs + step * kStepRows * kPairRow;
              const auto multiply_row = [&](auto row, int first_row) ALWAYS_INLINE {
                tiles::unroll<kBlocks>([&](auto block) ALWAYS_INLINE {
                  tiles::load<7>(g + first_row * kPairRow + block * 32, kOut * 2 * sizeof(Element));
                  tiles::multiply<row * kBlocks + block, 6, 7>();
                });
              };
              constexpr std::integral_constant<int, 0> kFirst{};
              constexpr std::integral_constant<int, 1> kMiddle{};
              constexpr std::integral_constant<int, 2> kLast{};
              tiles::load<6>(tile, 64);
              if constexpr (kStride == 1) {
                multiply_row(kFirst, 1);
                multiply_row(kMiddle, 0);
                multiply_row(kLast, -1);
              } else {  // the row above and below an even row are odd
                multiply_row(kMiddle, 0);
                tiles::load<6>(tile + kParity, 64);
                multiply_row(kFirst, 1);
                multiply_row(kLast, 0);
              }
            }
          }
          tiles::unroll<3 * kBlocks>([&](auto i) ALWAYS_INLINE {
            tiles::store<i>(sums + i / kBlocks * kTapRow + i % kBlocks * 16, kOut * sizeof(float));
          });
        }
      }
    }
  }
};

// ---------------------------------------------------------------------------------------------------------------
// A layer

template <int kIn, int kOut, int kInSize, int kStride>
struct TiledConv {
  using Plain = Conv<kIn, kOut, kInSize, kStride>;
  using Forward = Operand<kIn, kInSize, kStride>;
  using Grad = WeightGrad<kIn, kOut, kInSize, kStride>;
  static constexpr int kOutSize = Plain::kOutSize, kInImage = Plain::kInImage, kOutImage = Plain::kOutImage;
  // The stride-2 operand is instantiated for layers of stride 2 alone.
  using Backward = typename std::conditional_t<kStride == 1, std::common_type<Operand<kOut, kOutSize, 1>>,
                                               std::common_type<GradOperand<kIn, kOut, kOutSize>>>::type;

  // relu(scale * raw + shift + shortcut) of an image to `operand` (if kToOperand) and to `kept`, unless null.
  template <bool kToOperand>
  static void activate_image(Element* operand, const Layer& previous, const Element* raw, ImageShortcut shortcut,
                             Element* kept) {
    constexpr int kUnitPixels = kIn == 16 ? 2 : 1;
    for (int channel = 0; channel < kIn; channel += 32) {
      const Unit scale = load_per_channel<kIn>(previous.scale + channel);
      const Unit shift = load_per_channel<kIn>(previous.shift + channel);
      // The shortcut of a layer whose input grew has its first half of the channels: with 32 channels, the lower half.
      const int left = shortcut.channels - channel;
      const int shortcut_halves = left <= 0 ? 0 : kIn != 16 && left < 32 ? 1 : 2;
      const auto activate_rows = [&](auto halves) ALWAYS_INLINE {
        for (int h = 0; h < kInSize; h++) {
          const Element* x = raw + h * kInSize * kIn + channel;
          const Element* y = shortcut.values + h * shortcut.row_step + channel;
          Element* keep = kept + h * kInSize * kIn + channel;
          for (int w = 0; w < kInSize; w += kUnitPixels) {
            Unit unit = multiply_add(widen(load_packed(x + w * kIn)), scale, shift);
            if constexpr (halves == 2) {
              unit = add(unit, widen(load_packed(y + w * kIn)));
            } else if constexpr (halves == 1) {
              unit.low = add(unit.low, load(y + w * kIn));
            }
            const Packed rounded = narrow({relu(unit.low), relu(unit.high)});
            if constexpr (kToOperand) Forward::put(operand, h, w, channel, rounded);
            if (kept) store_packed(keep + w * kIn, rounded);
          }
        }
      };
      if (shortcut_halves == 2) {
        activate_rows(std::integral_constant<int, 2>{});
      } else if (shortcut_halves == 1) {
        activate_rows(std::integral_constant<int, 1>{});
      } else {
        activate_rows(std::integral_constant<int, 0>{});
      }
    }
  }

  static void forward(const Layer& layer, int num_images, int num_threads) {
    const Input& input = layer.input;
#pragma omp parallel num_threads(num_threads)
    {
      TileScratch& scratch = thread_tile_scratch();
      Forward::clear(scratch.operand);
#pragma omp for schedule(dynamic, 4)
      for (int n = 0; n < num_images; n++) {
        const std::ptrdiff_t in_offset = std::ptrdiff_t{n} * kInImage;
        const Element* source = (input.previous ? input.previous->output : input.values) + in_offset;
        if constexpr (kIn == 4) {
          Forward::put_image(scratch.operand, source);
        } else {
          activate_image<true>(scratch.operand, *input.previous, source, Plain::image_shortcut(input, n),
                               input.values ? input.values + in_offset : nullptr);
        }
        Ahead ahead(Forward::num_pieces(kOutImage));
        if (n + 1 < num_images) {
          ahead.add(source + kInImage, kInImage);
          const ImageShortcut next = Plain::image_shortcut(input, n + 1);
          ahead.add(next.values, next.row_step * kInSize);
          ahead.add(layer.output + std::ptrdiff_t{n + 1} * kOutImage, kOutImage, true);
          if (input.values && kIn != 4) ahead.add(input.values + in_offset + kInImage, kInImage, true);
        }
        alignas(64) float sum[kOut] = {}, square_sum[kOut] = {};
        Element* output = layer.output + std::ptrdiff_t{n} * kOutImage;
        Forward::template convolve<kOut>(
            scratch.operand, layer.forward_weight, scratch.sums,
            [&](const float* tile, int channel, int pixel) ALWAYS_INLINE {
              ahead.advance();
              Element* out = output + pixel * kOut + channel;
              constexpr int kStep = Forward::kPixelPairs ? 2 * kOut : kOut;
              Unit total[2] = {}, square_total[2] = {};
              UNROLL for (int i = 0; i < Forward::kUnits; i++) {
                const float* values = tile + i * Forward::kUnitStep;
                const Unit unit{load_floats(values), load_floats(values + Forward::kHigh)};
                store_packed(out + i * kStep, narrow(unit));
                total[i % 2] = add(total[i % 2], unit);
                square_total[i % 2] = multiply_add(unit, unit, square_total[i % 2]);
              }
              add_per_channel<kOut>(sum + channel, add(total[0], total[1]));
              add_per_channel<kOut>(square_sum + channel, add(square_total[0], square_total[1]));
            });
        float* sums = layer.sums + std::ptrdiff_t{n} * 2 * kOut;
        memcpy(sums, sum, sizeof sum);
        memcpy(sums + kOut, square_sum, sizeof square_sum);
      }
      release_tiles();
    }
  }

  // Write a * g + b * output + c of an image as both operands need it.
  static void load_output_grad(Element* operand, Element* pairs, const Layer& layer, const Element* g,
                               const Element* output) {
    for (int channel = 0; channel < kOut; channel += 32) {
      const Unit a = load_per_channel<kOut>(layer.a + channel);
      const Unit b = load_per_channel<kOut>(layer.b + channel);
      const Unit c = load_per_channel<kOut>(layer.c + channel);
      const auto output_grad = [&](int offset) ALWAYS_INLINE {
        const Unit x = widen(load_packed(g + offset)), y = widen(load_packed(output + offset));
        return narrow(multiply_add(x, a, multiply_add(y, b, c)));
      };
      alignas(64) static constexpr uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                        8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
      alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
      const Packed low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
      const Packed order = _mm512_load_si512(kOrder);
      for (int h = 0; h < kOutSize; h++) {
        Element* row_pairs = pairs + (h + 1) * Grad::kPairRow + channel * 2;
        for (int w = 0; w < kOutSize; w += 2) {
          const int offset = (h * kOutSize + w) * kOut + channel;
          if constexpr (kOut == 16) {
            const Packed both = output_grad(offset);
            if constexpr (kIn >= kLanes) Backward::put(operand, h, w, 0, both);
            _mm512_store_si512(row_pairs + w * kOut, _mm512_permutexvar_epi16(order, both));
          } else {
            const Packed left = output_grad(offset), right = output_grad(offset + kOut);
            Backward::put(operand, h, w, channel, left);
            Backward::put(operand, h, w + 1, channel, right);
            _mm512_store_si512(row_pairs + w * kOut, _mm512_permutex2var_epi16(left, low, right));
            _mm512_store_si512(row_pairs + w * kOut + 32, _mm512_permutex2var_epi16(left, high, right));
          }
        }
      }
    }
  }

  // Write the input's gradient of image n, masked by ReLU, to input_grad, and its sums to the previous layer's.
  static void write_input_grad(TileScratch& scratch, const Layer& layer, int n, const Element* x,
                               const Element* shortcut_grad, Element* input_grad, Ahead ahead) {
    const Layer& previous = *layer.input.previous;
    const Element* raw = previous.output + std::ptrdiff_t{n} * kInImage;
    Element* target = input_grad + std::ptrdiff_t{n} * kInImage;
    if (shortcut_grad) shortcut_grad += std::ptrdiff_t{n} * kOutImage;
    alignas(64) float sum[kIn] = {}, product_sum[kIn] = {};

    // Which of 32 elements of the input, which are no less than 0 or NaN, are not 0.
    const auto is_positive = [](Packed elements) ALWAYS_INLINE {
      return _mm512_test_epi16_mask(elements, _mm512_set1_epi16(0x7fff));
    };
    if constexpr (kStride == 1) {
      Backward::template convolve<kIn>(
          scratch.operand, layer.backward_weight, scratch.sums,
          [&](const float* tile, int channel, int pixel) ALWAYS_INLINE {
            ahead.advance();
            constexpr int kStep = Backward::kPixelPairs ? 2 * kIn : kIn;
            const int first = pixel * kIn + channel;
            Unit total[2] = {}, product_total[2] = {};
            const auto finish_units = [&](auto with_shortcut) ALWAYS_INLINE {
              UNROLL for (int i = 0; i < Backward::kUnits; i++) {
                const int offset = first + i * kStep;
                const float* values = tile + i * Backward::kUnitStep;
                const __mmask32 mask = is_positive(load_packed(x + offset));
                const __mmask16 low = static_cast<__mmask16>(mask), high = static_cast<__mmask16>(mask >> 16);
                Unit unit;
                if constexpr (with_shortcut) {
                  const Unit added = widen(load_packed(shortcut_grad + offset));
                  unit = {_mm512_maskz_add_ps(low, load_floats(values), added.low),
                          _mm512_maskz_add_ps(high, load_floats(values + Backward::kHigh), added.high)};
                } else {
                  unit = {_mm512_maskz_loadu_ps(low, values), _mm512_maskz_loadu_ps(high, values + Backward::kHigh)};
                }
                store_packed(target + offset, narrow(unit));
                total[i % 2] = add(total[i % 2], unit);
                product_total[i % 2] = multiply_add(unit, widen(load_packed(raw + offset)), product_total[i % 2]);
              }
            };
            if (shortcut_grad) {
              finish_units(std::true_type{});
            } else {
              finish_units(std::false_type{});
            }
            add_per_channel<kIn>(sum + channel, add(total[0], total[1]));
            add_per_channel<kIn>(product_sum + channel, add(product_total[0], product_total[1]));
          });
    } else {
      // A row of pixels of one parity, 16 channels at a time.
      Backward::convolve(
          scratch.operand, layer.backward_weight, scratch.sums,
          [&](const float* tile, int row, int row_parity, int column_parity) ALWAYS_INLINE {
            ahead.advance();
            const bool reached = shortcut_grad && row_parity == 0 && column_parity == 0;
            const Element* shortcut = shortcut_grad + row * kOutSize * kOut;
            const int first = ((2 * row + row_parity) * kInSize + column_parity) * kIn;
            UNROLL for (int v = 0; v < Backward::kBlocks; v++) {
              Vec total[2] = {zero(), zero()}, product_total[2] = {zero(), zero()};
              for (int w = 0; w < kOutSize; w += 2) {
                UNROLL for (int i = 0; i < 2; i++) {
                  const int offset = first + (w + i) * 2 * kIn + v * kLanes;
                  Vec y = load_floats(tile + v * kTileSums + (w + i) * kLanes);
                  if (reached) y = add(y, load(shortcut + (w + i) * kOut + v * kLanes));
                  y = mask_by(load(x + offset), y);
                  store(target + offset, y);
                  total[i] = add(total[i], y);
                  product_total[i] = multiply_add(y, load(raw + offset), product_total[i]);
                }
              }
              float *sums = sum + v * kLanes, *product_sums = product_sum + v * kLanes;
              store_floats(sums, add(load_floats(sums), add(total[0], total[1])));
              store_floats(product_sums, add(load_floats(product_sums), add(product_total[0], product_total[1])));
            }
          });
    }
    float* sums = previous.sums + std::ptrdiff_t{n} * 2 * kIn;
    memcpy(sums, sum, sizeof sum);
    memcpy(sums + kIn, product_sum, sizeof product_sum);
  }

  static void backward(const Layer& layer, int num_images, const Element* g, const Element* shortcut_grad,
                       Element* input_grad, float* chunk_grads, int num_threads) {
    const Input& input = layer.input;
#pragma omp parallel num_threads(num_threads)
    {
      TileScratch& scratch = thread_tile_scratch();
      if constexpr (kIn >= kLanes) Backward::clear(scratch.operand);
      Grad::clear_pairs(scratch.pairs);
#pragma omp for schedule(dynamic, 1)
      for (int chunk = 0; chunk < kNumChunks; chunk++) {
        float* chunk_grad = chunk_grads + chunk * Plain::kWeights;
        memset(chunk_grad, 0, Plain::kWeights * sizeof(float));
        const int end = (chunk + 1) * num_images / kNumChunks;
        int held = 0;  // images in scratch
        for (int n = chunk * num_images / kNumChunks; n < end; n++) {
          const std::ptrdiff_t in_offset = std::ptrdiff_t{n} * kInImage, out_offset = std::ptrdiff_t{n} * kOutImage;
          const Element* x = input.values + in_offset;
          if constexpr (kIn >= kLanes) {
            if (!input.values) {
              activate_image<false>(nullptr, *input.previous, input.previous->output + in_offset,
                                    Plain::image_shortcut(input, n), scratch.input);
              x = scratch.input;
            }
          }
          load_output_grad(scratch.operand, scratch.pairs + held * Grad::kPairs, layer, g + out_offset,
                           layer.output + out_offset);
          held = Grad::take(scratch, held, x, n + 1 == end, chunk_grad);
          if constexpr (kIn >= kLanes) {
            Ahead ahead(Backward::num_pieces(kInImage));
            if (n + 1 < num_images) {
              ahead.add(g + out_offset + kOutImage, kOutImage);
              ahead.add(layer.output + out_offset + kOutImage, kOutImage);
              ahead.add(input.previous->output + in_offset + kInImage, kInImage);
              if (input.values) ahead.add(input.values + in_offset + kInImage, kInImage);
              if (shortcut_grad) ahead.add(shortcut_grad + out_offset + kOutImage, kOutImage);
              ahead.add(input_grad + in_offset + kInImage, kInImage, true);
            }
            write_input_grad(scratch, layer, n, x, shortcut_grad, input_grad, ahead);
          }
        }
      }
      release_tiles();
#pragma omp for schedule(static)
      for (int in = 0; in < static_cast<int>(layer.in_channels); in++) Plain::add_chunks(layer, chunk_grads, in);
    }
  }

  static void pack(const Layer& layer) {
    const int in_channels = static_cast<int>(layer.in_channels);
    const auto weight = [&](int out, int in, int tap) {
      return in < in_channels ? layer.weight[(out * in_channels + in) * 9 + tap] : 0.0f;
    };
    Forward::pack(layer.forward_weight, kOut, weight);
    if constexpr (kIn >= kLanes) {
      const auto rotated = [&](int in, int out, int tap) { return weight(out, in, 8 - tap); };
      if constexpr (kStride == 1) {
        Backward::pack(layer.backward_weight, kIn, rotated);
      } else {
        Backward::pack(layer.backward_weight, rotated);
      }
    }
  }
};
