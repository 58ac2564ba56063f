// What a reader does to the previous layer's output: normalisation, shortcut and ReLU; and what it asks for ahead.

#pragma once

#include <cstring>

#include "layer.h"
#include "simd.h"

namespace {

// relu(scale * raw + shift + shortcut) of kLanes channels; without shortcut where it is null.
inline Vec activate(const Element* raw, Vec scale, Vec shift, const Element* shortcut) {
  Vec x = multiply_add(load(raw), scale, shift);
  if (shortcut) x += load(shortcut);
  return relu(x);
}

// Ask for part `part` of `num_parts` of some memory, to be in the cache when the next image begins.
inline void prefetch(const Element* p, int num_elements, int part, int num_parts) {
  constexpr int kLine = 64 / sizeof(Element);
  if (!p) return;
  const int end = num_elements * (part + 1) / num_parts;
  for (int i = num_elements * part / num_parts; i < end; i += kLine) __builtin_prefetch(p + i);
}

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

}  // namespace
