// Winograd's convolution of stride 1, in float32: forward and backward pass of a layer.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "activate.h"
#include "layer.h"
#include "shape.h"
#include "simd.h"
#include "tasks.h"
#include "winograd_products.h"
#include "winograd_transforms.h"

namespace {

template <int kChannels, int kSize>
struct Winograd : WinogradProducts<kChannels, kSize> {
  using Products = WinogradProducts<kChannels, kSize>;
  using Products::kBlock, Products::kGradPosition, Products::kImage, Products::kImages, Products::kImageTiles;
  using Products::kPaddedSize, Products::kRow, Products::kRows;
  using Products::clear_rest, Products::end_read, Products::first_read, Products::for_parts, Products::multiply_back;
  using Products::multiply_for_weight_grad, Products::prefetch_read, Products::prefetch_written, Products::rows_of;
  using Products::transform_grad, Products::transform_image;
  using Sizes = Shape<kChannels, kChannels, kSize, 1>;

  static void forward(const Layer& layer, int num_images, int num_threads) {
    // Threads take several images at a time: what comes next is then known and can be asked for.
    const int run = std::max(kImages, (num_images - 1) / (4 * num_threads) + 1), num_runs = (num_images - 1) / run + 1;
    Pieces pieces(num_runs, num_threads, layer.descending);
#pragma omp parallel num_threads(num_threads)
    {
      WinogradScratch& scratch = thread_winograd_scratch();
      memset(scratch.input, 0, kPaddedSize * kRow * sizeof(float));
      const auto forward_run = [&](int i) {
        for_parts(i * run, std::min((i + 1) * run, num_images), layer.descending,
                  [&](Part part, Part next) { forward_part(scratch, layer, part, next); });
      };
#pragma omp for schedule(static, 1)
      for (int thread = 0; thread < num_threads; thread++) pieces.take(thread, forward_run);
    }
  }

  static void forward_part(WinogradScratch& scratch, const Layer& layer, Part part, Part next) {
    const Input& input = layer.input;
    for (int i = 0; i < part.num_images; i++) {
      activate_part(scratch, input, part, i, input.values);
      transform_image(scratch.input, part, scratch.first + i * kImageTiles * kChannels);
    }
    clear_rest(scratch.first, part);

    Prefetches prefetches;
    prefetch_written(prefetches, layer.output, part);
    if (next.num_images > 0) {
      prefetch_read(prefetches, input.previous->output, next);
      prefetch_read(prefetches, input.values, next);
      const ImageShortcut shortcut = Sizes::image_shortcut(input, next.image);
      const int num_rows = (next.num_images - 1) * kSize + end_read(next) - first_read(next);
      if (shortcut.values) {
        prefetches.add(shortcut.values + first_read(next) * shortcut.row_step, num_rows * shortcut.row_step);
      }
    }
    prefetches.divide(kPositions * rows_of(part) / kRows * (kChannels / kBlock));
    float* output = layer.output + ptrdiff_t{part.image} * kImage;
    multiply_back(scratch, layer.forward_weight, part, layer.sums, prefetches,
                  [=](int pixel, int, Vec y, Vec& sum, Vec& square_sum) {
                    store_floats(output + pixel, y);
                    sum += y;
                    square_sum = multiply_add(y, y, square_sum);
                  });
  }

  // Compute what a part is the first to read of the input of its image i, into scratch.input. `kept`, unless null, gets
  // it too.
  static void activate_part(WinogradScratch& scratch, const Input& input, Part part, int i, float* kept) {
    const int first_row = first_read(part);
    const ptrdiff_t offset = ptrdiff_t{part.image + i} * kImage + first_row * kSize * kChannels;
    ImageShortcut shortcut = Sizes::image_shortcut(input, part.image + i);
    if (shortcut.values) shortcut.values += first_row * shortcut.row_step;
    activate_rows<kChannels, kSize>(scratch.input + (first_row + 1) * kRow + kChannels, end_read(part) - first_row, kRow,
                                    *input.previous, input.previous->output + offset, shortcut,
                                    kept ? kept + offset : nullptr);
  }

