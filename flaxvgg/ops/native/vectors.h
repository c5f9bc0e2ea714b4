// Vectors of float32, and the products that all of the arithmetic goes through.
//
// The order of their sums is what keeps the result close to float64's: chains of 8 products, and
// chains added among themselves before they join the rest (pairwise summation, Higham 2002, section
// 4.2). A processor adds while it multiplies, so the short chains cost nothing.
#ifndef FLAXVGG_VECTORS_H
#define FLAXVGG_VECTORS_H

#include <stdint.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

// Of the sums that a matrix product holds in registers. AVX-512 and ARM have twice as many of these.
// With six rows of AVX2, chains would end in a burst of 12 stores, for which the multiplications wait.
#ifndef ROWS
#if LANES == 16
#define ROWS 7
#elif defined(__aarch64__)
#define ROWS 6
#else
#define ROWS 4
#endif
#endif

enum {
  PANEL = 2 * LANES,  // columns, of which ROWS rows of sums are held in registers
  CHAIN = 8,          // products added one after another
  GROUP = 4 * CHAIN,  // products whose chains are added before they join the rest
  LINE = 16,          // floats in a line of the cache
  APART = LINE,       // floats between matrices, lest they fall on the same lines of the cache
};

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(8 * LANES), aligned(8), may_alias));
typedef int32_t Mask __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE Vector load(const float *from) { return *(const Vector *)from; }
INLINE void store(float *to, Vector v) { *(Vector *)to = v; }
INLINE Doubles widen(Vector v) { return __builtin_convertvector(v, Doubles); }
INLINE Vector rounded(Doubles v) { return __builtin_convertvector(v, Vector); }

// What inputs are transformed in: float64, rounded once, or, where sums are so long that it makes no
// difference, float32.
#ifdef FLOAT32_TRANSFORMS
typedef Vector Real;
typedef float Scalar;
INLINE Real real(Vector v) { return v; }
INLINE Vector vector(Real v) { return v; }
#else
typedef Doubles Real;
typedef double Scalar;
INLINE Real real(Vector v) { return widen(v); }
INLINE Vector vector(Real v) { return rounded(v); }
#endif

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t pieces(int64_t all, int64_t size) { return (all + size - 1) / size; }
INLINE int64_t padded(int64_t all, int64_t size) { return pieces(all, size) * size; }

INLINE Vector pick(Mask where, Vector v, Vector other) {
  return (Vector)(((Mask)v & where) | ((Mask)other & ~where));
}

// `count` floats, at most a vector of them, and zeros behind.
INLINE Vector load_some(const float *from, int64_t count) {
  if (count >= LANES) return load(from);
  float some[LANES] = {0};
  for (int64_t i = 0; i < count; i++) some[i] = from[i];
  return load(some);
}
INLINE void store_some(float *to, Vector v, int64_t count) {
  if (count >= LANES) {
    store(to, v);
    return;
  }
  for (int64_t i = 0; i < count; i++) to[i] = v[i];
}

// The lower and the upper halves of two vectors, their values in turns.
#if LANES == 16
#define LOWER 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOWER 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOWER 0, 4, 1, 5
#define UPPER 2, 6, 3, 7
#endif

// Rows become columns: each time half of a value's row number becomes its column's.
INLINE void transpose(Vector rows[LANES]) {
#pragma GCC unroll 4
  for (int done = 1; done < LANES; done *= 2) {
    Vector mixed[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES / 2; i++) {
      Vector a = rows[i], b = rows[i + LANES / 2];
      mixed[2 * i] = __builtin_shufflevector(a, b, LOWER);
      mixed[2 * i + 1] = __builtin_shufflevector(a, b, UPPER);
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) rows[i] = mixed[i];
  }
}

#undef LOWER
#undef UPPER

// sum (ROWS, PANEL) = left (ROWS, depth) times right (depth, PANEL), chain by chain; `row` and `step`
// are the floats from one row of the left matrix to the next, and from one column to the next. Where
// it is `begun`, the first chain is added to what `sum` has. Without any depth the sum is zero.

INLINE void multiply_chain(const float *left, int64_t row, int64_t step, const float *right,
                           int begun, Vector sum[ROWS][2]) {
#pragma GCC unroll 8
  for (int i = 0; i < CHAIN; i++) {
    Vector first = load(right + i * PANEL), second = load(right + i * PANEL + LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      float d = left[r * row + i * step];
      sum[r][0] = i || begun ? sum[r][0] + d * first : d * first;
      sum[r][1] = i || begun ? sum[r][1] + d * second : d * second;
    }
  }
}

INLINE void multiply(const float *left, int64_t row, int64_t step, const float *right,
                     int64_t depth, int begun, Vector sum[ROWS][2]) {
  if (depth == 0) {
    for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = (Vector){0};
    return;
  }
  multiply_chain(left, row, step, right, begun, sum);
#pragma GCC unroll 1
  for (int64_t chain = CHAIN; chain < depth; chain += CHAIN) {
    Vector part[ROWS][2];
    multiply_chain(left + chain * step, row, step, right + chain * PANEL, 0, part);
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < 2; v++) sum[r][v] += part[r][v];
  }
}

#endif
