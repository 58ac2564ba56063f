// Registers: a thin layer over AVX-512, for elements of either precision, and over AVX2 with FMA or NEON, for float32.
//
// A Vec holds kLanes floats, a Packed kLanes lanes of kPack elements, see kernels.cpp. Memory need not be aligned.

#pragma once

#ifdef __aarch64__
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "layer.h"

#ifdef DEEPRES_SANITIZED  // unrolled loops would take minutes to compile
#define UNROLL
#elif defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
#define ALWAYS_INLINE __attribute__((always_inline))

// The 32-bit lanes of a register: as many as the processor has, unless -DDEEPRES_LANES says otherwise. With 4, x86-64
// computes what ARM does, bit for bit, so that ARM's code is tested there.
#ifndef DEEPRES_LANES
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define DEEPRES_LANES 16
#elif defined(__AVX2__)
#define DEEPRES_LANES 8
#else
#define DEEPRES_LANES 4
#endif
#endif

namespace {

constexpr int kLanes = DEEPRES_LANES;
#if DEEPRES_LANES == 16
constexpr int kTile = 16;                            // registers of sums in a tile; there are 32 in all
constexpr int kGradTaps = 3;                         // taps whose weight gradients are summed at once
constexpr int kCachedRows = 16;                      // rows whose pairs stay in the first-level cache
#elif DEEPRES_LANES == 8
constexpr int kTile = 8;                             // of 16 registers
constexpr int kGradTaps = 1;
constexpr int kCachedRows = 4;
#else
constexpr int kTile = 16;                            // of 32 registers on ARM
constexpr int kGradTaps = 3;
constexpr int kCachedRows = 4;
#endif

#if DEEPRES_LANES == 16
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
#elif DEEPRES_LANES == 8
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
#else  // by the vector extensions of GCC and Clang
using Vec = float __attribute__((vector_size(16)));
using Packed = Vec;
inline Vec zero() { return Vec{}; }
inline Vec splat(float value) { return Vec{value, value, value, value}; }
inline Vec load_floats(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline void store_floats(float* p, Vec v) { memcpy(p, &v, sizeof v); }
inline Packed load_packed(const Element* p) { return load_floats(p); }
inline Packed splat_lane(int32_t lane) {
  float value;
  memcpy(&value, &lane, sizeof value);
  return splat(value);
}
inline Vec add(Vec x, Vec y) { return x + y; }
inline Vec subtract(Vec x, Vec y) { return x - y; }
inline Vec multiply(Vec x, Vec y) { return x * y; }
#ifdef __aarch64__
inline Vec multiply_add(Vec x, Vec y, Vec sum) { return vfmaq_f32(sum, x, y); }
#else
inline Vec multiply_add(Vec x, Vec y, Vec sum) { return _mm_fmadd_ps(x, y, sum); }
#endif
inline Vec relu(Vec x) { return x < zero() ? zero() : x; }
inline float sum_lanes(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline Vec in_register(Vec v) { return v; }  // ARM's arithmetic has no operands in memory
inline Vec mask_by(Vec x, Vec y) { return x <= zero() ? zero() : y; }
#endif

#ifdef DEEPRES_FLOAT32
inline Element to_element(float value) { return value; }
inline Vec load(const Element* p) { return load_floats(p); }
inline void store(Element* p, Vec v) { store_floats(p, v); }

// sums + x * y in each lane.
#if DEEPRES_LANES == 16
inline Vec multiply_packed(Vec sums, Packed x, Packed y) {
  return multiply_add(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y), sums);
}
#elif DEEPRES_LANES == 8
inline Vec multiply_packed(Vec sums, Packed x, Packed y) {
  return multiply_add(_mm256_castsi256_ps(x), _mm256_castsi256_ps(y), sums);
}
#else
inline Vec multiply_packed(Vec sums, Packed x, Packed y) { return multiply_add(x, y, sums); }
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

// x[0] y[0] x[1] y[1] ... of the halves x and y of a register.
inline Packed interleave(Packed halves) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves);
}
inline Packed interleave(__m256i x, __m256i y) {
  return interleave(_mm512_inserti64x4(_mm512_castsi256_si512(x), y, 1));
}
#endif

// The lane at p in every lane.
inline Packed broadcast_lane(const Element* p) {
  int32_t lane;
  memcpy(&lane, p, sizeof lane);
  return splat_lane(lane);
}

}  // namespace