  // Write a * g + b * output + c, what a part is the first to read of an image, padded.
  static void load_output_grad(float* padded, const Layer& layer, Part part, const float* g, const float* output) {
    for (int h = first_read(part); h < end_read(part); h++) {
      float* row = padded + (h + 1) * kRow + kChannels;
      for (int channel = 0; channel < kChannels; channel += kLanes) {
        const Vec a = load_floats(layer.a + channel), b = load_floats(layer.b + channel);
        const Vec c = load_floats(layer.c + channel);
        for (int w = 0; w < kSize; w++) {
          const int offset = (h * kSize + w) * kChannels + channel;
          store_floats(row + w * kChannels + channel,
                       multiply_add(load_floats(g + offset), a, multiply_add(load_floats(output + offset), b, c)));
        }
      }
    }
  }

  static void backward(const Layer& layer, int num_images, const float* g, const float* shortcut_grad,
                       float* input_grad, float* chunk_grads, int num_threads) {
    const Tasks tasks(num_images, num_threads, false);
    Pieces pieces = tasks.pieces(!layer.descending);
#pragma omp parallel num_threads(num_threads)
    {
      WinogradScratch& scratch = thread_winograd_scratch();
      memset(scratch.input, 0, kPaddedSize * kRow * sizeof(float));
      memset(scratch.grad, 0, kPaddedSize * kRow * sizeof(float));
      const auto take_task = [&](int i) {
        const Task task = tasks[i];
        float* chunk_grad = chunk_grads + task.chunk * Sizes::kWeights;
        if (task.begin == task.end) {
          if (task.weight_grad) memset(chunk_grad, 0, Sizes::kWeights * sizeof(float));
          return;
        }
        bool first = true;
        for_parts(task.begin, task.end, !layer.descending, [&](Part part, Part next) {
          transform_output_grad(scratch, layer, part, g);
          if (task.input_grad) write_input_grad(scratch, layer, part, shortcut_grad, input_grad);
          if (task.weight_grad) add_weight_grad(scratch, layer, part, next, g, first);
          first = false;
        });
        if (task.weight_grad) write_chunk_grad(scratch.weight_grad, chunk_grad);
      };
#pragma omp for schedule(static, 1)
      for (int thread = 0; thread < num_threads; thread++) pieces.take(thread, take_task);
#pragma omp for schedule(static)
      for (int in = 0; in < kChannels; in++) Sizes::add_chunks(layer, chunk_grads, in);
    }
  }

  // Leave the output's gradient in scratch, transformed: in `first` as the input's gradient needs it, in `second` as the
  // weight gradient does.
  static void transform_output_grad(WinogradScratch& scratch, const Layer& layer, Part part, const float* g) {
    const ptrdiff_t offset = ptrdiff_t{part.image} * kImage;
    for (int i = 0; i < part.num_images; i++) {
      const int image = i * kImage, tiles = i * kImageTiles * kChannels;
      load_output_grad(scratch.grad, layer, part, g + offset + image, layer.output + offset + image);
      transform_image(scratch.grad, part, scratch.first + tiles);
      transform_grad(scratch.grad, part, scratch.second + tiles);
    }
    clear_rest(scratch.first, part);
    clear_rest(scratch.second, part);
  }

  // Write the input's gradient, masked by ReLU, and its sums to the previous layer's.
  static void write_input_grad(WinogradScratch& scratch, const Layer& layer, Part part, const float* shortcut_grad,
                               float* input_grad) {
    const Layer& previous = *layer.input.previous;
    const ptrdiff_t offset = ptrdiff_t{part.image} * kImage;
    Prefetches prefetches;
    prefetch_written(prefetches, previous.output, part);
    prefetch_written(prefetches, layer.input.values, part);
    prefetch_written(prefetches, shortcut_grad, part);
    prefetch_written(prefetches, input_grad, part);
    prefetches.divide(kPositions * rows_of(part) / kRows);  // while the first block is multiplied
    const float* raw = previous.output + offset;
    const float* values = layer.input.values ? layer.input.values + offset : nullptr;
    const float* shortcut = shortcut_grad ? shortcut_grad + offset : nullptr;
    float* target = input_grad + offset;
    const float *scale = previous.scale, *shift = previous.shift;
    multiply_back(scratch, layer.backward_weight, part, previous.sums, prefetches,
                  [=](int pixel, int channel, Vec y, Vec& sum, Vec& product_sum) {
                    const Vec x = load_floats(raw + pixel);
                    if (shortcut) y += load_floats(shortcut + pixel);
                    y = mask_by(values ? load_floats(values + pixel)
                                       : multiply_add(x, load_floats(scale + channel), load_floats(shift + channel)),
                                y);
                    store_floats(target + pixel, y);
                    sum += y;
                    product_sum = multiply_add(y, x, product_sum);
                  });
  }

