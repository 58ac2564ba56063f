// What the threads of a pass share out.

#pragma once

#include <atomic>
#include <cstdint>

#include "layer.h"

namespace {

// Hands out the pieces 0 ... count - 1 of a pass. Each thread first takes its own share: neighbours, of which it has the
// same in the layers before and after. Those go through them in the other direction, so that it begins with what its
// cache still holds. Then it takes what other threads have not begun.
class Pieces {
 public:
  Pieces(int count, int num_shares, bool descending)
      : count_(count), num_shares_(num_shares < kMostShares ? num_shares : kMostShares), descending_(descending) {}

  // action(piece), by the thread that calls.
  template <typename Action>
  void take(int thread, Action action) {
    for (int i = 0; i < num_shares_; i++) {
      const int share = (thread + i) % num_shares_;
      const int begin = first_of(share), size = first_of(share + 1) - begin;
      for (int taken; (taken = num_taken_[share]++) < size;) action(begin + (descending_ ? size - 1 - taken : taken));
    }
  }

 private:
  static constexpr int kMostShares = 64;
  int first_of(int share) const { return static_cast<int>(int64_t{share} * count_ / num_shares_); }

  const int count_, num_shares_;
  const bool descending_;
  std::atomic<int> num_taken_[kMostShares] = {};
};

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
  // without_input_grad: of the first layer.
  Tasks(int num_images, int num_threads, bool without_input_grad)
      : num_images_(num_images), num_threads_(num_threads), divided_(num_threads > kNumChunks && !without_input_grad),
        without_input_grad_(without_input_grad) {}

  // Where tasks are many, the longest, those of the weight gradients, come first.
  Pieces pieces(bool descending) const {
    return divided_ ? Pieces((1 + kParts) * kNumChunks, 1, false) : Pieces(kNumChunks, num_threads_, descending);
  }

  Task operator[](int i) const {
    const bool whole = i < kNumChunks;
    const int part = whole ? 0 : (i - kNumChunks) % kParts, num_parts = whole ? 1 : kParts;
    const int chunk = whole ? i : (i - kNumChunks) / kParts;
    const int first = chunk * num_images_ / kNumChunks, size = (chunk + 1) * num_images_ / kNumChunks - first;
    return {chunk, first + part * size / num_parts, first + (part + 1) * size / num_parts, whole,
            !without_input_grad_ && (!divided_ || !whole)};
  }

 private:
  static constexpr int kParts = 4;  // of a chunk
  const int num_images_, num_threads_;
  const bool divided_, without_input_grad_;
};

}  // namespace
