// The direct convolution: every product of a pixel and a weight is computed, a tile of sums at a time.

#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "activate.h"
#include "direct_scratch.h"
#include "direct_weight_grad.h"
#include "layer.h"
#include "shape.h"
#include "simd.h"
#include "tasks.h"

namespace {

// The taps that a tile sums over, in each dimension: all three, or those of one parity (first, first + step, ...).
struct Taps {
  int first, step;
};
constexpr Taps kAllTaps{0, 1};

// Compute one tile: kPixels output pixels x kVectors registers of output channels.
// `input` is where tap (0, 0) of the first pixel falls; row_step, tap_step and pixel_step are in elements.
template <int kIn, int kVectors, int kPixels>
inline void compute_tile(const Element* input, int row_step, int tap_step, int pixel_step, const Element* weight,
                         Taps row_taps, Taps column_taps, Vec (&sums)[kVectors][kPixels]) {
  UNROLL for (int v = 0; v < kVectors; v++) {
    UNROLL for (int p = 0; p < kPixels; p++) sums[v][p] = zero();
  }
  for (int row = row_taps.first; row < 3; row += row_taps.step) {
    for (int column = column_taps.first; column < 3; column += column_taps.step) {
      const Element* x = input + row * row_step + column * tap_step;
      const Element* w = weight + (row * 3 + column) * kIn * kVectors * kLanes;
#pragma GCC unroll 2
      for (int i = 0; i < kIn / kPack; i++) {
        Packed weights[kVectors];
        UNROLL for (int v = 0; v < kVectors; v++) {
          weights[v] = load_packed(w + (i * kVectors + v) * kLanes * kPack);
        }
        UNROLL for (int p = 0; p < kPixels; p++) {
          const Packed pixel = broadcast_lane(x + p * pixel_step + i * kPack);
          UNROLL for (int v = 0; v < kVectors; v++) sums[v][p] = multiply_packed(sums[v][p], weights[v], pixel);
        }
      }
    }
  }
}

// Call action(first pixel, number of pixels as a type) for the tiles of a row of kNumPixels; the last may be smaller.
template <int kNumPixels, int kPixels, typename Action>
inline void for_tiles(Action action) {
#pragma GCC unroll 1  // else the compiler runs out of registers
  for (int i = 0; i + kPixels <= kNumPixels; i += kPixels) action(i, std::integral_constant<int, kPixels>{});
  constexpr int kRest = kNumPixels % kPixels;
  if constexpr (kRest != 0) action(kNumPixels - kRest, std::integral_constant<int, kRest>{});
}

template <int kIn, int kOut, int kInSize, int kStride>
struct Conv : Shape<kIn, kOut, kInSize, kStride> {
  using Sizes = Shape<kIn, kOut, kInSize, kStride>;
  using Sizes::kInImage, Sizes::kInRow, Sizes::kOutImage, Sizes::kOutSize, Sizes::kWeights, Sizes::image_shortcut;
  using Sizes::kGradPairRow, Sizes::kGradRow, Sizes::kGradSize;

  static constexpr int kForwardVectors = kOut <= kLanes ? 1 : 2;   // of a tile
  static constexpr int kBackwardVectors = kIn <= kLanes ? 1 : 2;

  // Copy the input of an image into its padded buffer, from values already computed ...
  static void copy_input(Element* padded, const Element* values) {
    for (int h = 0; h < kInSize; h++) {
      memcpy(padded + (h + 1) * kInRow + kIn, values + h * kInSize * kIn, kInSize * kIn * sizeof(Element));
    }
  }

  // ... or from the previous layer's output. `kept`, unless null, gets the values without padding.
  static void activate_input(Element* padded, const Layer& previous, const Element* raw, ImageShortcut shortcut,
                             Element* kept) {
    activate_rows<kIn, kInSize>(padded + kInRow + kIn, kInSize, kInRow, previous, raw, shortcut, kept);
  }

  static void clear_border(Element* padded) {
    memset(padded, 0, kInRow * sizeof(Element));
    memset(padded + (kInSize + 1) * kInRow, 0, kInRow * sizeof(Element));
    for (int h = 1; h <= kInSize; h++) {
      memset(padded + h * kInRow, 0, kIn * sizeof(Element));
      memset(padded + (h + 1) * kInRow - kIn, 0, kIn * sizeof(Element));
    }
  }

