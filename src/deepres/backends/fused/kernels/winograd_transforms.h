// The transformations of Winograd's algorithm, in one dimension.

#pragma once

#include "simd.h"

namespace {

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
  const Vec even_a = multiply_add(-kB2, d[2], d[4]), odd_a = multiply_add(-kB2, d[1], d[3]);
  const Vec even_b = multiply_add(-kA2, d[2], d[4]), odd_b = multiply_add(-kA2, d[1], d[3]);
  v[0] = multiply_add(kA2 * kB2, d[0], multiply_add(-kA2 - kB2, d[2], d[4]));
  v[1] = multiply_add(kA, odd_a, even_a);
  v[2] = multiply_add(-kA, odd_a, even_a);
  v[3] = multiply_add(kB, odd_b, even_b);
  v[4] = multiply_add(-kB, odd_b, even_b);
  v[5] = multiply_add(kA2 * kB2, d[1], multiply_add(-kA2 - kB2, d[3], d[5]));
}

// A^T m
inline void transform_output(const Vec (&m)[6], Vec (&y)[4]) {
  const Vec even_a = m[1] + m[2], odd_a = m[1] - m[2];
  const Vec even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + (even_a + even_b);
  y[1] = multiply_add(kA, odd_a, kB * odd_b);
  y[2] = multiply_add(kA2, even_a, kB2 * even_b);
  y[3] = multiply_add(kA3, odd_a, multiply_add(kB3, odd_b, m[5]));
}

// A y
inline void transform_output_grad(const Vec (&y)[4], Vec (&m)[6]) {
  const Vec even_a = multiply_add(kA2, y[2], y[0]), odd_a = multiply_add(kA2, y[3], y[1]);
  const Vec even_b = multiply_add(kB2, y[2], y[0]), odd_b = multiply_add(kB2, y[3], y[1]);
  m[0] = y[0];
  m[1] = multiply_add(kA, odd_a, even_a);
  m[2] = multiply_add(-kA, odd_a, even_a);
  m[3] = multiply_add(kB, odd_b, even_b);
  m[4] = multiply_add(-kB, odd_b, even_b);
  m[5] = y[3];
}

// G g
inline void transform_weight(const Vec (&g)[3], Vec (&u)[6]) {
  const Vec even_a = 1 / kDivisorA * multiply_add(kA2, g[2], g[0]);
  const Vec even_b = 1 / kDivisorB * multiply_add(kB2, g[2], g[0]);
  u[0] = 1 / kDivisor0 * g[0];
  u[1] = multiply_add(kA / kDivisorA, g[1], even_a);
  u[2] = multiply_add(-kA / kDivisorA, g[1], even_a);
  u[3] = multiply_add(kB / kDivisorB, g[1], even_b);
  u[4] = multiply_add(-kB / kDivisorB, g[1], even_b);
  u[5] = g[2];
}

// G^T u
inline void transform_weight_grad(const Vec (&u)[6], Vec (&g)[3]) {
  const Vec even_a = u[1] + u[2], odd_a = u[1] - u[2];
  const Vec even_b = u[3] + u[4], odd_b = u[3] - u[4];
  g[0] = multiply_add(1 / kDivisor0, u[0], multiply_add(1 / kDivisorA, even_a, 1 / kDivisorB * even_b));
  g[1] = multiply_add(kA / kDivisorA, odd_a, kB / kDivisorB * odd_b);
  g[2] = multiply_add(kA2 / kDivisorA, even_a, multiply_add(kB2 / kDivisorB, even_b, u[5]));
}

}  // namespace
