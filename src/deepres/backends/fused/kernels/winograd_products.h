// The products of Winograd's convolution: an image's tiles are transformed, multiplied, and transformed back.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>

#include "layer.h"
#include "simd.h"
#include "winograd_transforms.h"

namespace {

constexpr int kPartTiles = 18;  // the most tiles of a part
constexpr int kMaxTransformed = 36 * ((kPartTiles + 6) * 64 + 16);

struct alignas(64) WinogradScratch {
  float input[kMaxPadded];
  GUARD(after_input)
  float grad[kMaxPadded];
  GUARD(after_grad)
  float first[kMaxTransformed];
  GUARD(after_first)
  float second[kMaxTransformed];
  GUARD(after_second)
  float product[kMaxTransformed];
  GUARD(after_product)
  float weight_grad[36 * (64 * 64 + 16)];
};

WinogradScratch& thread_winograd_scratch() {
  static thread_local const std::unique_ptr<WinogradScratch> scratch = std::make_unique<WinogradScratch>();
  return *scratch;
}

// What is computed at once: several images, or some rows of tiles of one.
struct Part {
  int image, num_images, tile_row, num_tile_rows;
};

// Memory that is asked for while products are computed, to be in the cache when it is needed. Null: nothing.
class Prefetches {
 public:
  void add(const float* p, ptrdiff_t num_floats) {
    if (!p || num_floats <= 0) return;
    ranges_[num_ranges_++] = {p, p + num_floats};
    num_lines_ += static_cast<int>((num_floats + kLine - 1) / kLine);
  }

  // Say in how many steps to ask for it.
  void divide(int num_steps) { step_lines_ = (num_lines_ + num_steps - 1) / num_steps; }

  void step() {
    for (int i = 0; i < step_lines_ && range_ < num_ranges_; i++) {
      Range& range = ranges_[range_];
      __builtin_prefetch(range.next);
      range.next += kLine;
      range_ += range.next >= range.end;
    }
  }

 private:
  static constexpr int kLine = 16;  // floats
  struct Range {
    const float *next, *end;
  };
  Range ranges_[5];
  int num_ranges_ = 0, range_ = 0, num_lines_ = 0, step_lines_ = 0;
};

template <int kChannels, int kSize>
struct WinogradProducts {
  static constexpr int kOutSize = kSize;
  static constexpr int kImage = kSize * kSize * kChannels;
  static constexpr int kTiles = (kSize + 3) / 4;                   // of a row or column
  static constexpr int kImageTiles = kTiles * kTiles;
  static constexpr int kPaddedSize = 4 * kTiles + 2;
  static constexpr int kRow = kPaddedSize * kChannels;             // elements of a row of a padded image
  // A part is kImages images, or 1 / kParts of an image: kPartRows rows of tiles.
  static constexpr int kImages = std::max(1, kPartTiles / kImageTiles);
  static constexpr int kParts = (kImageTiles - 1) / kPartTiles + 1;
  static constexpr int kPartRows = (kTiles - 1) / kParts + 1;
  static constexpr int kVectors = std::min(2, kChannels / kLanes);
  static constexpr int kBlock = kVectors * kLanes;                 // output channels that are computed at once
  static constexpr int kRows = kTile / 2;                          // rows of a product that are computed at once
  static constexpr int kMaxRows = (kImages * kPartRows * kTiles - 1) / kRows * kRows + kRows;
  // Floats from position to position; a line more than a power of two, which would fall on few sets of the cache.
  static constexpr int kPosition = kMaxRows * kChannels + 16;
  static constexpr int kProductPosition = kMaxRows * kBlock + 16;
  static constexpr int kGradPosition = kChannels * kChannels + 16;
  static_assert(kPositions * kPosition <= kMaxTransformed);

  static int tiles_of(Part part) { return part.num_images * part.num_tile_rows * kTiles; }
  static int rows_of(Part part) { return (tiles_of(part) + kRows - 1) / kRows * kRows; }

  // Where a part begins in an image, in rows of pixels: those that it is the first to read, and those that it writes.
  static int first_read(Part part) { return part.tile_row == 0 ? 0 : 4 * part.tile_row + 1; }
  static int first_written(Part part) { return 4 * part.tile_row; }
  static int end_read(Part part) { return std::min(kSize, 4 * (part.tile_row + part.num_tile_rows) + 1); }
  static int end_written(Part part) { return std::min(kSize, 4 * (part.tile_row + part.num_tile_rows)); }

  // Ask for what a part reads, or writes, of a tensor.
  static void prefetch_read(Prefetches& prefetches, const float* values, Part part) {
    const ptrdiff_t offset = ptrdiff_t{part.image} * kImage + first_read(part) * kSize * kChannels;
    const int num_rows = (part.num_images - 1) * kSize + end_read(part) - first_read(part);
    if (values) prefetches.add(values + offset, num_rows * kSize * kChannels);
  }
  static void prefetch_written(Prefetches& prefetches, const float* values, Part part) {
    const ptrdiff_t offset = ptrdiff_t{part.image} * kImage + first_written(part) * kSize * kChannels;
    const int num_rows = (part.num_images - 1) * kSize + end_written(part) - first_written(part);
    if (values) prefetches.add(values + offset, num_rows * kSize * kChannels);
  }

