// The kernel, packed as the products take it: from (3, 3, inputs, outputs) to (places, panels, depth,
// PANEL); turned round, from (3, 3, outputs, inputs), in which the last of the nine taps comes first.
#ifndef FLAXVGG_KERNELS_H
#define FLAXVGG_KERNELS_H

#include "tiles.h"

typedef float Turned[9][LANES][LANES];  // of so many inputs and outputs

// At each tap of input i a vector of outputs from `first` on; turned round, a block of inputs at once.
INLINE void taps_of(const Conv3x3 *conv, int64_t i, int64_t first, Turned turned, Vector taps[9]) {
  int64_t inputs = conv->x.channels, count = conv->outputs - first;
  if (!conv->turned)
    for (int tap = 0; tap < 9; tap++)
      taps[tap] = load_some(conv->kernel + (tap * inputs + i) * conv->outputs + first,
                            i < inputs ? count : 0);
  for (int tap = 0; tap < 9 && conv->turned && i % LANES == 0; tap++) {
    Vector rows[LANES];
    const float *from = conv->kernel + ((8 - tap) * conv->outputs + first) * inputs + i;
    for (int lane = 0; lane < LANES; lane++)
      rows[lane] = load_some(from + lane * inputs, lane < count ? inputs - i : 0);
    transpose(rows);
    for (int k = 0; k < LANES; k++) store(turned[tap][k], rows[k]);
  }
  for (int tap = 0; tap < 9 && conv->turned; tap++) taps[tap] = load(turned[tap][i % LANES]);
  for (int tap = 0; tap < 9 && conv->slopes; tap++)
    taps[tap] = pick(taps[tap] > 0, conv->slopes[0] * taps[tap], conv->slopes[1] * taps[tap]);
}

INLINE void transform_rows(int height, int width, const Conv3x3 *conv, int64_t first, float *to,
                           int64_t apart) {
  const int m = height + 2, n = width + 2;
  Turned turned;
  for (int64_t i = 0; i < conv->depth; i++) {
    Vector taps[9];
    Doubles down[6][3], g[3], out[6];
    taps_of(conv, i, first, turned, taps);
    for (int k = 0; k < 3; k++) {
      for (int j = 0; j < 3; j++) g[j] = widen(taps[3 * j + k]);
      kernel_1d(height, g, out);
      for (int j = 0; j < m; j++) down[j][k] = out[j];
    }
    for (int j = 0; j < m; j++) {
      kernel_1d(width, down[j], out);
      for (int k = 0; k < n; k++) store(to + (n * j + k) * apart + i * PANEL, rounded(out[k]));
    }
  }
}

static void gather_rows(const Conv3x3 *conv, int64_t first, float *to) {
  int64_t inputs = conv->x.channels;
  Turned turned;
  for (int64_t i = 0; i < inputs; i++) {
    Vector taps[9];
    taps_of(conv, i, first, turned, taps);
    for (int tap = 0; tap < 9; tap++) store(to + (tap * inputs + i) * PANEL, taps[tap]);
  }
  for (int64_t i = 9 * inputs; i < conv->depth; i++) store(to + i * PANEL, (Vector){0});
}

// One panel; `apart` floats lie between the places.
static void pack_panel(const Conv3x3 *conv, int64_t panel, float *to, int64_t apart) {
  for (int64_t lane = 0; lane < PANEL; lane += LANES) {
    int64_t first = panel * PANEL + lane;
    if (conv->packing.places == 1)
      gather_rows(conv, first, to + lane);
    else if (conv->tiles.width == 4)
      transform_rows(2, 4, conv, first, to + lane, apart);
    else
      transform_rows(2, 2, conv, first, to + lane, apart);
  }
}

#endif
