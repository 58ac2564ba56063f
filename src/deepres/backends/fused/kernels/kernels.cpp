// Training kernels for the CIFAR-10 nets of section 4.2: 3x3 convolutions fused with what stands between them.
//
// Compiled as it is, the kernels store activations in bfloat16 (AVX-512 BF16); with -DDEEPRES_FLOAT32 in float32
// (AVX-512 F, BW, VL, DQ, or else AVX2 and FMA). Sums, statistics, parameters and their gradients are float32 or
// float64 in both. -DDEEPRES_TILES=1 (or 2): bfloat16's matrix products are computed on tiles, see tiled_conv.h.
// -DDEEPRES_SIZE=N: the images have N rows and columns, a multiple of 8 up to 32.
//
// A layer is a convolution and the batch normalisation after it. Only the convolution's own output is written to
// memory. Normalisation, shortcut and ReLU are applied by whoever reads it:
//
//     input of the next layer = relu(scale * output + shift + shortcut)         scale, shift: one per channel
//
// The reader, a convolution, does so while it copies one image into a zero-padded buffer that stays in its core's
// cache; the taps then need no border cases. The option A shortcut across a change of size costs nothing: the
// reader takes every other pixel of the smaller-channelled tensor and finds zeros in the channels after them.
//
// The backward pass is fused likewise. Let g be the loss's gradient with respect to the normalised output (plus
// shortcut, before ReLU). Batch normalisation's own backward pass is affine in each channel,
//
//     gradient of output = a * g + b * output + c
//
// with a, b, c from the sums of g and g * output over the batch. So the next kernel applies it as it reads g, and
// collects those two sums for the layer before as it writes that layer's g. The input's pattern of zeros is ReLU's
// derivative, so masks are not stored.
//
// Layouts. Activations are channels last, (image, row, column, channel), and images have a fourth channel of zeros.
// A 32-bit lane of a register holds kPack elements along the summed dimension: one float, or a pair of bfloat16 that
// one instruction multiplies and adds. The summed dimension is the input channel in the forward pass, the output
// channel in the data gradient, the pixel in the weight gradient. Packed weights are
//
//     [block of output channels][3][3][input channel / kPack][output channel in block][kPack]
//
// with blocks of one or two registers; for the data gradient, that of the transposed, rotated weight. A tile of
// registers (with AVX-512 16 pixels x 16 channels, or 8 x 32; with AVX2 4 x 16) holds the sums throughout.
//
// Results depend neither on the number of threads nor on their timing: sums for the statistics are kept per image,
// sums for the weight gradient per chunk of images, and both are added up in order. Images are the unit of parallel
// work in the forward pass, chunks in the backward pass.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>

#ifdef DEEPRES_TILES
#include "tiles.h"
#endif

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
#define ALWAYS_INLINE __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define DEEPRES_AVX512
#endif

#ifdef DEEPRES_FLOAT32
using Element = float;
#else
using Element = uint16_t;  // the bits of a bfloat16
#endif

// The interface with fused.py, which has the same structures field by field.

struct Layer;

// The input of a layer or of the pooling: relu(batch_norm(previous output) + shortcut), or the images.
struct Input {
  const Layer* previous;      // null: the input is the images, which lie in `values`
  const Element* shortcut;    // null, or values (n, size, size, channels), or of half the channels, twice the size
  int64_t shortcut_channels;  // channels of `shortcut`; 0: there is none
  Element* values;            // (n, size, size, channels); null: not kept, the backward pass computes it again
};

struct Layer {
  int64_t in_channels, out_channels;
  int64_t descending;         // whether the forward pass goes from the last image to the first, and the backward pass
                              // from the first to the last: layers take turns and find in the cache what was just used
  Input input;
  Element* output;            // (n, size, size, out_channels), of the convolution
  Element* forward_weight;    // packed
  Element* backward_weight;   // packed; null for the first layer, whose input needs no gradient
  float* sums;                // (n, 2, out_channels): output and its square, then g and g * output, over an image
  const float* weight;        // (out_channels, in_channels, 3, 3)
  const float* norm_weight;   // this and all below: (out_channels,)
  const float* norm_bias;
  float* weight_grad;
  float* norm_weight_grad;
  float* norm_bias_grad;
  float* running_mean;
  float* running_var;
  int64_t* num_batches_tracked;  // a scalar
  float* scale;
  float* shift;
  float* mean;
  float* inverse_std;
  float* a;
  float* b;
  float* c;
  double eps, momentum;
};