  // Call action(part, next part) with the parts of images begin ... end - 1; after the last comes one of no images.
  // The parts of an image follow each other from the top.
  template <typename Action>
  static void for_parts(int begin, int end, bool descending, Action action) {
    const int num_groups = (end - begin - 1) / kImages + 1;
    const auto part_at = [=](int i) -> Part {
      const int group = i / kParts, tile_row = i % kParts * kPartRows;
      if (group == num_groups) return {begin, 0, 0, 0};
      const int first = begin + (descending ? num_groups - 1 - group : group) * kImages;
      return {first, std::min(kImages, end - first), tile_row, std::min(kPartRows, kTiles - tile_row)};
    };
    for (int i = 0; i < num_groups * kParts; i++) action(part_at(i), part_at(i + 1));
  }

  // Transform a part of a padded image, input of a convolution or of its data gradient, to
  // target[position][tile][channel].
  static void transform_image(const float* padded, Part part, float* target) {
    alignas(64) float columns[6][kRow];
    padded += part.tile_row * 4 * kRow;
    for (int tile_row = 0; tile_row < part.num_tile_rows; tile_row++, padded += 4 * kRow) {
      for (int x = 0; x < kRow; x += kLanes) {
        Vec from[6], to[6];
        UNROLL for (int i = 0; i < 6; i++) from[i] = load_floats(padded + i * kRow + x);
        transform_input(from, to);
        UNROLL for (int i = 0; i < 6; i++) store_floats(columns[i] + x, to[i]);
      }
      for (int i = 0; i < 6; i++) {
        for (int tile = 0; tile < kTiles; tile++) {
          for (int c = 0; c < kChannels; c += kLanes) {
            Vec from[6], to[6];
            UNROLL for (int j = 0; j < 6; j++) from[j] = load_floats(columns[i] + (4 * tile + j) * kChannels + c);
            transform_input(from, to);
            float* out = target + 6 * i * kPosition + (tile_row * kTiles + tile) * kChannels + c;
            UNROLL for (int j = 0; j < 6; j++) store_floats(out + j * kPosition, to[j]);
          }
        }
      }
    }
  }

  // Transform a part of a padded image of the output's gradient, for the weight gradient, likewise.
  static void transform_grad(const float* padded, Part part, float* target) {
    padded += (part.tile_row * 4 + 1) * kRow + kChannels;
    for (int tile = 0; tile < part.num_tile_rows * kTiles; tile++) {
      const float* from = padded + tile / kTiles * 4 * kRow + tile % kTiles * 4 * kChannels;
      for (int c = 0; c < kChannels; c += kLanes) {
        float* out = target + tile * kChannels + c;
        Vec half[6][4];
        UNROLL for (int j = 0; j < 4; j++) {
          Vec y[4], m[6];
          UNROLL for (int i = 0; i < 4; i++) y[i] = load_floats(from + i * kRow + j * kChannels + c);
          transform_output_grad(y, m);
          UNROLL for (int i = 0; i < 6; i++) half[i][j] = m[i];
        }
        UNROLL for (int i = 0; i < 6; i++) {
          Vec m[6];
          transform_output_grad(half[i], m);
          UNROLL for (int j = 0; j < 6; j++) store_floats(out + (6 * i + j) * kPosition, m[j]);
        }
      }
    }
  }

  // Clear what lies between the tiles of a part and the rows that are multiplied.
  static void clear_rest(float* transformed, Part part) {
    const int num_tiles = tiles_of(part), num_rest = rows_of(part) - num_tiles;
    if (num_rest == 0) return;
    for (int p = 0; p < kPositions; p++) {
      memset(transformed + p * kPosition + num_tiles * kChannels, 0, num_rest * kChannels * sizeof(float));
    }
  }

  // product[position][tile][kBlock] = transformed[position][tile][kChannels] * weight[position][kChannels][kBlock]
  static void multiply_positions(const float* transformed, const float* weight, float* product, int num_rows,
                                 Prefetches& prefetches) {
    for (int p = 0; p < kPositions; p++, weight += kChannels * kBlock) {
      for (int row = 0; row < num_rows; row += kRows) {
        prefetches.step();
        const float* x = transformed + p * kPosition + row * kChannels;
        Vec sums[kRows][kVectors];
        UNROLL for (int r = 0; r < kRows; r++) {
          UNROLL for (int v = 0; v < kVectors; v++) sums[r][v] = zero();
        }
#pragma GCC unroll 4
        for (int k = 0; k < kChannels; k++) {
          Vec weights[kVectors];
          UNROLL for (int v = 0; v < kVectors; v++) {
            weights[v] = in_register(load_floats(weight + k * kBlock + v * kLanes));
          }
          UNROLL for (int r = 0; r < kRows; r++) {
            const Vec value = splat(x[r * kChannels + k]);
            UNROLL for (int v = 0; v < kVectors; v++) sums[r][v] = multiply_add(value, weights[v], sums[r][v]);
          }
        }
        float* out = product + p * kProductPosition + row * kBlock;
        UNROLL for (int r = 0; r < kRows; r++) {
          UNROLL for (int v = 0; v < kVectors; v++) store_floats(out + r * kBlock + v * kLanes, sums[r][v]);
        }
      }
    }
  }

