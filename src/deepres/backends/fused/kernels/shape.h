// The sizes that follow from a layer's shape, and what every convolution of that shape does alike.

#pragma once

#include <cstddef>
#include <cstdint>

#include "activate.h"
#include "layer.h"

namespace {

// A convolution from kIn to kOut channels of images of kInSize rows and columns.
template <int kIn, int kOut, int kInSize, int kStride>
struct Shape {
  static constexpr int kOutSize = kInSize / kStride;
  static constexpr int kInImage = kInSize * kInSize * kIn;         // elements of an image
  static constexpr int kOutImage = kOutSize * kOutSize * kOut;
  static constexpr int kInRow = (kInSize + 2) * kIn;               // elements of a row of the padded input
  // The padded gradient: a border of one pixel, or for stride 2 only at the right and below.
  static constexpr int kGradSize = kStride == 1 ? kInSize + 2 : kOutSize + 1;
  static constexpr int kGradRow = kGradSize * kOut;
  static constexpr int kGradPairRow = kOutSize * kOut;             // of the gradient's pairs
  static constexpr int kWeights = 9 * kIn * kOut;

  static ImageShortcut image_shortcut(const Input& input, int image) {
    if (!input.shortcut) return {nullptr, 0, 0};
    const int scale = input.shortcut_channels == kIn ? 1 : 2;      // (2 size)^2 * channels / 2 elements in the latter
    const ptrdiff_t offset = ptrdiff_t{image} * kInImage * scale;
    return {input.shortcut + offset, static_cast<int>(input.shortcut_channels), kInSize * kIn * scale};
  }

  // Add up the chunks' weight gradients of one input channel.
  static void add_chunks(const Layer& layer, const float* chunk_grads, int in) {
    float total[9][kOut] = {};
    for (int chunk = 0; chunk < kNumChunks; chunk++) {
      for (int k = 0; k < 9; k++) {
        const float* part = chunk_grads + chunk * kWeights + (k * kIn + in) * kOut;
        for (int out = 0; out < kOut; out++) total[k][out] += part[out];
      }
    }
    for (int out = 0; out < kOut; out++) {
      for (int k = 0; k < 9; k++) layer.weight_grad[(out * layer.in_channels + in) * 9 + k] = total[k][out];
    }
  }
};

}  // namespace