  // Write the layer's output for each image and, per image, its sums. Keep the input where it is to be kept.
  static void forward(const Layer& layer, int num_images, int num_threads) {
    constexpr int kVectors = kForwardVectors;
    const Input& input = layer.input;
    const int step = layer.descending ? -1 : 1;
    Pieces pieces(num_images, num_threads, layer.descending);
#pragma omp parallel num_threads(num_threads)
    {
      Element* padded = thread_scratch().input;
      clear_border(padded);
      const auto forward_image = [&](int n) {
        const ptrdiff_t in_offset = ptrdiff_t{n} * kInImage;
        const Element* source = (input.previous ? input.previous->output : input.values) + in_offset;
        const ImageShortcut shortcut = image_shortcut(input, n);
        if constexpr (kIn == kImageChannels) {
          copy_input(padded, source);
        } else {
          activate_input(padded, *input.previous, source, shortcut, input.values ? input.values + in_offset : nullptr);
        }
        const bool last = n + step < 0 || n + step == num_images;
        for (int block = 0; block < kOut; block += kVectors * kLanes) {
          Vec sum[kVectors], square_sum[kVectors];
          UNROLL for (int v = 0; v < kVectors; v++) sum[v] = square_sum[v] = zero();
          for (int h = 0; h < kOutSize; h++) {
            if (block == 0 && !last) {
              prefetch(source + step * kInImage, kInImage, h, kOutSize);
              if (shortcut.values) {
                const int image_step = shortcut.row_step * kInSize;
                prefetch(shortcut.values + step * image_step, image_step, h, kOutSize);
              }
            }
            for_tiles<kOutSize, kTile / kVectors>([&](int w, auto num_pixels) ALWAYS_INLINE {
              constexpr int kPixels = num_pixels;
              Vec tile[kVectors][kPixels];
              compute_tile<kIn, kVectors, kPixels>(padded + h * kStride * kInRow + w * kStride * kIn, kInRow, kIn,
                                                   kStride * kIn, layer.forward_weight + block * 9 * kIn, kAllTaps,
                                                   kAllTaps, tile);
              Element* out = layer.output + ptrdiff_t{n} * kOutImage + (h * kOutSize + w) * kOut + block;
              UNROLL for (int v = 0; v < kVectors; v++) {
                UNROLL for (int p = 0; p < kPixels; p++) {
                  store(out + p * kOut + v * kLanes, tile[v][p]);
                  sum[v] += tile[v][p];
                  square_sum[v] = multiply_add(tile[v][p], tile[v][p], square_sum[v]);
                }
              }
            });
          }
          float* sums = layer.sums + ptrdiff_t{n} * 2 * kOut + block;
          UNROLL for (int v = 0; v < kVectors; v++) {
            store_floats(sums + v * kLanes, sum[v]);
            store_floats(sums + kOut + v * kLanes, square_sum[v]);
          }
        }
      };
#pragma omp for schedule(static, 1)
      for (int thread = 0; thread < num_threads; thread++) pieces.take(thread, forward_image);
    }
  }

