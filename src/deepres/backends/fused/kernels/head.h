// What follows the convolutions: mean over pixels, the linear layer, cross-entropy.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "activate.h"
#include "layer.h"
#include "shape.h"
#include "simd.h"

extern "C" {

// Compute the last block's output, input->values (n, last size, last size, 64), and its mean over pixels, (n, 64).
void pool_forward(const Input* input, int num_images, float* pooled, int num_threads) {
  using Last = Shape<64, 64, kLastSize, 1>;
  constexpr int kChannels = 64, kPixels = kLastSize * kLastSize;
  const Layer& previous = *input->previous;
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int n = 0; n < num_images; n++) {
    const Element* raw = previous.output + ptrdiff_t{n} * Last::kInImage;
    Element* values = input->values + ptrdiff_t{n} * Last::kInImage;
    const ImageShortcut shortcut = Last::image_shortcut(*input, n);
    for (int c = 0; c < kChannels; c += kLanes) {
      const Vec scale = load_floats(previous.scale + c), shift = load_floats(previous.shift + c);
      Vec sum = zero();
      for (int p = 0; p < kPixels; p++) {
        const Element* y = nullptr;
        if (c < shortcut.channels) {
          y = shortcut.values + p / kLastSize * shortcut.row_step + p % kLastSize * kChannels + c;
        }
        const Vec x = activate(raw + p * kChannels + c, scale, shift, y);
        store(values + p * kChannels + c, x);
        sum += x;
      }
      store_floats(pooled + n * kChannels + c, sum * (1.0f / kPixels));
    }
  }
}

// The gradient of the mean, masked by ReLU, to g (n, last size, last size, 64), and its sums to the previous layer's.
void pool_backward(const Input* input, int num_images, const float* pooled_grad, Element* g, int num_threads) {
  constexpr int kChannels = 64, kPixels = kLastSize * kLastSize;
  const Layer& previous = *input->previous;
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int n = 0; n < num_images; n++) {
    for (int c = 0; c < kChannels; c += kLanes) {
      const Vec pixel_grad = load_floats(pooled_grad + n * kChannels + c) * (1.0f / kPixels);
      Vec sum = zero(), product_sum = zero();
      for (int p = 0; p < kPixels; p++) {
        const ptrdiff_t offset = (ptrdiff_t{n} * kPixels + p) * kChannels + c;
        const Vec x = load(input->values + offset);
        const Vec y = mask_by(x, pixel_grad);
        store(g + offset, y);
        sum += y;
        product_sum = multiply_add(y, load(previous.output + offset), product_sum);
      }
      store_floats(previous.sums + n * 2 * kChannels + c, sum);
      store_floats(previous.sums + (n * 2 + 1) * kChannels + c, product_sum);
    }
  }
}

// logits (n, num_classes) = pooled (n, 64) weight^T + bias, weight (num_classes, 64).
void linear_forward(int num_images, int num_classes, const float* pooled, const float* weight, const float* bias,
                    float* logits, int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int n = 0; n < num_images; n++) {
    for (int k = 0; k < num_classes; k++) {
      Vec sums = zero();
      for (int c = 0; c < 64; c += kLanes) {
        sums = multiply_add(load_floats(pooled + n * 64 + c), load_floats(weight + k * 64 + c), sums);
      }
      logits[ptrdiff_t{n} * num_classes + k] = sum_lanes(sums) + bias[k];
    }
  }
}

// The mean cross-entropy in nats to *loss, and its gradient in place of the logits (n, num_classes).
// Return the number of images whose highest logit is not the label's, or -1: a label is no class.
int64_t cross_entropy(int num_images, int num_classes, float* logits, const int64_t* labels, float* loss) {
  double total = 0;
  int64_t num_wrong = 0;
  for (int n = 0; n < num_images; n++) {
    float* row = logits + ptrdiff_t{n} * num_classes;
    const int64_t label = labels[n];
    if (label < 0 || label >= num_classes) return -1;
    const float* highest = std::max_element(row, row + num_classes);
    num_wrong += highest - row != label;
    const float shift = *highest;
    double sum = 0;
    for (int k = 0; k < num_classes; k++) sum += std::exp(row[k] - shift);
    total += std::log(sum) + shift - row[label];
    for (int k = 0; k < num_classes; k++) {
      row[k] = static_cast<float>((std::exp(row[k] - shift) / sum - (k == label)) / num_images);
    }
  }
  *loss = static_cast<float>(total / num_images);
  return num_wrong;
}

// From the gradient of the logits (n, num_classes): those of weight (num_classes, 64), bias and pooled (n, 64).
void linear_backward(int num_images, int num_classes, const float* logits_grad, const float* pooled,
                     const float* weight, float* weight_grad, float* bias_grad, float* pooled_grad, int num_threads) {
  // sums (64,) of factors[i * step] * rows[i] over i
  const auto weigh_rows = [](int num_rows, const float* factors, int step, const float* rows, float* sums) {
    constexpr int kVectors = 64 / kLanes;
    Vec total[kVectors];
    UNROLL for (int v = 0; v < kVectors; v++) total[v] = zero();
    for (int i = 0; i < num_rows; i++) {
      const Vec factor = splat(factors[ptrdiff_t{i} * step]);
      UNROLL for (int v = 0; v < kVectors; v++) {
        total[v] = multiply_add(factor, load_floats(rows + i * 64 + v * kLanes), total[v]);
      }
    }
    UNROLL for (int v = 0; v < kVectors; v++) store_floats(sums + v * kLanes, total[v]);
  };
#pragma omp parallel num_threads(num_threads)
  {
#pragma omp for schedule(static) nowait
    for (int k = 0; k < num_classes; k++) {
      weigh_rows(num_images, logits_grad + k, num_classes, pooled, weight_grad + k * 64);
      float sum = 0;
      for (int n = 0; n < num_images; n++) sum += logits_grad[ptrdiff_t{n} * num_classes + k];
      bias_grad[k] = sum;
    }
#pragma omp for schedule(static)
    for (int n = 0; n < num_images; n++) {
      weigh_rows(num_classes, logits_grad + ptrdiff_t{n} * num_classes, 1, weight, pooled_grad + n * 64);
    }
  }
}

}  // extern "C"
