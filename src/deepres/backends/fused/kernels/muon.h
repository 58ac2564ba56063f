// Steps of Muon, see deepres/training/muon.py, which says what they are. A filter bank is a matrix of one row a filter;
// one thread takes its step, so that results do not depend on the number of threads.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#include "layer.h"
#include "simd.h"

extern "C" {

// The interface with muon.py, which has the same structures field by field.

struct Bank {
  int64_t rows, columns;  // a multiple of 16, at most 64; at most 576
  float* weight;          // (rows, columns), as all of them
  const float* gradient;
  float* momentum;
};

struct MuonStep {
  float lr, momentum;
  float negligible;  // entries up to this count as 0, where a matrix has norm 1
  float a, b, c;     // an iteration makes of each singular value s: a s + b s^3 + c s^5
  int64_t num_iterations;
};
}

namespace {

constexpr int kMaxBankColumns = 9 * kMaxChannels;
constexpr int kColumnBlock = 2 * kLanes;  // columns of a matrix in scratch memory are a multiple, the last ones zeros
constexpr int kRowBlock = kLanes == 16 ? 8 : 4;
constexpr int kDotRows = kLanes == 16 ? 4 : 2, kDotColumns = 4;
static_assert(kMaxBankColumns % kColumnBlock == 0);

struct alignas(64) MuonScratch {
  float matrix[kMaxChannels * kMaxBankColumns];
  GUARD(after_matrix)
  float next_matrix[kMaxChannels * kMaxBankColumns];
  GUARD(after_next_matrix)
  float gram[kMaxChannels * kMaxChannels];
  GUARD(after_gram)
  float polynomial[kMaxChannels * kMaxChannels];
  GUARD(after_polynomial)
};

inline MuonScratch& thread_muon_scratch() {
  static thread_local const std::unique_ptr<MuonScratch> scratch = std::make_unique<MuonScratch>();
  return *scratch;
}

// The Euclidean norm of `size` values, a multiple of the lanes.
inline float norm_of(const float* values, int size) {
  double total = 0;
  for (int begin = 0; begin < size; begin += kMaxBankColumns) {
    Vec sum = zero();
    for (int i = begin; i < std::min(begin + kMaxBankColumns, size); i += kLanes) {
      const Vec v = load_floats(values + i);
      sum = multiply_add(v, v, sum);
    }
    total += sum_lanes(sum);
  }
  return static_cast<float>(std::sqrt(total));
}

// product (rows, rows) = x x^T, x (rows, columns).
inline void multiply_by_transpose(const float* x, int rows, int columns, float* product) {
  for (int i = 0; i < rows; i += kDotRows) {
    for (int j = 0; j < i + kDotRows; j += kDotColumns) {
      Vec sums[kDotRows][kDotColumns];
      UNROLL for (int r = 0; r < kDotRows; r++) {
        UNROLL for (int s = 0; s < kDotColumns; s++) sums[r][s] = zero();
      }
      for (int k = 0; k < columns; k += kLanes) {
        Vec left[kDotRows];
        UNROLL for (int r = 0; r < kDotRows; r++) left[r] = load_floats(x + (i + r) * columns + k);
        UNROLL for (int s = 0; s < kDotColumns; s++) {
          const Vec right = load_floats(x + (j + s) * columns + k);
          UNROLL for (int r = 0; r < kDotRows; r++) sums[r][s] = multiply_add(left[r], right, sums[r][s]);
        }
      }
      UNROLL for (int r = 0; r < kDotRows; r++) {
        UNROLL for (int s = 0; s < kDotColumns; s++) {
          const float sum = sum_lanes(sums[r][s]);
          product[(i + r) * rows + j + s] = product[(j + s) * rows + i + r] = sum;
        }
      }
    }
  }
}

// target = a x + p x, x and target (rows, columns), p (rows, rows) symmetric.
inline void add_product(float a, const float* p, const float* x, int rows, int columns, float* target) {
  for (int column = 0; column < columns; column += kColumnBlock) {
    for (int i = 0; i < rows; i += kRowBlock) {
      Vec sums[kRowBlock][2];
      UNROLL for (int r = 0; r < kRowBlock; r++) {
        UNROLL for (int v = 0; v < 2; v++) {
          sums[r][v] = splat(a) * load_floats(x + (i + r) * columns + column + v * kLanes);
        }
      }
      for (int k = 0; k < rows; k++) {
        const float* row = x + k * columns + column;
        const Vec first = load_floats(row), second = load_floats(row + kLanes);
        UNROLL for (int r = 0; r < kRowBlock; r++) {
          const Vec factor = splat(p[k * rows + i + r]);
          sums[r][0] = multiply_add(factor, first, sums[r][0]);
          sums[r][1] = multiply_add(factor, second, sums[r][1]);
        }
      }
      UNROLL for (int r = 0; r < kRowBlock; r++) {
        UNROLL for (int v = 0; v < 2; v++) {
          store_floats(target + (i + r) * columns + column + v * kLanes, sums[r][v]);
        }
      }
    }
  }
}

inline void take_muon_step(const Bank& bank, const MuonStep& step) {
  const int rows = static_cast<int>(bank.rows), columns = static_cast<int>(bank.columns);
  const int padded = (columns + kColumnBlock - 1) / kColumnBlock * kColumnBlock;
  MuonScratch& scratch = thread_muon_scratch();
  float *x = scratch.matrix, *other = scratch.next_matrix;
  for (int row = 0; row < rows; row++) {
    const float* gradient = bank.gradient + row * columns;
    float *momentum = bank.momentum + row * columns, *to = x + row * padded;
    for (int i = 0; i < columns; i++) {
      const float sum = step.momentum * momentum[i] + gradient[i];
      momentum[i] = sum;
      to[i] = gradient[i] + step.momentum * sum;
    }
    memset(to + columns, 0, (padded - columns) * sizeof(float));
  }
  const float norm = std::max(norm_of(x, rows * padded), 1e-7f);
  for (int i = 0; i < rows * padded; i++) {
    const float value = x[i] / norm;
    x[i] = std::fabs(value) <= step.negligible ? 0.0f : value;
  }
  for (int iteration = 0; iteration < step.num_iterations; iteration++) {
    multiply_by_transpose(x, rows, padded, scratch.gram);
    multiply_by_transpose(scratch.gram, rows, rows, scratch.polynomial);
    for (int i = 0; i < rows * rows; i++) {
      scratch.polynomial[i] = step.b * scratch.gram[i] + step.c * scratch.polynomial[i];
    }
    add_product(step.a, scratch.polynomial, x, rows, padded, other);
    std::swap(x, other);
  }
  const float scale = norm_of(bank.weight, rows * columns) / std::sqrt(static_cast<float>(std::min(rows, columns)));
  for (int row = 0; row < rows; row++) {
    float* weight = bank.weight + row * columns;
    const float* from = x + row * padded;
    for (int i = 0; i < columns; i++) weight[i] = weight[i] / scale - step.lr * from[i];
  }
}

}  // namespace

extern "C" {

// Take a step of each bank; the largest ones are best the first.
void muon_step(const Bank* banks, int num_banks, const MuonStep* step, int num_threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
  for (int i = 0; i < num_banks; i++) take_muon_step(banks[i], *step);
}

}  // extern "C"
