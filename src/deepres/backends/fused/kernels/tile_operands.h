// The operands of the convolutions on tiles, forward and data gradient, and their products.
//
// A left operand holds 16 pixels as rows (fewer where the image's rows demand it) and, in 64
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

#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "layer.h"
#include "simd.h"
#include "tile_units.h"
#include "tiles.h"

namespace {

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
// meanwhile(step) is called when the products of a step are under way: what it does in their time, some hundreds of
// instructions, costs little.
template <int kGroups, int kBlocks, int kSteps, typename Meanwhile>
inline void multiply_tiles(const Element* x, std::ptrdiff_t group_step, std::ptrdiff_t row_bytes, const int* offsets,
                           const Element* y, std::ptrdiff_t block_step, float* sums, Meanwhile meanwhile) {
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
    meanwhile(step);
  }
  tiles::unroll<kGroups * kBlocks>([&](auto i) ALWAYS_INLINE { tiles::store<i>(sums + i * kTileSums, 64); });
}

// The filters of a convolution, of any layout: 16 outputs at once.
struct Filters {
  const float* weights;
  int output_step, channel_step;  // floats from one to the next
  int num_channels;               // the operand may have more: their weights are zeros
  bool rotated;                   // by half a turn

  Vec operator()(int first_output, int channel, int tap) const {
    if (channel >= num_channels) return zero();
    const float* first = weights + first_output * output_step + channel * channel_step + (rotated ? 8 - tap : tap);
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_i32gather_ps(_mm512_mullo_epi32(lanes, _mm512_set1_epi32(output_step)), first, sizeof(float));
  }
};

// Write a right operand's tile; lanes(element): the weights of 16 outputs.
template <typename Lanes>
inline void pack_tile(Element* target, Lanes lanes) {
  for (int element = 0; element < 32; element += 2) {
    store_packed(target + element * 16, interleave(narrow({lanes(element), lanes(element + 1)})));
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

  // The weights that step `step` of block `block` multiplies with element `element` of its 32, of 16 outputs.
  static Vec lanes(const Filters& filters, int block, int step, int element) {
    if constexpr (kChannels == 4) {
      return element < 12 ? filters(block * 16, element % 4, step * 3 + element / 4) : zero();
    } else if constexpr (kRowPairs) {
      const bool lower = kStride == 1 && block % 2;
      const int row = step / 3 * 2 + element / 16 - lower;
      const int first_output = (kStride == 1 ? block / 2 : block) * 16;
      return row >= 0 && row < 3 ? filters(first_output, element % 16, row * 3 + step % 3) : zero();
    } else {
      constexpr int kParts = kChannels / 32;
      return filters(block * 16, step % kParts * 32 + element, step / kParts);
    }
  }

  static constexpr int num_blocks(int outputs) { return outputs / 16 * (kRowPairs && kStride == 1 ? 2 : 1); }

  static void pack(Element* target, int outputs, const Filters& filters) {
    for (int block = 0; block < num_blocks(outputs); block++) {
      for (int step = 0; step < kSteps; step++, target += kTileElements) {
        pack_tile(target, [&](int element) { return lanes(filters, block, step, element); });
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
    constexpr int kPieceBlocks = kPixelPairs ? 1 : 2, kGroupPieces = kTaskBlocks / kPieceBlocks;
    constexpr int kPieces = kGroups * kGroupPieces;
    use_config<kGroupRows, kPairs, 4, 6>();
    const auto finish_piece = [&](int task, int piece) ALWAYS_INLINE {
      const int group = task % kGroupTasks * kGroups, block = task / kGroupTasks * kTaskBlocks;
      const int g = piece / kGroupPieces, b = piece % kGroupPieces * kPieceBlocks;
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
    };
    for (int task = 0; task < kTasks; task++) {
      const int group = task % kGroupTasks * kGroups, block = task / kGroupTasks * kTaskBlocks;
      int piece = task == 0 ? kPieces : 0;  // of the task before
      for (int round = 0; round < kRounds; round++) {
        multiply_tiles<kGroups, kBlocks, kSteps>(
            operand + group_offset(group), group_offset(1) - group_offset(0), kPixelStep * sizeof(Element),
            kOffsets.values, weights + (block + round) * kSteps * kTileElements, kSteps * kTileElements,
            sums[task % 2] + round * kGroups * kTileSums, [&](int step) ALWAYS_INLINE {
              for (const int due = kPieces * (round * kSteps + step + 1) / (kRounds * kSteps); piece < due; piece++) {
                finish_piece(task - 1, piece);
              }
            });
      }
    }
    for (int piece = 0; piece < kPieces; piece++) finish_piece(kTasks - 1, piece);
  }
};

// The left operand of the data gradient of a convolution with stride 2: the output's gradient with a row and a column
// of zeros after it. Input pixels of one parity in each dimension form a class, which one, two or four taps reach.
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

  static void pack(Element* target, const Filters& filters) {
    for (int block = 0; block < kBlocks; block++) {
      tiles::unroll<4>([&](auto index) {
        using Taps = Class<index>;
        for (int step = 0; step < Taps::kTaps * kParts; step++, target += kTileElements) {
          const int tap = Taps::row_tap(step / kParts) * 3 + Taps::column_tap(step / kParts);
          pack_tile(target, [&](int element) { return filters(block * 16, step % kParts * 32 + element, tap); });
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
      constexpr int kTasks = kOutSize / kGroups, kTaskSteps = Taps::kTaps * kParts;
      const auto finish_piece = [&](int task, int piece) ALWAYS_INLINE {
        const float* tile = sums[task % 2] + piece * kBlocks * kTileSums;
        finish(tile, task * kGroups + piece, Taps::kRow, Taps::kColumn);
      };
      for (int task = 0; task < kTasks; task++) {
        int piece = task == 0 ? kGroups : 0;  // of the task before
        multiply_tiles<kGroups, kBlocks, kTaskSteps>(
            operand + task * kGroups * kPitch, kPitch, kOut * sizeof(Element), Taps::kOffsets.values,
            weights + Taps::kFirstTap * kParts * kTileElements, kSteps * kTileElements, sums[task % 2],
            [&](int step) ALWAYS_INLINE {
              for (const int due = kGroups * (step + 1) / kTaskSteps; piece < due; piece++) {
                finish_piece(task - 1, piece);
              }
            });
      }
      for (int piece = 0; piece < kGroups; piece++) finish_piece(kTasks - 1, piece);
    });
  }
};

}  // namespace