namespace {

#ifdef DEEPRES_AVX512
constexpr int kLanes = 16;                           // 32-bit lanes of a register
constexpr int kTile = 16;                            // registers of sums in a tile; there are 32 in all
constexpr int kGradTaps = 3;                         // taps whose weight gradients are summed at once
constexpr int kCachedRows = 16;                      // rows whose pairs stay in the first-level cache
#else
constexpr int kLanes = 8;
constexpr int kTile = 8;                             // of 16 registers
constexpr int kGradTaps = 1;
constexpr int kCachedRows = 4;
#endif
constexpr int kPack = 4 / sizeof(Element);           // elements of a lane
constexpr int kNumChunks = 8;                        // parts of a batch whose weight gradients are summed apart: the
                                                     // most threads of the backward pass; more cost memory traffic
constexpr int kMaxChannels = 64;
constexpr int kImageSize = DEEPRES_SIZE;             // rows and columns of an image, and of the first stage
constexpr int kLastSize = kImageSize / 4;            // of the last stage
static_assert(kImageSize % 8 == 0 && kImageSize <= 32);
constexpr int kMaxPadded = 34 * 34 * 16;             // elements of an image with its border, in any stage
constexpr int kMaxPairs = 34 * 17 * 16 * 2;          // pairs of neighbouring pixels, elements

// ---------------------------------------------------------------------------------------------------------------
// Elements and registers

#ifdef DEEPRES_AVX512
using Vec = __m512;      // kLanes floats
using Packed = __m512i;  // kLanes * kPack elements
inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec splat(float value) { return _mm512_set1_ps(value); }
inline Vec load_floats(const float* p) { return _mm512_loadu_ps(p); }
inline void store_floats(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Packed load_packed(const Element* p) { return _mm512_loadu_si512(p); }
inline Packed splat_lane(int32_t lane) { return _mm512_set1_epi32(lane); }
inline Vec add(Vec x, Vec y) { return _mm512_add_ps(x, y); }
inline Vec subtract(Vec x, Vec y) { return _mm512_sub_ps(x, y); }
inline Vec multiply(Vec x, Vec y) { return _mm512_mul_ps(x, y); }
inline Vec multiply_add(Vec x, Vec y, Vec sum) { return _mm512_fmadd_ps(x, y, sum); }
inline Vec relu(Vec x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }  // NaN where x is: the second operand
inline float sum_lanes(Vec v) { return _mm512_reduce_add_ps(v); }

// v, which the compiler is not to load again wherever it is used.
inline Vec in_register(Vec v) {
  asm("" : "+v"(v));
  return v;
}
inline Packed in_register(Packed v) { return v; }

// y where x > 0 or x is NaN, else 0: ReLU's derivative, as torch has it.
inline Vec mask_by(Vec x, Vec y) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NLE_UQ), y);
}
#else
using Vec = __m256;
using Packed = __m256i;
inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec splat(float value) { return _mm256_set1_ps(value); }
inline Vec load_floats(const float* p) { return _mm256_loadu_ps(p); }
inline void store_floats(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Packed load_packed(const Element* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Packed splat_lane(int32_t lane) { return _mm256_set1_epi32(lane); }
inline Vec add(Vec x, Vec y) { return _mm256_add_ps(x, y); }
inline Vec subtract(Vec x, Vec y) { return _mm256_sub_ps(x, y); }
inline Vec multiply(Vec x, Vec y) { return _mm256_mul_ps(x, y); }
inline Vec multiply_add(Vec x, Vec y, Vec sum) { return _mm256_fmadd_ps(x, y, sum); }
inline Vec relu(Vec x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }
inline float sum_lanes(Vec v) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
inline Vec in_register(Vec v) {
  asm("" : "+x"(v));
  return v;
}
inline Packed in_register(Packed v) {
  asm("" : "+x"(v));
  return v;
}
inline Vec mask_by(Vec x, Vec y) {
  return _mm256_and_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NLE_UQ), y);
}
#endif

#ifdef DEEPRES_FLOAT32
inline Element to_element(float value) { return value; }
inline Vec load(const Element* p) { return load_floats(p); }
inline void store(Element* p, Vec v) { store_floats(p, v); }

// sums + x * y in each lane.
#ifdef DEEPRES_AVX512
inline Vec multiply_packed(Vec sums, Packed x, Packed y) {
  return multiply_add(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y), sums);
}
#else
inline Vec multiply_packed(Vec sums, Packed x, Packed y) {
  return multiply_add(_mm256_castsi256_ps(x), _mm256_castsi256_ps(y), sums);
}
#endif
#else
inline Element to_element(float value) {
  const __m128bh rounded = _mm_cvtneps_pbh(_mm_set_ss(value));
  Element element;
  memcpy(&element, &rounded, sizeof element);
  return element;
}
inline __m256i round_to_elements(Vec v) { return (__m256i)_mm512_cvtneps_pbh(v); }
inline Vec load(const Element* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline void store(Element* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_to_elements(v));
}

// sums + x[0] * y[0] + x[1] * y[1] in each lane.
inline Vec multiply_packed(Vec sums, Packed x, Packed y) {
  return _mm512_dpbf16_ps(sums, (__m512bh)x, (__m512bh)y);
}

// x[0] y[0] x[1] y[1] ...
inline Packed interleave(__m256i x, __m256i y) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(x), y, 1);
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both);
}
#endif

