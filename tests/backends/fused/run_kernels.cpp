// Runs every kernel on every shape of layer and prints a digest of the bits of each result, by which two builds are
// compared. Compiled with sanitizers, it notices reads and writes beside a tensor: each has its own exact allocation.
//
//     run_kernels NUM_IMAGES NUM_IMAGES_OF_THE_LAST_STAGE
//     run_kernels                                           plants an overrun, which sanitizers must notice

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#if defined(DEEPRES_SANITIZED) && DEEPRES_TILES == 2
// The one part that takes long: instructions computed in loops.
#pragma GCC push_options
#pragma GCC optimize("O1")
#include "tiles.h"
#pragma GCC pop_options
#endif
#include "kernels.cpp"

namespace {

uint32_t random_state = 1;
float random_float() {  // between -1 and 1
  random_state = random_state * 1664525 + 1013904223;
  return static_cast<float>(random_state >> 8) / 8388608.0f - 1;
}

float to_float(float value) { return value; }
[[maybe_unused]] float to_float(uint16_t value) {
  const uint32_t bits = uint32_t{value} << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

// Aligned as torch aligns tensors, and no larger than it must be.
template <typename T>
class Tensor {
 public:
  explicit Tensor(int64_t size, float scale = 0) : size_(size) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, static_cast<size_t>(size) * sizeof(T)) != 0) abort();
    values_.reset(static_cast<T*>(memory));
    for (int64_t i = 0; i < size; i++) {
      const float value = scale * random_float();
      if constexpr (std::is_same_v<T, uint16_t>) {
        values_[i] = to_element(value);
      } else {
        values_[i] = static_cast<T>(value);
      }
    }
  }
  operator T*() { return values_.get(); }
  bool is_finite() const {
    for (int64_t i = 0; i < size_; i++) {
      if (!std::isfinite(to_float(values_[i]))) return false;
    }
    return true;
  }
  // FNV-1a, of whole values instead of bytes.
  uint64_t digest() const {
    uint64_t result = 0xcbf29ce484222325;
    for (int64_t i = 0; i < size_; i++) {
      uint64_t bits = 0;
      memcpy(&bits, &values_[i], sizeof(T));
      result = (result ^ bits) * 0x100000001b3;
    }
    return result;
  }

 private:
  struct Free {
    void operator()(T* p) const { free(p); }
  };
  int64_t size_;
  std::unique_ptr<T[], Free> values_;
};

void require(bool condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "%s\n", what);
  exit(1);
}

template <typename T>
void print_digest(const char* what, const Tensor<T>& tensor) {
  require(tensor.is_finite(), what);
  printf("  %s %016llx\n", what, static_cast<unsigned long long>(tensor.digest()));
}

enum class Shortcut { kNone, kIdentity, kSubsampled };

