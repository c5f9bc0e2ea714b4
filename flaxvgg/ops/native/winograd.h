// Winograd's minimal filtering F(m x n, 3x3): a tile of m x n outputs takes (m + 2) (n + 2) products
// for each pair of channels, where direct sums take 9 m n (Lavin & Gray 2016, arXiv:1509.09308):
//     y = A' [(G g G') * (B' d B)] A,  d the (m + 2) x (n + 2) inputs, g the kernel
// In one dimension inputs, kernel and outputs are polynomials. Their product is taken at m + 1
// points and infinity, and the outputs are found from there; so row p of G has
// (1, p, p^2) / prod (p - q) over the other points q, row p of A has (1, p, ... p^(m-1)), and row p
// of B' the coefficients of prod (x - q); infinity has the highest ones.
//
// For m = 2 the points are 0, 1, -1: all coefficients of the inputs are 1.
//
// For m = 4 they are 0, +-a, +-b. It is known as inexact, and with the usual points 1 and 2 it is:
// what a product rounds off is multiplied by the coefficients (Barabasz et al. 2020,
// arXiv:1803.10986; Alam et al. 2022, arXiv:2201.10369). With independent roundings the variance of
// an output's error is, in one dimension, sum_p |A_p|^2 |B_p|^2 |G_p|^2 / 3m in that of a direct
// sum's: 1.67 for m = 2, and for m = 4 10.8 with the points 1 and 2, but 4.77 with 0.65 and 1.6,
// where it is least, and 4.78 with 5/8 and 3/2, whose coefficients are short: a^2 = 25/64,
// b^2 = 9/4. In two dimensions variances multiply: the standard deviation is 1.67 times the direct
// sum's for F(2x2), 2.8 for F(2x4), and 4.8 for F(4x4); conv3x3.c makes the sums as much shorter.
// `experiments/winograd_errors` measures it. With points in pairs, even and odd powers are summed
// apart and used twice.
#ifndef FLAXVGG_WINOGRAD_H
#define FLAXVGG_WINOGRAD_H

#include "vectors.h"

#define A 0.625
#define B 1.5
#define A2 (A * A)
#define B2 (B * B)

// `side` is m, known when this is compiled.

INLINE void input_1d(int side, const Real d[6], Real out[6]) {  // B' d
  if (side == 2) {
    out[0] = d[0] - d[2];
    out[1] = d[1] + d[2];
    out[2] = d[2] - d[1];
    out[3] = d[1] - d[3];
    return;
  }
  const Scalar a = A, b = B, a2 = A2, b2 = B2, sum = A2 + B2, product = A2 * B2;
  Real even = d[4] - b2 * d[2], odd = d[3] - b2 * d[1];
  out[0] = (product * d[0] - sum * d[2]) + d[4];
  out[1] = even + a * odd;
  out[2] = even - a * odd;
  even = d[4] - a2 * d[2], odd = d[3] - a2 * d[1];
  out[3] = even + b * odd;
  out[4] = even - b * odd;
  out[5] = (product * d[1] - sum * d[3]) + d[5];
}

INLINE void kernel_1d(int side, const Doubles g[3], Doubles out[6]) {  // G g
  if (side == 2) {
    Doubles outer = 0.5 * (g[0] + g[2]), inner = 0.5 * g[1];
    out[0] = g[0];
    out[1] = outer + inner;
    out[2] = outer - inner;
    out[3] = g[2];
    return;
  }
  const double of_0 = 1 / (A2 * B2), of_a = 1 / (2 * A2 * (A2 - B2)), of_b = 1 / (2 * B2 * (B2 - A2));
  Doubles even = of_a * (g[0] + A2 * g[2]), odd = of_a * A * g[1];
  out[0] = of_0 * g[0];
  out[1] = even + odd;
  out[2] = even - odd;
  even = of_b * (g[0] + B2 * g[2]), odd = of_b * B * g[1];
  out[3] = even + odd;
  out[4] = even - odd;
  out[5] = g[2];
}

INLINE void output_1d(int side, const Doubles m[6], Doubles out[4]) {  // A' m
  if (side == 2) {
    out[0] = m[0] + (m[1] + m[2]);
    out[1] = (m[1] - m[2]) - m[3];
    return;
  }
  Doubles even_a = m[1] + m[2], odd_a = A * (m[1] - m[2]);
  Doubles even_b = m[3] + m[4], odd_b = B * (m[3] - m[4]);
  out[0] = m[0] + (even_a + even_b);
  out[1] = odd_a + odd_b;
  out[2] = A2 * even_a + B2 * even_b;
  out[3] = (A2 * odd_a + B2 * odd_b) + m[5];
}

#undef A
#undef B
#undef A2
#undef B2

#endif