// The lane at p in every lane.
inline Packed broadcast_lane(const Element* p) {
  int32_t lane;
  memcpy(&lane, p, sizeof lane);
  return splat_lane(lane);
}

// relu(scale * raw + shift + shortcut) of kLanes channels; without shortcut where it is null.
inline Vec activate(const Element* raw, Vec scale, Vec shift, const Element* shortcut) {
  Vec x = multiply_add(load(raw), scale, shift);
  if (shortcut) x = add(x, load(shortcut));
  return relu(x);
}

// Ask for part `part` of `num_parts` of some memory, to be in the cache when the next image begins.
inline void prefetch(const Element* p, int num_elements, int part, int num_parts) {
  constexpr int kLine = 64 / sizeof(Element);
  if (!p) return;
  const int end = num_elements * (part + 1) / num_parts;
  for (int i = num_elements * part / num_parts; i < end; i += kLine) {
    _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T0);
  }
}

// ---------------------------------------------------------------------------------------------------------------
// A thread's scratch memory

struct alignas(64) Scratch {
  Element input[kMaxPadded + 64];                         // one image's input, zero-padded
  Element grad[kMaxPadded + 64];                          // its output's gradient, zero-padded
  Element input_pairs[3][kMaxPairs];                      // its input's pairs of pixels, for the taps of a row
  Element grad_pairs[(32 + 2) * 32 * 16];                 // its output gradient's; a row of zeros above and below
};

Scratch& thread_scratch() {
  static thread_local const std::unique_ptr<Scratch> scratch = std::make_unique<Scratch>();
  return *scratch;
}

#ifdef DEEPRES_FLOAT32
constexpr int kPartTiles = 18;  // the most tiles of a part
constexpr int kMaxTransformed = 36 * ((kPartTiles + 6) * 64 + 16);

struct alignas(64) WinogradScratch {
  float input[kMaxPadded], grad[kMaxPadded];
  float first[kMaxTransformed], second[kMaxTransformed], product[kMaxTransformed];
  float weight_grad[36 * (64 * 64 + 16)];
};

WinogradScratch& thread_winograd_scratch() {
  static thread_local const std::unique_ptr<WinogradScratch> scratch = std::make_unique<WinogradScratch>();
  return *scratch;
}
#endif

// ---------------------------------------------------------------------------------------------------------------
// The convolutions

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

// Where the shortcut of one image's input is read; null where there is none.
struct ImageShortcut {
  const Element* values;
  int channels;
  int row_step;  // elements; from pixel to pixel it is the input's number of channels in either case
};

// Compute rows of an image's input from the previous layer's output, to rows that lie row_step apart. `kept`, unless
// null, gets the same without gaps.
template <int kChannels, int kSize>
void activate_rows(Element* target, int num_rows, int row_step, const Layer& previous, const Element* raw,
                   ImageShortcut shortcut, Element* kept) {
  for (int h = 0; h < num_rows; h++) {
    Element* row = target + h * row_step;
    for (int c = 0; c < kChannels; c += kLanes) {
      const Vec scale = load_floats(previous.scale + c);
      const Vec shift = load_floats(previous.shift + c);
      const Element* x = raw + h * kSize * kChannels + c;
      if (c < shortcut.channels) {
        const Element* y = shortcut.values + h * shortcut.row_step + c;
        for (int w = 0; w < kSize; w++) {
          store(row + w * kChannels + c, activate(x + w * kChannels, scale, shift, y + w * kChannels));
        }
      } else {
        for (int w = 0; w < kSize; w++) {
          store(row + w * kChannels + c, activate(x + w * kChannels, scale, shift, nullptr));
        }
      }
    }
    if (kept) memcpy(kept + h * kSize * kChannels, row, kSize * kChannels * sizeof(Element));
  }
}

template <int kIn, int kOut, int kInSize, int kStride>
struct Conv {
  static constexpr int kOutSize = kInSize / kStride;
  static constexpr int kInImage = kInSize * kInSize * kIn;         // elements of an image
  static constexpr int kOutImage = kOutSize * kOutSize * kOut;
  static constexpr int kInRow = (kInSize + 2) * kIn;               // elements of a row of the padded input
  // The padded gradient: a border of one pixel, or for stride 2 only at the right and below.
  static constexpr int kGradSize = kStride == 1 ? kInSize + 2 : kOutSize + 1;
  static constexpr int kGradRow = kGradSize * kOut;
  static constexpr int kGradPairRow = kOutSize * kOut;             // of the gradient's pairs
  static constexpr int kWeights = 9 * kIn * kOut;

  static constexpr int kForwardVectors = kOut <= kLanes ? 1 : 2;   // of a tile
  static constexpr int kBackwardVectors = kIn <= kLanes ? 1 : 2;

