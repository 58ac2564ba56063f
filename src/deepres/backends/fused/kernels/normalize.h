// Batch normalisation, per channel: from the sums of a layer to what its readers apply.
//
// As with registers, see simd.h, a product is fused with a sum only where the source says so, by std::fma.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "layer.h"

namespace {

// Add up two sums of each channel over the images: layer.sums' first and second half.
struct ChannelSums {
  double first[kMaxChannels] = {}, second[kMaxChannels] = {};

  ChannelSums(const Layer& layer, int num_images) {
    const int channels = static_cast<int>(layer.out_channels);
    const float* sums = layer.sums;
    for (int n = 0; n < num_images; n++, sums += 2 * channels) {
      for (int i = 0; i < channels; i++) first[i] += sums[i];
      for (int i = 0; i < channels; i++) second[i] += sums[channels + i];
    }
  }
};

// Turn the sums over images into the batch's statistics, scale and shift; update the running statistics as torch does.
void normalize_batch(const Layer& layer, int num_images, int64_t num_pixels) {
  const int channels = static_cast<int>(layer.out_channels);
  const double count = static_cast<double>(num_images) * static_cast<double>(num_pixels);
  const ChannelSums sums(layer, num_images);
  for (int i = 0; i < channels; i++) {
    const double mean = sums.first[i] / count;
    const double var = std::max(std::fma(-mean, mean, sums.second[i] / count), 0.0);
    const double inverse_std = 1 / std::sqrt(var + layer.eps);
    layer.mean[i] = static_cast<float>(mean);
    layer.inverse_std[i] = static_cast<float>(inverse_std);
    layer.scale[i] = static_cast<float>(layer.norm_weight[i] * inverse_std);
    layer.shift[i] = static_cast<float>(std::fma(-layer.norm_weight[i], mean * inverse_std, layer.norm_bias[i]));
    layer.running_mean[i] += static_cast<float>(layer.momentum * (mean - layer.running_mean[i]));
    layer.running_var[i] += static_cast<float>(layer.momentum * (var * count / (count - 1) - layer.running_var[i]));
  }
  ++*layer.num_batches_tracked;
}

void normalize_running(const Layer& layer) {
  for (int i = 0; i < static_cast<int>(layer.out_channels); i++) {
    const double scale = layer.norm_weight[i] / std::sqrt(layer.running_var[i] + layer.eps);
    layer.scale[i] = static_cast<float>(scale);
    layer.shift[i] = static_cast<float>(std::fma(-scale, layer.running_mean[i], layer.norm_bias[i]));
  }
}

// Turn the sums of g and g * output into the gradients of weight and bias, and into a, b, c.
void normalize_backward(const Layer& layer, int num_images, int64_t num_pixels) {
  const int channels = static_cast<int>(layer.out_channels);
  const double count = static_cast<double>(num_images) * static_cast<double>(num_pixels);
  const ChannelSums sums(layer, num_images);
  for (int i = 0; i < channels; i++) {
    const double sum = sums.first[i], product_sum = sums.second[i];
    const double mean = layer.mean[i], inverse_std = layer.inverse_std[i];
    const double weight_grad = inverse_std * std::fma(-mean, sum, product_sum);
    const double scale = layer.norm_weight[i] * inverse_std;
    layer.norm_weight_grad[i] = static_cast<float>(weight_grad);
    layer.norm_bias_grad[i] = static_cast<float>(sum);
    layer.a[i] = static_cast<float>(scale);
    layer.b[i] = static_cast<float>(-scale * inverse_std * weight_grad / count);
    layer.c[i] = static_cast<float>(scale * std::fma(inverse_std * mean, weight_grad, -sum) / count);
  }
}

}  // namespace