// A layer behind a previous one, or behind the images where in_channels is 3.
void run_layer(int num_images, int in_channels, int out_channels, int size, Shortcut kind) {
  const bool first = in_channels == 3;
  const int out_size = first || in_channels == out_channels ? size : size / 2;
  const int stored_channels = first ? 4 : in_channels;
  const int64_t pixels = int64_t{num_images} * size * size, out_pixels = int64_t{num_images} * out_size * out_size;

  Tensor<Element> raw(pixels * stored_channels, 1), output(out_pixels * out_channels), g(out_pixels * out_channels, 1);
  Tensor<Element> input_grad(pixels * stored_channels), shortcut_grad(out_pixels * out_channels, 1);
  Tensor<Element> kept(pixels * stored_channels);
  Tensor<Element> shortcut(kind == Shortcut::kSubsampled ? 2 * pixels * in_channels : pixels * stored_channels, 1);
  const int64_t num_packed = packed_size(in_channels, out_channels);
  Tensor<Element> forward_weight(num_packed), backward_weight(num_packed);
  Tensor<float> previous_sums(int64_t{num_images} * 2 * in_channels), sums(int64_t{num_images} * 2 * out_channels, 1);
  Tensor<float> scale(in_channels, 1), shift(in_channels, 1), weight(int64_t{9} * in_channels * out_channels, 0.1f);
  Tensor<float> weight_grad(int64_t{9} * in_channels * out_channels), chunk_grads(chunk_grads_size());
  std::vector<std::unique_ptr<Tensor<float>>> vectors;
  const auto vector = [&](float of_scale) -> float* {
    vectors.push_back(std::make_unique<Tensor<float>>(out_channels, of_scale));
    return *vectors.back();
  };
  Tensor<int64_t> num_batches(1);

  Layer previous{};
  previous.output = raw;
  previous.sums = previous_sums;
  previous.scale = scale;
  previous.shift = shift;
  Layer layer{};
  layer.in_channels = in_channels;
  layer.out_channels = out_channels;
  layer.descending = kind == Shortcut::kIdentity;
  if (first) {
    layer.input = {nullptr, nullptr, 0, raw};
  } else if (kind == Shortcut::kNone) {
    layer.input = {&previous, nullptr, 0, nullptr};
  } else {
    layer.input = {&previous, shortcut, kind == Shortcut::kSubsampled ? in_channels / 2 : in_channels, kept};
  }
  layer.output = output;
  layer.forward_weight = forward_weight;
  layer.backward_weight = first ? nullptr : static_cast<Element*>(backward_weight);
  layer.sums = sums;
  layer.weight = weight;
  layer.norm_weight = vector(1);
  layer.norm_bias = vector(1);
  layer.weight_grad = weight_grad;
  for (float** p : {&layer.norm_weight_grad, &layer.norm_bias_grad, &layer.running_mean, &layer.running_var,
                    &layer.scale, &layer.shift, &layer.mean, &layer.inverse_std, &layer.a, &layer.b, &layer.c}) {
    *p = vector(0);
  }
  layer.num_batches_tracked = num_batches;
  layer.eps = 1e-5;
  layer.momentum = 0.1;

  const Layer* layers[1] = {&layer};
  pack_weights(layers, 1, 1);
  layer_forward(&layer, num_images, 1, 1);
  layer_forward(&layer, num_images, 0, 1);
  Element* of_input = first ? nullptr : static_cast<Element*>(input_grad);
  Element* of_shortcut = kind == Shortcut::kNone || first ? nullptr : static_cast<Element*>(shortcut_grad);
  layer_backward(&layer, num_images, g, of_shortcut, of_input, chunk_grads, 1);
  if (in_channels == 32 && kind == Shortcut::kIdentity) {  // so many threads divide a chunk's work
    Tensor<Element> other_input_grad(pixels * stored_channels);
    Tensor<float> other_weight_grad(int64_t{9} * in_channels * out_channels), other_chunks(chunk_grads_size());
    Tensor<float> other_sums(int64_t{num_images} * 2 * in_channels);
    previous.sums = other_sums;
    layer.weight_grad = other_weight_grad;
    layer_backward(&layer, num_images, g, of_shortcut, other_input_grad, other_chunks, kNumChunks + 1);
    require(other_weight_grad.digest() == weight_grad.digest() && other_input_grad.digest() == input_grad.digest() &&
                other_sums.digest() == previous_sums.digest(),
            "more threads make other gradients");
  }
  printf("layer of %d and %d channels, shortcut %d\n", in_channels, out_channels, static_cast<int>(kind));
  print_digest("forward sums", sums);
  print_digest("output", output);
  print_digest("kept input", kept);
  print_digest("weight gradient", weight_grad);
  print_digest("input gradient", input_grad);
  print_digest("backward sums", previous_sums);
  for (const auto& values : vectors) print_digest("per channel", *values);
}

void run_augmentation(int num_images, int pad, bool reflects) {
  constexpr int kPixels = kImageSize * kImageSize, kSmaller = kImageSize / 2, kTaps = 2;
  Tensor<uint8_t> images(int64_t{3} * 3 * kPixels), flips(num_images);
  Tensor<int64_t> indices(num_images), offsets(int64_t{2} * num_images);
  Tensor<float> mean(3, 1), mean_of_pixels(int64_t{3} * kPixels, 1), deviation(3);
  Tensor<float> target(int64_t{num_images} * 3 * kPixels);
  Tensor<float> weights(kTaps * kSmaller, 1), smaller(int64_t{num_images} * 3 * kSmaller * kSmaller);
  Tensor<int32_t> firsts(kSmaller);
  for (int i = 0; i < 9 * kPixels; i++) images[i] = static_cast<uint8_t>(i * 37);
  for (int i = 0; i < 3; i++) deviation[i] = 0.25f;
  for (int i = 0; i < kSmaller; i++) firsts[i] = 2 * i;
  for (int n = 0; n < num_images; n++) {  // all corners among them
    indices[n] = n % 3;
    offsets[2 * n] = n % 2 * 2 * pad;
    offsets[2 * n + 1] = n / 2 % 2 * 2 * pad;
    flips[n] = n / 4 % 2;
  }
  make_images(num_images, images, indices, offsets, flips, mean_of_pixels, 1, deviation, pad, reflects, kImageSize, 0,
              nullptr, nullptr, target, 1);
  make_images(num_images, images, indices, offsets, flips, mean, 0, deviation, pad, reflects, kSmaller, kTaps, firsts,
              weights, smaller, 1);
  printf("images, padded by %d, %d\n", pad, static_cast<int>(reflects));
  print_digest("whole", target);
  print_digest("smaller", smaller);
}