  // weight_grad[position][in][out] = or += sum over tiles of input[position][tile][in] * grad[position][tile][out]
  static void multiply_for_weight_grad(const float* input, const float* grad, float* weight_grad, int num_rows,
                                       bool first, Prefetches& prefetches) {
    for (int p = 0; p < kPositions; p++) {
      for (int out = 0; out < kChannels; out += kBlock) {
        for (int in = 0; in < kChannels; in += kRows) {
          prefetches.step();
          const float *x = input + p * kPosition + in, *g = grad + p * kPosition + out;
          float* target = weight_grad + p * kGradPosition + in * kChannels + out;
          Vec sums[kRows][kVectors];
          UNROLL for (int r = 0; r < kRows; r++) {
            UNROLL for (int v = 0; v < kVectors; v++) {
              sums[r][v] = first ? zero() : load_floats(target + r * kChannels + v * kLanes);
            }
          }
          for (int row = 0; row < num_rows; row++, x += kChannels, g += kChannels) {
            Vec grads[kVectors];
            UNROLL for (int v = 0; v < kVectors; v++) grads[v] = in_register(load_floats(g + v * kLanes));
            UNROLL for (int r = 0; r < kRows; r++) {
              const Vec value = splat(x[r]);
              UNROLL for (int v = 0; v < kVectors; v++) sums[r][v] = multiply_add(value, grads[v], sums[r][v]);
            }
          }
          UNROLL for (int r = 0; r < kRows; r++) {
            UNROLL for (int v = 0; v < kVectors; v++) {
              store_floats(target + r * kChannels + v * kLanes, sums[r][v]);
            }
          }
        }
      }
    }
  }

  // Transform the products of a tile back: take(pixel row, pixel column, values) gets each of the image's pixels.
  template <typename Take>
  static void transform_tile(const float* product, int tile_row, int tile_column, Take take) {
    Vec half[4][6];
    UNROLL for (int j = 0; j < 6; j++) {
      Vec m[6], y[4];
      UNROLL for (int i = 0; i < 6; i++) m[i] = load_floats(product + (6 * i + j) * kProductPosition);
      transform_output(m, y);
      UNROLL for (int i = 0; i < 4; i++) half[i][j] = y[i];
    }
    UNROLL for (int i = 0; i < 4; i++) {
      Vec y[4];
      transform_output(half[i], y);
      UNROLL for (int j = 0; j < 4; j++) {
        const int h = 4 * tile_row + i, w = 4 * tile_column + j;
        if (kSize % 4 == 0 || (h < kSize && w < kSize)) take(h, w, y[j]);
      }
    }
  }

  // Multiply the part that lies transformed in scratch.first with the weight and transform the products back:
  // take(pixel, channel, values, sum, other sum) gets each register of pixels, by their offset from the part's first
  // image, and adds to the sums, which are per channel. Their totals go to sums (n, 2, kChannels), which parts of one
  // image share.
  template <typename Take>
  static void multiply_back(WinogradScratch& scratch, const float* weight, Part part, float* sums,
                            Prefetches& prefetches, Take take) {
    sums += ptrdiff_t{part.image} * 2 * kChannels;
    for (int block = 0; block < kChannels; block += kBlock, weight += kPositions * kChannels * kBlock) {
      multiply_positions(scratch.first, weight, scratch.product, rows_of(part), prefetches);
      const float* product = scratch.product;
      for (int i = 0; i < part.num_images; i++) {
        float* image_sums = sums + i * 2 * kChannels + block;
        Vec totals[2][kVectors];
        UNROLL for (int v = 0; v < kVectors; v++) {
          totals[0][v] = part.tile_row == 0 ? zero() : load_floats(image_sums + v * kLanes);
          totals[1][v] = part.tile_row == 0 ? zero() : load_floats(image_sums + kChannels + v * kLanes);
        }
        for (int tile_row = part.tile_row; tile_row < part.tile_row + part.num_tile_rows; tile_row++) {
          for (int tile_column = 0; tile_column < kTiles; tile_column++, product += kBlock) {
            UNROLL for (int v = 0; v < kVectors; v++) {
              const int channel = block + v * kLanes;
              Vec sum = zero(), other_sum = zero();
              transform_tile(product + v * kLanes, tile_row, tile_column, [&](int h, int w, Vec y) {
                take(i * kImage + (h * kSize + w) * kChannels + channel, channel, y, sum, other_sum);
              });
              totals[0][v] += sum;
              totals[1][v] += other_sum;
            }
          }
        }
        UNROLL for (int v = 0; v < kVectors; v++) {
          store_floats(image_sums + v * kLanes, totals[0][v]);
          store_floats(image_sums + kChannels + v * kLanes, totals[1][v]);
        }
      }
    }
  }

};

}  // namespace
