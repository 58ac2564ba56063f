// The weight gradient of the direct convolution: sums over pixels, kPack of them in a lane.

#pragma once

#include <algorithm>

#include "direct_scratch.h"
#include "layer.h"
#include "shape.h"
#include "simd.h"

namespace {

#ifndef DEEPRES_FLOAT32
// Interleave pairs of pixels: target (num_pairs, kChannels, 2) from pixels (j * step, j * step + distance).
template <int kChannels>
inline void interleave_pixels(Element* target, const Element* pixels, int num_pairs, int step, int distance) {
  for (int j = 0; j < num_pairs; j++, pixels += step, target += kChannels * 2) {
    if constexpr (kChannels < kLanes) {
      for (int c = 0; c < kChannels; c++) {
        target[c * 2] = pixels[c];
        target[c * 2 + 1] = pixels[distance + c];
      }
    } else {
      for (int c = 0; c < kChannels; c += kLanes) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixels + c));
        const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixels + distance + c));
        _mm512_storeu_si512(target + c * 2, interleave(x, y));
      }
    }
  }
}
#endif

template <int kIn, int kOut, int kInSize, int kStride>
struct DirectWeightGrad : Shape<kIn, kOut, kInSize, kStride> {
  using Sizes = Shape<kIn, kOut, kInSize, kStride>;
  using Sizes::kOutSize, Sizes::kInRow, Sizes::kGradPairRow;

  // Add an image's part of the weight gradient to weight_grad, [3][3][kIn][kOut], from what lies in scratch.
  static void add(Scratch& scratch, float* weight_grad) {
    // taps[k]: what tap k of a row multiplies with the pixels of the gradient, kPack by kPack.
#ifdef DEEPRES_FLOAT32
    constexpr int kTapRow = kInRow, kTapStep = kStride * kIn;
    const Element* taps[3] = {scratch.input, scratch.input + kIn, scratch.input + 2 * kIn};
#else
    constexpr int kTapRow = (kStride == 1 ? kInSize / 2 + 1 : kOutSize / 2) * kIn * 2, kTapStep = kIn * 2;
    auto& pairs = scratch.input_pairs;
    for (int h = 0; h < kInSize + 2; h++) {
      const Element* row = scratch.input + h * kInRow;
      if constexpr (kStride == 1) {  // the pairs of tap 2 are those of tap 0, one later
        interleave_pixels<kIn>(pairs[0] + h * kTapRow, row, kInSize / 2 + 1, 2 * kIn, kIn);
        interleave_pixels<kIn>(pairs[1] + h * kTapRow, row + kIn, kInSize / 2, 2 * kIn, kIn);
      } else {
        for (int k = 0; k < 3; k++) {
          interleave_pixels<kIn>(pairs[k] + h * kTapRow, row + k * kIn, kOutSize / 2, 4 * kIn, 2 * kIn);
        }
      }
    }
    const Element* taps[3] = {pairs[0], pairs[1], kStride == 1 ? pairs[0] + 2 * kIn : pairs[2]};
#endif
    if constexpr (kOut == kLanes) {
      add_narrow<kTapRow, kTapStep>(taps, scratch.grad_pairs, weight_grad);
    } else {
      add_wide<kTapRow, kTapStep>(taps, scratch.grad_pairs + kGradPairRow, weight_grad);
    }
  }

