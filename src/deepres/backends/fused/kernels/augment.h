// Training images: chosen, normalised, cropped, flipped and made smaller in one pass, with the bits of torch.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "layer.h"

namespace {

// How rows and columns are resampled: output i is the sum of `num_taps` inputs from firsts[i] on, times
// weights[tap * size + i]. The inputs of those weights that are zero exist.
struct Resampling {
  int size, num_taps;
  const int32_t* firsts;
  const float* weights;
};

// Resample a plane of kImageSize rows and columns: first each row, then each column, as torch does.
inline void resample(const float* plane, const Resampling& to, float* target) {
  constexpr int kSize = kImageSize;
  float rows[kSize * kSize];  // (kSize, to.size)
  for (int h = 0; h < kSize; h++) {
    const float* row = plane + h * kSize;
    float* out = rows + h * to.size;
    for (int i = 0; i < to.size; i++) out[i] = row[to.firsts[i]] * to.weights[i];
    for (int tap = 1; tap < to.num_taps; tap++) {
      const float* weights = to.weights + tap * to.size;
      for (int i = 0; i < to.size; i++) out[i] = std::fma(row[to.firsts[i] + tap], weights[i], out[i]);
    }
  }
  for (int h = 0; h < to.size; h++) {
    const float* source = rows + to.firsts[h] * to.size;
    float* out = target + h * to.size;
    for (int i = 0; i < to.size; i++) out[i] = source[i] * to.weights[h];
    for (int tap = 1; tap < to.num_taps; tap++) {
      const float weight = to.weights[tap * to.size + h];
      for (int i = 0; i < to.size; i++) out[i] = std::fma(source[tap * to.size + i], weight, out[i]);
    }
  }
}

}  // namespace

extern "C" {

// From images (any, 3, size, size) those with `indices`, (num_images,), to target (num_images, 3, out_size, out_size).
//
// (pixel / 255 - mean) / deviation, with a mean (3,), or (3, size, size) if `mean_of_pixels`, and deviations (3,). Each
// image is padded by fewer than `size` pixels, by zeros or, if `reflects`, by what lies inside without the outermost
// pixel; a crop of its own size begins at its `offsets`, (num_images, 2), and is flipped or not by `flips`. It is then
// resampled, see Resampling, unless num_taps is 0.
void make_images(int num_images, const uint8_t* images, const int64_t* indices, const int64_t* offsets,
                 const uint8_t* flips, const float* mean, int mean_of_pixels, const float* deviation, int pad,
                 int reflects, int out_size, int num_taps, const int32_t* firsts, const float* weights, float* target,
                 int num_threads) {
  constexpr int kSize = kImageSize;
  const Resampling resampling{out_size, num_taps, firsts, weights};
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int n = 0; n < num_images; n++) {
    const int top = static_cast<int>(offsets[2 * n]) - pad, left = static_cast<int>(offsets[2 * n + 1]);
    alignas(64) float padded[3 * kSize] = {};  // a row
    alignas(64) float plane[kSize * kSize];
    float* middle = padded + pad;
    for (int c = 0; c < 3; c++) {
      const uint8_t* pixels = images + (indices[n] * 3 + c) * kSize * kSize;
      float* made = target + (std::ptrdiff_t{n} * 3 + c) * out_size * out_size;
      float* out = num_taps ? plane : made;
      for (int h = 0; h < kSize; h++, out += kSize) {
        int row = h + top;
        if (reflects) row = std::min(std::abs(row), 2 * (kSize - 1) - row);
        if (row < 0 || row >= kSize) {
          memset(out, 0, kSize * sizeof(float));
          continue;
        }
        float means[kSize];
        for (int w = 0; w < kSize; w++) means[w] = mean_of_pixels ? mean[(c * kSize + row) * kSize + w] : mean[c];
        for (int w = 0; w < kSize; w++) {
          middle[w] = (static_cast<float>(pixels[row * kSize + w]) / 255.0f - means[w]) / deviation[c];
        }
        for (int i = 1; reflects && i <= pad; i++) {
          middle[-i] = middle[i];
          middle[kSize - 1 + i] = middle[kSize - 1 - i];
        }
        const float* source = padded + left;
        if (flips[n]) {
          for (int w = 0; w < kSize; w++) out[w] = source[kSize - 1 - w];
        } else {
          memcpy(out, source, kSize * sizeof(float));
        }
      }
      if (num_taps) resample(plane, resampling, made);
    }
  }
}

}  // extern "C"