void run_head(int num_images, int num_classes, Shortcut kind) {
  const int64_t pixels = int64_t{num_images} * kLastSize * kLastSize, logits_size = int64_t{num_images} * num_classes;
  Tensor<Element> raw(pixels * 64, 1), values(pixels * 64), g(pixels * 64);
  Tensor<Element> shortcut(pixels * (kind == Shortcut::kSubsampled ? 128 : 64), 1);
  Tensor<float> sums(int64_t{num_images} * 128), scale(64, 1), shift(64, 1);
  Tensor<float> pooled(int64_t{num_images} * 64), pooled_grad(int64_t{num_images} * 64);
  Tensor<float> weight(int64_t{num_classes} * 64, 1), bias(num_classes, 1), logits(logits_size), loss(1);
  Tensor<float> logits_grad(logits_size, 1);
  Tensor<float> weight_grad(int64_t{num_classes} * 64), bias_grad(num_classes);
  Tensor<int64_t> labels(num_images);
  Layer previous{};
  previous.output = raw;
  previous.sums = sums;
  previous.scale = scale;
  previous.shift = shift;
  Input input{&previous, nullptr, 0, values};
  if (kind != Shortcut::kNone) {
    input.shortcut = shortcut;
    input.shortcut_channels = kind == Shortcut::kSubsampled ? 32 : 64;
  }
  pool_forward(&input, num_images, pooled, 1);
  linear_forward(num_images, num_classes, pooled, weight, bias, logits, 1);
  printf("head, shortcut %d\n", static_cast<int>(kind));
  print_digest("logits", logits);
  // The last bits of a cross-entropy depend on the system's exponential: the gradient of the logits is another one.
  require(cross_entropy(num_images, num_classes, logits, labels, loss) >= 0, "a label is taken for none");
  require(loss.is_finite() && logits.is_finite(), "the cross-entropy is not finite");
  linear_backward(num_images, num_classes, logits_grad, pooled, weight, weight_grad, bias_grad, pooled_grad, 1);
  pool_backward(&input, num_images, pooled_grad, g, 1);
  print_digest("pooled", pooled);
  print_digest("weight gradient", weight_grad);
  print_digest("bias gradient", bias_grad);
  print_digest("backward sums", sums);
  print_digest("g", g);
}

void run_muon(int rows, int columns) {
  const int64_t size = int64_t{rows} * columns;
  Tensor<float> weight(size, 1), gradient(size, 1), momentum(size, 1);
  const Bank bank{rows, columns, weight, gradient, momentum};
  const MuonStep step{0.05f, 0.8f, 1e-15f, 3.4445f, -4.775f, 2.0315f, 5};
  muon_step(&bank, 1, &step, 1);
  printf("Muon, %d filters of %d weights\n", rows, columns);
  print_digest("weight", weight);
  print_digest("momentum", momentum);
}

void run_images(int num_images) {
  const int64_t size = kImageSize;
  Tensor<float> images(num_images * 3 * size * size, 1);
  Tensor<Element> values(num_images * 4 * size * size);
  load_images(num_images, images, 3 * size * size, size * size, size, 1, values, 1);
  load_images(num_images, images, 3 * size * size, 1, 3 * size, 3, values, 1);  // channels last
  print_digest("images", values);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    const int num_elements = 4 * kImageSize * kImageSize;
    Tensor<float> images(2 * 3 * kImageSize * kImageSize);
    Tensor<Element> values(num_elements);  // of one image
    load_images(2, images, 3 * kImageSize * kImageSize, kImageSize * kImageSize, kImageSize, 1, values, 1);
    return 0;
  }
  const int num_images = atoi(argv[1]), num_last = atoi(argv[2]);
  run_images(num_images);
  run_augmentation(num_images, 0, false);
  run_augmentation(num_images, 4, false);
  run_augmentation(num_images, kImageSize - 1, true);
  run_muon(16, 27);
  run_muon(32, 144);
  run_muon(64, 576);
  run_layer(num_images, 3, 16, kImageSize, Shortcut::kNone);
  for (const Shortcut kind : {Shortcut::kNone, Shortcut::kIdentity, Shortcut::kSubsampled}) {
    if (kind != Shortcut::kSubsampled) {
      run_layer(num_images, 16, 16, kImageSize, kind);
      run_layer(num_images, 16, 32, kImageSize, kind);
    }
    run_layer(num_images, 32, 32, kImageSize / 2, kind);
    run_layer(num_images, 32, 64, kImageSize / 2, kind);
    run_layer(num_last, 64, 64, kLastSize, kind);
    run_head(num_images, 10, kind);
  }
}
