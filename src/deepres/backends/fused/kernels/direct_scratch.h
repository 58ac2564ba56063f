// A thread's scratch memory for the direct convolution.

#pragma once

#include <memory>

#include "layer.h"

namespace {

constexpr int kMaxPairs = 34 * 17 * 16 * 2;          // pairs of neighbouring pixels, elements

struct alignas(64) Scratch {
  Element input[kMaxPadded + 64];                         // one image's input, zero-padded
  GUARD(after_input)
  Element grad[kMaxPadded + 64];                          // its output's gradient, zero-padded
  GUARD(after_grad)
  Element input_pairs[3][kMaxPairs];                      // its input's pairs of pixels, for the taps of a row
  GUARD(after_input_pairs)
  Element grad_pairs[(32 + 2) * 32 * 16];                 // its output gradient's; a row of zeros above and below
};

Scratch& thread_scratch() {
  static thread_local const std::unique_ptr<Scratch> scratch = std::make_unique<Scratch>();
  return *scratch;
}

}  // namespace