  // Add a part's share of the weight gradient to scratch.weight_grad, or let it begin with that.
  static void add_weight_grad(WinogradScratch& scratch, const Layer& layer, Part part, Part next, const float* g,
                              bool first) {
    const Input& input = layer.input;
    for (int i = 0; i < part.num_images; i++) {
      if (input.values) {
        const float* values = input.values + ptrdiff_t{part.image + i} * kImage;
        for (int h = first_read(part); h < end_read(part); h++) {
          memcpy(scratch.input + (h + 1) * kRow + kChannels, values + h * kSize * kChannels,
                 kSize * kChannels * sizeof(float));
        }
      } else {
        activate_part(scratch, input, part, i, nullptr);
      }
      transform_image(scratch.input, part, scratch.first + i * kImageTiles * kChannels);
    }
    clear_rest(scratch.first, part);
    Prefetches prefetches;
    if (next.num_images > 0) {
      prefetch_read(prefetches, g, next);
      prefetch_read(prefetches, layer.output, next);
    }
    prefetches.divide(kPositions * (kChannels / kBlock) * (kChannels / kRows));
    multiply_for_weight_grad(scratch.first, scratch.second, scratch.weight_grad, rows_of(part), first, prefetches);
  }

  // Transform the weight gradient back to [3][3][in][out].
  static void write_chunk_grad(const float* transformed, float* chunk_grad) {
    for (int i = 0; i < kChannels * kChannels; i += kLanes) {
      Vec half[3][6];
      UNROLL for (int column = 0; column < 6; column++) {
        Vec u[6], w[3];
        UNROLL for (int row = 0; row < 6; row++) {
          u[row] = load_floats(transformed + (6 * row + column) * kGradPosition + i);
        }
        transform_weight_grad(u, w);
        UNROLL for (int row = 0; row < 3; row++) half[row][column] = w[row];
      }
      UNROLL for (int row = 0; row < 3; row++) {
        Vec w[3];
        transform_weight_grad(half[row], w);
        UNROLL for (int column = 0; column < 3; column++) {
          store_floats(chunk_grad + (3 * row + column) * kChannels * kChannels + i, w[column]);
        }
      }
    }
  }

  // Transform filters taps[9][kChannels], one in each lane, to target[block][position][][lane in block].
  static void pack_filters(const float (&taps)[9][kChannels], float* target) {
    for (int i = 0; i < kChannels; i += kLanes) {
      float* out = target + i / kBlock * kBlock * kPositions * kChannels + i % kBlock;
      Vec half[6][3];
      UNROLL for (int column = 0; column < 3; column++) {
        Vec g[3], u[6];
        UNROLL for (int row = 0; row < 3; row++) g[row] = load_floats(taps[3 * row + column] + i);
        transform_weight(g, u);
        UNROLL for (int row = 0; row < 6; row++) half[row][column] = u[row];
      }
      UNROLL for (int row = 0; row < 6; row++) {
        Vec u[6];
        transform_weight(half[row], u);
        UNROLL for (int column = 0; column < 6; column++) {
          store_floats(out + (6 * row + column) * kChannels * kBlock, u[column]);
        }
      }
    }
  }

  static void pack(const Layer& layer) {
    float taps[9][kChannels];
    for (int i = 0; i < kChannels; i++) {
      for (int out = 0; out < kChannels; out++) {
        for (int k = 0; k < 9; k++) taps[k][out] = layer.weight[(out * kChannels + i) * 9 + k];
      }
      pack_filters(taps, layer.forward_weight + i * kBlock);
      for (int in = 0; in < kChannels; in++) {
        for (int k = 0; k < 9; k++) taps[8 - k][in] = layer.weight[(i * kChannels + in) * 9 + k];
      }
      pack_filters(taps, layer.backward_weight + i * kBlock);
    }
  }
};

}  // namespace
