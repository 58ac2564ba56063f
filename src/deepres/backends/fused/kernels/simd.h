// Registers: the compilers' vector extensions, and intrinsics of AVX-512, AVX2 with FMA, and NEON for what these lack.
//
// A Vec holds kLanes floats, a Packed kLanes lanes of kPack elements, see kernels.cpp. Memory need not be aligned.
//
// The operators + - * compute lane by lane, and a float beside a Vec stands for one that has it in every lane. Compilers
// differ in which products they fuse with a sum, which changes rounding: build.py has them fuse none, and what is to be
// fused is written as multiply_add.

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

using Vec = float __attribute__((vector_size(kLanes * sizeof(float))));
using UnalignedVec = Vec __attribute__((aligned(alignof(float)), may_alias));

inline Vec zero() { return Vec{}; }
inline Vec splat(float value) { return value - zero(); }  // x + 0 is not x for x = -0
inline Vec load_floats(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store_floats(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

// What the operators lack, or what GCC compiles to more instructions, or slower ones, than intrinsics:
//
//     multiply_add    x * y + sum, rounded once
//     relu            the larger of 0 and x, or NaN where x is: of two operands, the instructions return the second then
//     mask_by         y where x > 0 or x is NaN, else 0: ReLU's derivative, as torch has it
//     sum_lanes       the upper half is added to the lower until one lane is left
#if DEEPRES_LANES == 16
inline Vec multiply_add(Vec x, Vec y, Vec sum) { return _mm512_fmadd_ps(x, y, sum); }
inline Vec relu(Vec x) { return _mm512_max_ps(zero(), x); }
inline Vec mask_by(Vec x, Vec y) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, zero(), _CMP_NLE_UQ), y); }
inline float sum_lanes(Vec v) { return _mm512_reduce_add_ps(v); }
#elif DEEPRES_LANES == 8
inline Vec multiply_add(Vec x, Vec y, Vec sum) { return _mm256_fmadd_ps(x, y, sum); }
inline Vec relu(Vec x) { return _mm256_max_ps(zero(), x); }
inline Vec mask_by(Vec x, Vec y) { return _mm256_and_ps(_mm256_cmp_ps(x, zero(), _CMP_NLE_UQ), y); }
inline float sum_lanes(Vec v) {
  const __m128 half = _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1);
  const __m128 pair = half + _mm_movehl_ps(half, half);
  return pair[0] + pair[1];
}
#else
#ifdef __aarch64__
inline Vec multiply_add(Vec x, Vec y, Vec sum) { return vfmaq_f32(sum, x, y); }
#else
inline Vec multiply_add(Vec x, Vec y, Vec sum) { return _mm_fmadd_ps(x, y, sum); }
#endif
inline Vec relu(Vec x) { return x < zero() ? zero() : x; }
inline Vec mask_by(Vec x, Vec y) { return x <= zero() ? zero() : y; }
inline float sum_lanes(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
#endif
inline Vec multiply_add(float x, Vec y, Vec sum) { return multiply_add(y, splat(x), sum); }

// v, which the compiler is not to load again wherever it is used.
inline Vec in_register(Vec v) {
#if DEEPRES_LANES > 4  // ARM's arithmetic has no operands in memory
  asm("" : "+v"(v));
#endif
  return v;
}

#ifdef DEEPRES_FLOAT32
using Packed = Vec;
inline Element to_element(float value) { return value; }
inline Vec load(const Element* p) { return load_floats(p); }
inline void store(Element* p, Vec v) { store_floats(p, v); }
inline Packed load_packed(const Element* p) { return load_floats(p); }
inline Packed broadcast_lane(const Element* p) { return splat(*p); }

// sums + x * y in each lane.
inline Vec multiply_packed(Vec sums, Packed x, Packed y) { return multiply_add(x, y, sums); }
#else
using Packed = __m512i;
inline Packed in_register(Packed v) { return v; }
inline Packed load_packed(const Element* p) { return _mm512_loadu_si512(p); }
inline Packed broadcast_lane(const Element* p) {  // the lane at p in every lane
  int32_t lane;
  memcpy(&lane, p, sizeof lane);
  return _mm512_set1_epi32(lane);
}
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

}  // namespace
