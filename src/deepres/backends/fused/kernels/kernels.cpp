// Training kernels for the CIFAR-10 nets of section 4.2: 3x3 convolutions fused with what stands between them.
//
// Compiled as it is, the kernels store activations in bfloat16 (AVX-512 BF16); with -DDEEPRES_FLOAT32 in float32
// (AVX-512 F, BW, VL, DQ, or else AVX2 and FMA; on ARM NEON). Sums, statistics, parameters and their gradients are
// float32 or float64 in both. -DDEEPRES_TILES=1 (or 2): bfloat16's matrix products are computed on tiles, see
// tiled_conv.h. -DDEEPRES_LANES=4: vectors have 128 bits on x86-64 too, see simd.h. -DDEEPRES_SIZE=N: the images have N
// rows and columns, a multiple of 8 up to 32.
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
// registers (with AVX-512 16 pixels x 16 channels, or 8 x 32; with AVX2 4 x 16; with NEON 8 x 8) holds the sums
// throughout.
//
// Results depend neither on the number of threads nor on their timing: sums for the statistics are kept per image,
// sums for the weight gradient per chunk of images, and both are added up in order. Images are the unit of parallel
// work in the forward pass, chunks in the backward pass, see tasks.h; a step of Muon is one thread's for each bank.
//
// Where what is:
//
//     layer.h                  the interface with net.py, sizes          simd.h       registers
//     activate.h               normalisation, shortcut, ReLU, prefetch   shape.h      sizes that a layer's shape gives
//     direct*.h                the direct convolution: every shape in bfloat16, and in float32 what changes the size
//     winograd*.h              Winograd's convolution, for float32 and stride 1
//     tiles.h, tile*_*.h       the instructions of AMX, and the convolutions on them, for bfloat16
//     normalize.h              statistics of batch normalisation         head.h       pooling, linear, cross-entropy
//     tasks.h                  which pieces of a pass a thread takes     augment.h    training images
//     muon.h                   steps of Muon

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "augment.h"
#include "head.h"
#include "layer.h"
#include "muon.h"
#include "normalize.h"
#include "simd.h"
#if defined(DEEPRES_FLOAT32)
#include "direct.h"
#include "winograd.h"
#elif defined(DEEPRES_TILES)
#include "tiled_conv.h"
#else
#include "direct.h"
#endif

namespace {

// BestConv is the convolution of any layer, Stride1 that of those which change neither size nor channels.
#ifdef DEEPRES_TILES
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
    case 3: return action(BestConv<kImageChannels, 16, kImageSize, 1>{});
    case 16: return same ? action(Stride1<16, kImageSize>{}) : action(BestConv<16, 32, kImageSize, 2>{});
    case 32: return same ? action(Stride1<32, kImageSize / 2>{}) : action(BestConv<32, 64, kImageSize / 2, 2>{});
    default: return action(Stride1<64, kLastSize>{});
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
  return int64_t{9} * std::max(in_channels, kImageChannels) * out_channels;
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

}  // extern "C"