  // 16 output channels: each register of input serves the three rows of taps, for two input channels at once.
  template <int kTapRow, int kTapStep>
  static void add_narrow(const Element* const (&taps)[3], const Element* grad, float* weight_grad) {
    constexpr int kChannels = 2;
    static_assert(kStride == 1);
    for (int first_row = 1; first_row <= kInSize; first_row += kCachedRows) {
      const int end_row = std::min(first_row + kCachedRows, kInSize + 1);
      for (int in = 0; in < kIn; in += kChannels) {
        Vec sums[3][3][kChannels];
        UNROLL for (int k = 0; k < 9; k++) {
          UNROLL for (int i = 0; i < kChannels; i++) {
            sums[k / 3][k % 3][i] = load_floats(weight_grad + (k * kIn + in + i) * kOut);
          }
        }
        for (int h = first_row; h < end_row; h++) {  // a row of the padded input
          const int offset = h * kTapRow + in * kPack;
          const Element *x0 = taps[0] + offset, *x1 = taps[1] + offset, *x2 = taps[2] + offset;
          const Element* g = grad + (h + 1) * kGradPairRow;
          for (int w = 0; w < kOutSize / kPack; w++) {
            Packed grads[3];
            UNROLL for (int k = 0; k < 3; k++) {
              grads[k] = load_packed(g - k * kGradPairRow + w * kOut * kPack);
            }
            UNROLL for (int i = 0; i < kChannels; i++) {
              const int step = w * kTapStep + i * kPack;
              const Packed x[3] = {broadcast_lane(x0 + step), broadcast_lane(x1 + step), broadcast_lane(x2 + step)};
              UNROLL for (int column = 0; column < 3; column++) {
                UNROLL for (int row = 0; row < 3; row++) {
                  sums[row][column][i] = multiply_packed(sums[row][column][i], grads[row], x[column]);
                }
              }
            }
          }
        }
        UNROLL for (int k = 0; k < 9; k++) {
          UNROLL for (int i = 0; i < kChannels; i++) {
            store_floats(weight_grad + (k * kIn + in + i) * kOut, sums[k / 3][k % 3][i]);
          }
        }
      }
    }
  }

  // Else one row of taps at a time, or kGradTaps of it, for four input channels and two registers of output channels.
  template <int kTapRow, int kTapStep>
  static void add_wide(const Element* const (&taps)[3], const Element* grad, float* weight_grad) {
    constexpr int kVectors = 2, kChannels = 4;
    for (int first_row = 0; first_row < kOutSize; first_row += kCachedRows) {
      const int end_row = std::min(first_row + kCachedRows, kOutSize);
      for (int tap = 0; tap < 9; tap += kGradTaps) {
        for (int out = 0; out < kOut; out += kVectors * kLanes) {
          for (int in = 0; in < kIn; in += kChannels) {
            float* target = weight_grad + (tap * kIn + in) * kOut + out;
            Vec sums[kGradTaps][kChannels][kVectors];
            UNROLL for (int k = 0; k < kGradTaps; k++) {
              UNROLL for (int i = 0; i < kChannels; i++) {
                UNROLL for (int v = 0; v < kVectors; v++) {
                  sums[k][i][v] = load_floats(target + (k * kIn + i) * kOut + v * kLanes);
                }
              }
            }
            for (int h = first_row; h < end_row; h++) {
              const Element* x[kGradTaps];
              UNROLL for (int k = 0; k < kGradTaps; k++) {
                x[k] = taps[tap % 3 + k] + (h * kStride + tap / 3) * kTapRow + in * kPack;
              }
              const Element* g = grad + h * kGradPairRow + out * kPack;
              for (int w = 0; w < kOutSize / kPack; w++) {
                Packed grads[kVectors];
                UNROLL for (int v = 0; v < kVectors; v++) {
                  grads[v] = in_register(load_packed(g + w * kOut * kPack + v * kLanes * kPack));
                }
                UNROLL for (int i = 0; i < kChannels; i++) {
                  const int step = w * kTapStep + i * kPack;
                  UNROLL for (int v = 0; v < kVectors; v++) {
                    UNROLL for (int k = 0; k < kGradTaps; k++) {
                      sums[k][i][v] = multiply_packed(sums[k][i][v], grads[v], broadcast_lane(x[k] + step));
                    }
                  }
                }
              }
            }
            UNROLL for (int k = 0; k < kGradTaps; k++) {
              UNROLL for (int i = 0; i < kChannels; i++) {
                UNROLL for (int v = 0; v < kVectors; v++) {
                  store_floats(target + (k * kIn + i) * kOut + v * kLanes, sums[k][i][v]);
                }
              }
            }
          }
        }
      }
    }
  }
};

}  // namespace