  static ImageShortcut image_shortcut(const Input& input, int image) {
    if (!input.shortcut) return {nullptr, 0, 0};
    const int scale = input.shortcut_channels == kIn ? 1 : 2;      // (2 size)^2 * channels / 2 elements in the latter
    const ptrdiff_t offset = ptrdiff_t{image} * kInImage * scale;
    return {input.shortcut + offset, static_cast<int>(input.shortcut_channels), kInSize * kIn * scale};
  }

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
#pragma omp parallel num_threads(num_threads)
    {
      Element* padded = thread_scratch().input;
      clear_border(padded);
#pragma omp for schedule(dynamic, 4)
      for (int n = 0; n < num_images; n++) {
        const ptrdiff_t in_offset = ptrdiff_t{n} * kInImage;
        const Element* source = (input.previous ? input.previous->output : input.values) + in_offset;
        const ImageShortcut shortcut = image_shortcut(input, n);
        if constexpr (kIn < kLanes) {
          copy_input(padded, source);
        } else {
          activate_input(padded, *input.previous, source, shortcut, input.values ? input.values + in_offset : nullptr);
        }
        const bool last = n + 1 == num_images;
        for (int block = 0; block < kOut; block += kVectors * kLanes) {
          Vec sum[kVectors], square_sum[kVectors];
          UNROLL for (int v = 0; v < kVectors; v++) sum[v] = square_sum[v] = zero();
          for (int h = 0; h < kOutSize; h++) {
            if (block == 0 && !last) {
              prefetch(source + kInImage, kInImage, h, kOutSize);
              if (shortcut.values) {
                const int image_step = shortcut.row_step * kInSize;
                prefetch(shortcut.values + image_step, image_step, h, kOutSize);
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
                  sum[v] = add(sum[v], tile[v][p]);
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
      }
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

  // Add an image's part of the weight gradient to weight_grad, [3][3][kIn][kOut], from what lies in scratch.
  static void add_weight_grad(Scratch& scratch, float* weight_grad) {
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
      add_weight_grad_narrow<kTapRow, kTapStep>(taps, scratch.grad_pairs, weight_grad);
    } else {
      add_weight_grad_wide<kTapRow, kTapStep>(taps, scratch.grad_pairs + kGradPairRow, weight_grad);
    }
  }

  // 16 output channels: each register of input serves the three rows of taps, for two input channels at once.
  template <int kTapRow, int kTapStep>
  static void add_weight_grad_narrow(const Element* const (&taps)[3], const Element* grad, float* weight_grad) {
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
  static void add_weight_grad_wide(const Element* const (&taps)[3], const Element* grad, float* weight_grad) {
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

  // Write the input's gradient of image n, masked by ReLU, to input_grad, and its sums to the previous layer's.
  // shortcut_grad, (n, out size, out size, kOut): what comes through the block's shortcut; null: none does.
  static void write_input_grad(const Scratch& scratch, const Layer& layer, int n, const Element* shortcut_grad,
                               Element* input_grad, const Element* g, bool last) {
    constexpr int kVectors = kBackwardVectors;
    const Layer& previous = *layer.input.previous;
    const Element* raw = previous.output + ptrdiff_t{n} * kInImage;
    const Element* next_input = (layer.input.values ? layer.input.values + ptrdiff_t{n} * kInImage : raw) + kInImage;
    const Element* next_g = g + ptrdiff_t{n + 1} * kOutImage;
    const Element* next_output = layer.output + ptrdiff_t{n + 1} * kOutImage;
    Element* target = input_grad + ptrdiff_t{n} * kInImage;
    if (shortcut_grad) shortcut_grad += ptrdiff_t{n} * kOutImage;

    for (int block = 0; block < kIn; block += kVectors * kLanes) {
      const Element* weight = layer.backward_weight + block * 9 * kOut;
      Vec sum[kVectors], product_sum[kVectors];
      UNROLL for (int v = 0; v < kVectors; v++) sum[v] = product_sum[v] = zero();
      for (int h = 0; h < kInSize; h++) {
        if (block == 0 && !last) {
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
                if (shortcut) y = add(y, load(shortcut + p * kOut + v * kLanes));
                y = mask_by(load(x + step), y);
                store(target + offset + step, y);
                sum[v] = add(sum[v], y);
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
#pragma omp parallel num_threads(num_threads)
    {
      Scratch& scratch = thread_scratch();
      clear_border(scratch.input);
      memset(scratch.grad, 0, kGradSize * kGradRow * sizeof(Element));
      memset(scratch.grad_pairs, 0, kGradPairRow * sizeof(Element));
      memset(scratch.grad_pairs + (kOutSize + 1) * kGradPairRow, 0, kGradPairRow * sizeof(Element));
#pragma omp for schedule(dynamic, 1)
      for (int chunk = 0; chunk < kNumChunks; chunk++) {
        float* chunk_grad = chunk_grads + chunk * kWeights;
        memset(chunk_grad, 0, kWeights * sizeof(float));
        for (int n = chunk * num_images / kNumChunks; n < (chunk + 1) * num_images / kNumChunks; n++) {
          const ptrdiff_t in_offset = ptrdiff_t{n} * kInImage, out_offset = ptrdiff_t{n} * kOutImage;
          if (input.values) {
            copy_input(scratch.input, input.values + in_offset);
          } else if constexpr (kIn >= kLanes) {
            activate_input(scratch.input, *input.previous, input.previous->output + in_offset,
                           image_shortcut(input, n), nullptr);
          }
          load_output_grad(scratch, layer, g + out_offset, layer.output + out_offset);
          add_weight_grad(scratch, chunk_grad);
          if constexpr (kIn >= kLanes) {
            write_input_grad(scratch, layer, n, shortcut_grad, input_grad, g, n + 1 == num_images);
          }
        }
      }
#pragma omp for schedule(static)
      for (int in = 0; in < static_cast<int>(layer.in_channels); in++) add_chunks(layer, chunk_grads, in);
    }
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

#ifdef DEEPRES_FLOAT32
// ---------------------------------------------------------------------------------------------------------------
// Winograd's convolutions

// F(4x4, 3x3): 4x4 outputs from 6x6 inputs with 36 multiplications instead of 144. In one dimension, for inputs d and
// a filter g, the outputs are A^T ((G g) * (B^T d)): polynomials are multiplied through their values at the points
// 0, a, -a, b, -b and infinity. In two dimensions the same is done to columns and then to rows, and the product, over
// all tiles and channels, is one matrix product for each of 36 positions. The transposed matrices give the weight's
// gradient, G^T ((B^T d) * (A y)) for the gradient y of the outputs. The points 5/8 and 3/2 halve the rounding errors of
// the usual 1 and 2; all constants below but the divisors are exact.
constexpr int kPositions = 36;
constexpr float kA = 0.625f, kA2 = kA * kA, kA3 = kA2 * kA;
constexpr float kB = 1.5f, kB2 = kB * kB, kB3 = kB2 * kB;
constexpr float kDivisor0 = kA2 * kB2, kDivisorA = 2 * kA2 * (kA2 - kB2), kDivisorB = 2 * kB2 * (kB2 - kA2);

// B^T d
inline void transform_input(const Vec (&d)[6], Vec (&v)[6]) {
  const Vec even_a = multiply_add(d[2], splat(-kB2), d[4]), odd_a = multiply_add(d[1], splat(-kB2), d[3]);
  const Vec even_b = multiply_add(d[2], splat(-kA2), d[4]), odd_b = multiply_add(d[1], splat(-kA2), d[3]);
  v[0] = multiply_add(d[0], splat(kA2 * kB2), multiply_add(d[2], splat(-kA2 - kB2), d[4]));
  v[1] = multiply_add(odd_a, splat(kA), even_a);
  v[2] = multiply_add(odd_a, splat(-kA), even_a);
  v[3] = multiply_add(odd_b, splat(kB), even_b);
  v[4] = multiply_add(odd_b, splat(-kB), even_b);
  v[5] = multiply_add(d[1], splat(kA2 * kB2), multiply_add(d[3], splat(-kA2 - kB2), d[5]));
}

// A^T m
inline void transform_output(const Vec (&m)[6], Vec (&y)[4]) {
  const Vec even_a = add(m[1], m[2]), odd_a = subtract(m[1], m[2]);
  const Vec even_b = add(m[3], m[4]), odd_b = subtract(m[3], m[4]);
  y[0] = add(m[0], add(even_a, even_b));
  y[1] = multiply_add(odd_a, splat(kA), multiply(odd_b, splat(kB)));
  y[2] = multiply_add(even_a, splat(kA2), multiply(even_b, splat(kB2)));
  y[3] = multiply_add(odd_a, splat(kA3), multiply_add(odd_b, splat(kB3), m[5]));
}

// A y
inline void transform_output_grad(const Vec (&y)[4], Vec (&m)[6]) {
  const Vec even_a = multiply_add(y[2], splat(kA2), y[0]), odd_a = multiply_add(y[3], splat(kA2), y[1]);
  const Vec even_b = multiply_add(y[2], splat(kB2), y[0]), odd_b = multiply_add(y[3], splat(kB2), y[1]);
  m[0] = y[0];
  m[1] = multiply_add(odd_a, splat(kA), even_a);
  m[2] = multiply_add(odd_a, splat(-kA), even_a);
  m[3] = multiply_add(odd_b, splat(kB), even_b);
  m[4] = multiply_add(odd_b, splat(-kB), even_b);
  m[5] = y[3];
}

// G g
inline void transform_weight(const Vec (&g)[3], Vec (&u)[6]) {
  const Vec even_a = multiply(multiply_add(g[2], splat(kA2), g[0]), splat(1 / kDivisorA));
  const Vec even_b = multiply(multiply_add(g[2], splat(kB2), g[0]), splat(1 / kDivisorB));
  u[0] = multiply(g[0], splat(1 / kDivisor0));
  u[1] = multiply_add(g[1], splat(kA / kDivisorA), even_a);
  u[2] = multiply_add(g[1], splat(-kA / kDivisorA), even_a);
  u[3] = multiply_add(g[1], splat(kB / kDivisorB), even_b);
  u[4] = multiply_add(g[1], splat(-kB / kDivisorB), even_b);
  u[5] = g[2];
}

// G^T u
inline void transform_weight_grad(const Vec (&u)[6], Vec (&g)[3]) {
  const Vec even_a = add(u[1], u[2]), odd_a = subtract(u[1], u[2]);
  const Vec even_b = add(u[3], u[4]), odd_b = subtract(u[3], u[4]);
  g[0] = multiply_add(u[0], splat(1 / kDivisor0),
                      multiply_add(even_a, splat(1 / kDivisorA), multiply(even_b, splat(1 / kDivisorB))));
  g[1] = multiply_add(odd_a, splat(kA / kDivisorA), multiply(odd_b, splat(kB / kDivisorB)));
  g[2] = multiply_add(even_a, splat(kA2 / kDivisorA), multiply_add(even_b, splat(kB2 / kDivisorB), u[5]));
}

// Transform columns and then rows: kTo x kTo registers from kFrom x kFrom.
template <int kFrom, int kTo, typename Transform, typename Load, typename Store>
inline void transform_both(Transform transform, Load load_at, Store store_at) {
  Vec half[kTo][kFrom];
  UNROLL for (int j = 0; j < kFrom; j++) {
    Vec from[kFrom], to[kTo];
    UNROLL for (int i = 0; i < kFrom; i++) from[i] = load_at(i, j);
    transform(from, to);
    UNROLL for (int i = 0; i < kTo; i++) half[i][j] = to[i];
  }
  UNROLL for (int i = 0; i < kTo; i++) {
    Vec to[kTo];
    transform(half[i], to);
    UNROLL for (int j = 0; j < kTo; j++) store_at(i, j, to[j]);
  }
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
      _mm_prefetch(reinterpret_cast<const char*>(range.next), _MM_HINT_T0);
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
struct Winograd {
  using Direct = Conv<kChannels, kChannels, kSize, 1>;
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
              totals[0][v] = add(totals[0][v], sum);
              totals[1][v] = add(totals[1][v], other_sum);
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

  static void forward(const Layer& layer, int num_images, int num_threads) {
    // Threads take several images at a time: what comes next is then known and can be asked for.
    const int run = std::max(kImages, (num_images - 1) / (4 * num_threads) + 1), num_runs = (num_images - 1) / run + 1;
#pragma omp parallel num_threads(num_threads)
    {
      WinogradScratch& scratch = thread_winograd_scratch();
      memset(scratch.input, 0, kPaddedSize * kRow * sizeof(float));
#pragma omp for schedule(dynamic, 1)
      for (int i = 0; i < num_runs; i++) {
        const int begin = (layer.descending ? num_runs - 1 - i : i) * run;
        for_parts(begin, std::min(begin + run, num_images), layer.descending,
                  [&](Part part, Part next) { forward_part(scratch, layer, part, next); });
      }
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
      const ImageShortcut shortcut = Direct::image_shortcut(input, next.image);
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
                    sum = add(sum, y);
                    square_sum = multiply_add(y, y, square_sum);
                  });
  }

  // Compute what a part is the first to read of the input of its image i, into scratch.input. `kept`, unless null, gets
  // it too.
  static void activate_part(WinogradScratch& scratch, const Input& input, Part part, int i, float* kept) {
    const int first_row = first_read(part);
    const ptrdiff_t offset = ptrdiff_t{part.image + i} * kImage + first_row * kSize * kChannels;
    ImageShortcut shortcut = Direct::image_shortcut(input, part.image + i);
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
#pragma omp parallel num_threads(num_threads)
    {
      WinogradScratch& scratch = thread_winograd_scratch();
      memset(scratch.input, 0, kPaddedSize * kRow * sizeof(float));
      memset(scratch.grad, 0, kPaddedSize * kRow * sizeof(float));
#pragma omp for schedule(dynamic, 1)
      for (int i = 0; i < kNumChunks; i++) {
        const int chunk = layer.descending ? i : kNumChunks - 1 - i;
        const int begin = chunk * num_images / kNumChunks, end = (chunk + 1) * num_images / kNumChunks;
        float* chunk_grad = chunk_grads + chunk * Direct::kWeights;
        if (begin == end) {
          memset(chunk_grad, 0, Direct::kWeights * sizeof(float));
          continue;
        }
        bool first = true;
        for_parts(begin, end, !layer.descending, [&](Part part, Part next) {
          write_input_grad(scratch, layer, part, g, shortcut_grad, input_grad);
          add_weight_grad(scratch, layer, part, next, g, first);
          first = false;
        });
        write_chunk_grad(scratch.weight_grad, chunk_grad);
      }
#pragma omp for schedule(static)
      for (int in = 0; in < kChannels; in++) Direct::add_chunks(layer, chunk_grads, in);
    }
  }

  // Write the input's gradient, masked by ReLU, and its sums to the previous layer's. Leave the output's gradient in
  // scratch.second, transformed.
  static void write_input_grad(WinogradScratch& scratch, const Layer& layer, Part part, const float* g,
                               const float* shortcut_grad, float* input_grad) {
    const Layer& previous = *layer.input.previous;
    const ptrdiff_t offset = ptrdiff_t{part.image} * kImage;
    for (int i = 0; i < part.num_images; i++) {
      const int image = i * kImage, tiles = i * kImageTiles * kChannels;
      load_output_grad(scratch.grad, layer, part, g + offset + image, layer.output + offset + image);
      transform_image(scratch.grad, part, scratch.first + tiles);
      transform_grad(scratch.grad, part, scratch.second + tiles);
    }
    clear_rest(scratch.first, part);
    clear_rest(scratch.second, part);

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
                    if (shortcut) y = add(y, load_floats(shortcut + pixel));
                    y = mask_by(values ? load_floats(values + pixel)
                                       : multiply_add(x, load_floats(scale + channel), load_floats(shift + channel)),
                                y);
                    store_floats(target + pixel, y);
                    sum = add(sum, y);
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
#endif

#ifdef DEEPRES_TILES
#include "tiled_conv.h"
template <int kIn, int kOut, int kInSize, int kStride>
using BestConv = TiledConv<kIn, kOut, kInSize, kStride>;
#else
template <int kIn, int kOut, int kInSize, int kStride>
using BestConv = Conv<kIn, kOut, kInSize, kStride>;
#endif

#ifdef DEEPRES_FLOAT32
template <int kChannels, int kSize>
using Stride1 = Winograd<kChannels, kSize>;
#else
template <int kChannels, int kSize>
using Stride1 = BestConv<kChannels, kChannels, kSize, 1>;
#endif

// Call action with the Conv of the layer's shape, which its channels tell.
template <typename Action>
void with_conv(const Layer& layer, Action action) {
  const bool same = layer.in_channels == layer.out_channels;
  switch (layer.in_channels) {
    case 3: return action(BestConv<4, 16, kImageSize, 1>{});
    case 16: return same ? action(Stride1<16, kImageSize>{}) : action(BestConv<16, 32, kImageSize, 2>{});
    case 32: return same ? action(Stride1<32, kImageSize / 2>{}) : action(BestConv<32, 64, kImageSize / 2, 2>{});
    default: return action(Stride1<64, kLastSize>{});
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Batch normalisation, per channel

// Turn the sums over images into the batch's statistics, scale and shift; update the running statistics as torch does.
void normalize_batch(const Layer& layer, int num_images, int64_t num_pixels) {
  const int channels = static_cast<int>(layer.out_channels);
  const double count = static_cast<double>(num_images) * static_cast<double>(num_pixels);
  for (int i = 0; i < channels; i++) {
    double sum = 0, square_sum = 0;
    for (int n = 0; n < num_images; n++) {
      sum += layer.sums[n * 2 * channels + i];
      square_sum += layer.sums[n * 2 * channels + channels + i];
    }
    const double mean = sum / count;
    const double var = std::max(square_sum / count - mean * mean, 0.0);
    const double inverse_std = 1 / std::sqrt(var + layer.eps);
    layer.mean[i] = static_cast<float>(mean);
    layer.inverse_std[i] = static_cast<float>(inverse_std);
    layer.scale[i] = static_cast<float>(layer.norm_weight[i] * inverse_std);
    layer.shift[i] = static_cast<float>(layer.norm_bias[i] - mean * inverse_std * layer.norm_weight[i]);
    layer.running_mean[i] += static_cast<float>(layer.momentum * (mean - layer.running_mean[i]));
    layer.running_var[i] += static_cast<float>(layer.momentum * (var * count / (count - 1) - layer.running_var[i]));
  }
  ++*layer.num_batches_tracked;
}

void normalize_running(const Layer& layer) {
  for (int i = 0; i < static_cast<int>(layer.out_channels); i++) {
    const double scale = layer.norm_weight[i] / std::sqrt(layer.running_var[i] + layer.eps);
    layer.scale[i] = static_cast<float>(scale);
    layer.shift[i] = static_cast<float>(layer.norm_bias[i] - layer.running_mean[i] * scale);
  }
}

// Turn the sums of g and g * output into the gradients of weight and bias, and into a, b, c.
void normalize_backward(const Layer& layer, int num_images, int64_t num_pixels) {
  const int channels = static_cast<int>(layer.out_channels);
  const double count = static_cast<double>(num_images) * static_cast<double>(num_pixels);
  for (int i = 0; i < channels; i++) {
    double sum = 0, product_sum = 0;
    for (int n = 0; n < num_images; n++) {
      sum += layer.sums[n * 2 * channels + i];
      product_sum += layer.sums[n * 2 * channels + channels + i];
    }
    const double mean = layer.mean[i], inverse_std = layer.inverse_std[i];
    const double weight_grad = inverse_std * (product_sum - mean * sum);
    const double scale = layer.norm_weight[i] * inverse_std;
    layer.norm_weight_grad[i] = static_cast<float>(weight_grad);
    layer.norm_bias_grad[i] = static_cast<float>(sum);
    layer.a[i] = static_cast<float>(scale);
    layer.b[i] = static_cast<float>(-scale * inverse_std * weight_grad / count);
    layer.c[i] = static_cast<float>(scale * (inverse_std * mean * weight_grad - sum) / count);
  }
}

}  // namespace

extern "C" {

// Floats of the buffer `chunk_grads` of layer_backward.
int64_t chunk_grads_size() { return int64_t{kNumChunks} * 9 * kMaxChannels * kMaxChannels; }

// Elements of a layer's packed weights, forward or backward.
int64_t packed_size(int in_channels, int out_channels) {
#ifdef DEEPRES_FLOAT32
  if (in_channels == out_channels) return int64_t{kPositions} * in_channels * out_channels;
#endif
#ifdef DEEPRES_TILES
  if (in_channels == 16) return int64_t{12} * kTileElements;       // 6 steps, 2 blocks
  return int64_t{9} * std::max(in_channels, 16) * out_channels;
#endif
  return int64_t{9} * std::max(in_channels, 4) * out_channels;  // images have a fourth channel of zeros
}

// Convert images, float (n, 3, size, size) with strides in elements, to elements (n, size, size, 4).
void load_images(int num_images, const float* images, int64_t image_stride, int64_t channel_stride, int64_t row_stride,
                 int64_t column_stride, Element* values, int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int n = 0; n < num_images; n++) {
    Element* pixel = values + ptrdiff_t{n} * kImageSize * kImageSize * 4;
    for (int h = 0; h < kImageSize; h++) {
      const float* row = images + n * image_stride + h * row_stride;
      for (int w = 0; w < kImageSize; w++, row += column_stride, pixel += 4) {
        for (int c = 0; c < 3; c++) pixel[c] = to_element(row[c * channel_stride]);
        pixel[3] = 0;
      }
    }
  }
}

// Pack the weights of all layers.
void pack_weights(const Layer* const* layers, int num_layers, int num_threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
  for (int i = 0; i < num_layers; i++) {
    const Layer& layer = *layers[i];
    with_conv(layer, [&](auto conv) { conv.pack(layer); });
  }
}

// Convolve, and find scale and shift from the batch (training) or from the running statistics.
void layer_forward(const Layer* layer, int num_images, int training, int num_threads) {
  with_conv(*layer, [&](auto conv) {
    conv.forward(*layer, num_images, num_threads);
    if (training) {
      normalize_batch(*layer, num_images, conv.kOutSize * conv.kOutSize);
    } else {
      normalize_running(*layer);
    }
  });
}

// From g, whose sums lie in layer->sums: the gradients of the layer's parameters, the previous layer's g and sums.
void layer_backward(const Layer* layer, int num_images, const Element* g, const Element* shortcut_grad,
                    Element* input_grad, float* chunk_grads, int num_threads) {
  with_conv(*layer, [&](auto conv) {
    normalize_backward(*layer, num_images, conv.kOutSize * conv.kOutSize);
    conv.backward(*layer, num_images, g, shortcut_grad, input_grad, chunk_grads, num_threads);
  });
}

// Compute the last block's output, input->values (n, last size, last size, 64), and its mean over pixels, (n, 64).
void pool_forward(const Input* input, int num_images, float* pooled, int num_threads) {
  using Last = Conv<64, 64, kLastSize, 1>;
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
        const Element* y = shortcut.values + p / kLastSize * shortcut.row_step + p % kLastSize * kChannels + c;
        const Vec x = activate(raw + p * kChannels + c, scale, shift, c < shortcut.channels ? y : nullptr);
        store(values + p * kChannels + c, x);
        sum = add(sum, x);
      }
      store_floats(pooled + n * kChannels + c, multiply(sum, splat(1.0f / kPixels)));
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
      const Vec mean_grad = load_floats(pooled_grad + n * kChannels + c);
      const Vec pixel_grad = multiply(mean_grad, splat(1.0f / kPixels));
      Vec sum = zero(), product_sum = zero();
      for (int p = 0; p < kPixels; p++) {
        const ptrdiff_t offset = (ptrdiff_t{n} * kPixels + p) * kChannels + c;
        const Vec x = load(input->values + offset);
        const Vec y = mask_by(x, pixel_grad);
        store(g + offset, y);
        sum = add(sum, y);
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
