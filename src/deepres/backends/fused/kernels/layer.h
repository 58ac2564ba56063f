// What a layer is: the interface with net.py, and the sizes that all kernels share.

#pragma once

#include <cstdint>

#ifdef DEEPRES_SANITIZED
#include <sanitizer/asan_interface.h>
#endif

#ifdef DEEPRES_FLOAT32
using Element = float;
#else
using Element = uint16_t;  // the bits of a bfloat16
#endif

// The interface with build.py, which has the same structures field by field.

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

constexpr int kPack = 4 / sizeof(Element);           // elements of a lane
constexpr int kNumChunks = 8;                        // parts of a batch whose weight gradients are summed apart, each by
                                                     // one thread, see tasks.h; more cost memory traffic
constexpr int kMaxChannels = 64;
constexpr int kImageChannels = 4;                    // three of the image and one of zeros
constexpr int kImageSize = DEEPRES_SIZE;             // rows and columns of an image, and of the first stage
constexpr int kLastSize = kImageSize / 4;            // of the last stage
constexpr int kMaxPadded = 34 * 34 * 16;             // elements of an image with its border, in any stage

// Lies between the buffers of scratch memory where AddressSanitizer watches: who touches it has left a buffer.
#ifdef DEEPRES_SANITIZED
struct Guard {
  Guard() { __asan_poison_memory_region(bytes, sizeof bytes); }
  alignas(64) char bytes[64];
};
#define GUARD(name) Guard name;
#else
#define GUARD(name)
#endif

}  // namespace
