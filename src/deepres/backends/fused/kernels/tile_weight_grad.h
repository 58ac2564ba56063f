// The weight gradient on tiles.
//
// The summed dimension is the pixel. The left operand is the transposed input, 16 channels x up to 32 pixels, one copy
// for each column of taps, shifted, with zeros where the tap falls beside the image; the right operand is the output's
// gradient in pairs of pixels, with a row of zeros above and below: a row of taps is an offset in it.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "layer.h"
#include "simd.h"
#include "tile_operands.h"
#include "tile_units.h"
#include "tiles.h"

namespace {

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

}  // namespace
