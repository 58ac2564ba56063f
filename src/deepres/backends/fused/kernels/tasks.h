// What the threads of a backward pass share out.

#pragma once

#include "layer.h"

namespace {

// Images begin ... end - 1, all or some of a chunk's.
struct Task {
  int chunk, begin, end;
  bool weight_grad, input_grad;  // what of theirs is to be computed
};

// Up to kNumChunks threads take a chunk each. More of them take the chunks' weight gradients, and then the input's
// gradients of a part of a chunk, which are the images' own: the sums, and so their bits, are the same. What both need,
// the output's gradient and the input, is computed for each.
class Tasks {
 public:
  // without_input_grad: of the first layer. from_last: the last chunk comes first.
  Tasks(int num_images, int num_threads, bool without_input_grad, bool from_last = false)
      : num_images_(num_images), divided_(num_threads > kNumChunks && !without_input_grad),
        without_input_grad_(without_input_grad), from_last_(from_last) {}

  int count() const { return divided_ ? (1 + kParts) * kNumChunks : kNumChunks; }

  Task operator[](int i) const {
    const bool whole = i < kNumChunks;
    const int part = whole ? 0 : (i - kNumChunks) % kParts, num_parts = whole ? 1 : kParts;
    const int nth = whole ? i : (i - kNumChunks) / kParts;
    const int chunk = from_last_ ? kNumChunks - 1 - nth : nth;
    const int first = chunk * num_images_ / kNumChunks, size = (chunk + 1) * num_images_ / kNumChunks - first;
    return {chunk, first + part * size / num_parts, first + (part + 1) * size / num_parts, whole,
            !without_input_grad_ && (!divided_ || !whole)};
  }

 private:
  static constexpr int kParts = 4;  // of a chunk
  const int num_images_;
  const bool divided_, without_input_grad_, from_last_;
};

}  // namespace