  // Write a * g + b * output + c of an image, padded and in pairs.
  static void load_output_grad(Scratch& scratch, const Layer& layer, const Element* g, const Element* output) {
    constexpr int kBorder = kStride == 1 ? kGradRow + kOut : 0;
    for (int channel = 0; channel < kOut; channel += kLanes) {
      const Vec a = load_floats(layer.a + channel);
      const Vec b = load_floats(layer.b + channel);
      const Vec c = load_floats(layer.c + channel);
      const auto output_grad = [=](int offset) {
        return multiply_add(load(g + offset), a, multiply_add(load(output + offset), b, c));
      };
      for (int h = 0; h < kOutSize; h++) {
        Element* padded = scratch.grad + kBorder + h * kGradRow + channel;
        Element* pairs = scratch.grad_pairs + (h + 1) * kGradPairRow + channel * kPack;
        for (int w = 0; w < kOutSize; w += 2) {
          const int offset = (h * kOutSize + w) * kOut + channel;
#ifdef DEEPRES_FLOAT32
          const Vec left = output_grad(offset), right = output_grad(offset + kOut);
          store(padded + w * kOut, left);
          store(padded + (w + 1) * kOut, right);
          store(pairs + w * kOut, left);
          store(pairs + (w + 1) * kOut, right);
#else
          const __m256i left = round_to_elements(output_grad(offset));
          const __m256i right = round_to_elements(output_grad(offset + kOut));
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(padded + w * kOut), left);
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(padded + (w + 1) * kOut), right);
          _mm512_storeu_si512(pairs + w * kOut, interleave(left, right));
#endif
        }
      }
    }
  }

  // Write the input's gradient of image n, masked by ReLU, to input_grad, and its sums to the previous layer's.
  // shortcut_grad, (n, out size, out size, kOut): what comes through the block's shortcut; null: none does.
  static void write_input_grad(const Scratch& scratch, const Layer& layer, int n, const Element* shortcut_grad,
                               Element* input_grad, const Element* g, int next) {
    constexpr int kVectors = kBackwardVectors;
    const Layer& previous = *layer.input.previous;
    const Element* raw = previous.output + ptrdiff_t{n} * kInImage;
    const Element* input = layer.input.values ? layer.input.values + ptrdiff_t{n} * kInImage : raw;
    const Element* next_input = input + next * kInImage;
    const Element* next_g = g + ptrdiff_t{n + next} * kOutImage;
    const Element* next_output = layer.output + ptrdiff_t{n + next} * kOutImage;
    Element* target = input_grad + ptrdiff_t{n} * kInImage;
    if (shortcut_grad) shortcut_grad += ptrdiff_t{n} * kOutImage;

    for (int block = 0; block < kIn; block += kVectors * kLanes) {
      const Element* weight = layer.backward_weight + block * 9 * kOut;
      Vec sum[kVectors], product_sum[kVectors];
      UNROLL for (int v = 0; v < kVectors; v++) sum[v] = product_sum[v] = zero();
      for (int h = 0; h < kInSize; h++) {
        if (block == 0 && next != 0) {
          prefetch(next_input, kInImage, h, kInSize);
          prefetch(next_g, kOutImage, h, kInSize);
          prefetch(next_output, kOutImage, h, kInSize);
        }
        for_tiles<kOutSize, kTile / kVectors>([&](int tile_w, auto num_pixels) ALWAYS_INLINE {
          constexpr int kPixels = num_pixels;
          // With stride 2, input pixels of one parity are reached by the taps of the other: tap k of pixel h lies
          // at (h + k - 1) / 2. The pixels of a tile are of one parity.
          for (int w = tile_w * kStride; w < (tile_w + 1) * kStride; w++) {
            Vec tile[kVectors][kPixels];
            if constexpr (kStride == 1) {
              compute_tile<kOut, kVectors, kPixels>(scratch.grad + h * kGradRow + w * kOut, kGradRow, kOut, kOut,
                                                    weight, kAllTaps, kAllTaps, tile);
            } else {
              const Taps row_taps{h % 2 ? 0 : 1, 2}, column_taps{w % 2 ? 0 : 1, 2};
              compute_tile<kOut, kVectors, kPixels>(scratch.grad + (h - 1) * (kGradRow / 2) + (w - 1) * (kOut / 2),
                                                    kGradRow / 2, kOut / 2, kOut, weight, row_taps, column_taps, tile);
            }
            const Element* shortcut = nullptr;
            if (shortcut_grad && h % kStride == 0 && w % kStride == 0) {
              shortcut = shortcut_grad + (h / kStride * kOutSize + w / kStride) * kOut + block;
            }
            const Element* x = scratch.input + (h + 1) * kInRow + (w + 1) * kIn + block;
            const int offset = (h * kInSize + w) * kIn + block;
            UNROLL for (int v = 0; v < kVectors; v++) {
              UNROLL for (int p = 0; p < kPixels; p++) {
                const int step = p * kStride * kIn + v * kLanes;
                Vec y = tile[v][p];
                if (shortcut) y += load(shortcut + p * kOut + v * kLanes);
                y = mask_by(load(x + step), y);
                store(target + offset + step, y);
                sum[v] += y;
                product_sum[v] = multiply_add(y, load(raw + offset + step), product_sum[v]);
              }
            }
          }
        });
      }
      float* sums = previous.sums + ptrdiff_t{n} * 2 * kIn + block;
      UNROLL for (int v = 0; v < kVectors; v++) {
        store_floats(sums + v * kLanes, sum[v]);
        store_floats(sums + kIn + v * kLanes, product_sum[v]);
      }
    }
  }

  // From g, (n, out size, out size, kOut): the weight gradient and the input's, masked by ReLU: the previous g.
  static void backward(const Layer& layer, int num_images, const Element* g, const Element* shortcut_grad,
                       Element* input_grad, float* chunk_grads, int num_threads) {
    const Input& input = layer.input;
    const int step = layer.descending ? 1 : -1;
    const Tasks tasks(num_images, num_threads, kIn == kImageChannels);
    Pieces pieces = tasks.pieces(!layer.descending);
#pragma omp parallel num_threads(num_threads)
    {
      Scratch& scratch = thread_scratch();
      clear_border(scratch.input);
      memset(scratch.grad, 0, kGradSize * kGradRow * sizeof(Element));
      memset(scratch.grad_pairs, 0, kGradPairRow * sizeof(Element));
      memset(scratch.grad_pairs + (kOutSize + 1) * kGradPairRow, 0, kGradPairRow * sizeof(Element));
      const auto take_task = [&](int i) {
        const Task task = tasks[i];
        float* chunk_grad = chunk_grads + task.chunk * kWeights;
        if (task.weight_grad) memset(chunk_grad, 0, kWeights * sizeof(float));
        const int first = step > 0 ? task.begin : task.end - 1, end = step > 0 ? task.end : task.begin - 1;
        for (int n = first; n != end; n += step) {
          const ptrdiff_t in_offset = ptrdiff_t{n} * kInImage, out_offset = ptrdiff_t{n} * kOutImage;
          if (input.values) {
            copy_input(scratch.input, input.values + in_offset);
          } else if constexpr (kIn != kImageChannels) {
            activate_input(scratch.input, *input.previous, input.previous->output + in_offset,
                           image_shortcut(input, n), nullptr);
          }
          load_output_grad(scratch, layer, g + out_offset, layer.output + out_offset);
          if (task.weight_grad) DirectWeightGrad<kIn, kOut, kInSize, kStride>::add(scratch, chunk_grad);
          if constexpr (kIn != kImageChannels) {
            const bool last = n + step < 0 || n + step == num_images;
            if (task.input_grad) write_input_grad(scratch, layer, n, shortcut_grad, input_grad, g, last ? 0 : step);
          }
        }
      };
#pragma omp for schedule(static, 1)
      for (int thread = 0; thread < num_threads; thread++) pieces.take(thread, take_task);
#pragma omp for schedule(static)
      for (int in = 0; in < static_cast<int>(layer.in_channels); in++) Sizes::add_chunks(layer, chunk_grads, in);
    }
  }

  static void pack(const Layer& layer) {
    constexpr int kForwardBlock = kForwardVectors * kLanes, kBackwardBlock = kBackwardVectors * kLanes;
    const int in_channels = static_cast<int>(layer.in_channels);
    for (int out = 0; out < kOut; out++) {
      for (int in = 0; in < kIn; in++) {
        Element* forward = layer.forward_weight + out / kForwardBlock * kForwardBlock * 9 * kIn +
                           in / kPack * kForwardBlock * kPack + out % kForwardBlock * kPack + in % kPack;
        for (int k = 0; k < 9; k++) {
          const float value = in < in_channels ? layer.weight[(out * in_channels + in) * 9 + k] : 0.0f;
          forward[k * kIn * kForwardBlock] = to_element(value);
        }
        if (!layer.backward_weight) continue;
        Element* backward = layer.backward_weight + in / kBackwardBlock * kBackwardBlock * 9 * kOut +
                            out / kPack * kBackwardBlock * kPack + in % kBackwardBlock * kPack + out % kPack;
        for (int k = 0; k < 9; k++) {
          backward[(8 - k) * kOut * kBackwardBlock] = to_element(layer.weight[(out * in_channels + in) * 9 + k]);
        }
      }
    }
  }
};

}  // namespace
