// Images in tiles, and what a convolution takes from a tile's neighbourhood.
#ifndef FLAXVGG_TILES_H
#define FLAXVGG_TILES_H

#include <string.h>

#include "conv3x3.h"
#include "winograd.h"

// Where it pays to transform.
enum { LEAST_INPUTS = 16, LEAST_PIXELS = 5 * 4 };

INLINE int is_direct(const Images *x) {
  return x->channels < LEAST_INPUTS || x->height * x->width < LEAST_PIXELS;
}

typedef struct {
  int64_t image, row, column;  // of the tile's first pixel
} Tile;

INLINE Tile tile_at(const Tiles *tiles, int64_t i) {
  int64_t across = i % tiles->across, line = i / tiles->across;
  return (Tile){line / tiles->down, tiles->height * (line % tiles->down), tiles->width * across};
}

// A pixel of the tile, or beside it, or NULL outside the image.
INLINE const float *pixel(const Images *x, Tile tile, int64_t down, int64_t across) {
  int64_t row = tile.row + down, column = tile.column + across;
  if (row < 0 || row >= x->height || column < 0 || column >= x->width) return 0;
  return x->data + ((tile.image * x->height + row) * x->width + column) * x->channels;
}

// B' d B of a tile of height x width outputs: `count` channels from `first` on, and zeros where
// there are no more; `apart` floats lie between the (height + 2) (width + 2) places. Where it is
// `whole`, all pixels and channels are there, and nothing has to be asked on the way.

INLINE void transform_vector(int height, int width, int whole, const float *const pixels[36],
                             int64_t c, int64_t there, int64_t count, float *to, int64_t apart) {
  const int m = height + 2, n = width + 2;
  Real down[6][6], d[6], out[6];
  for (int k = 0; k < n; k++) {
    for (int j = 0; j < m; j++) {
      const float *p = pixels[n * j + k];
      d[j] = whole ? real(load(p + c)) : p ? real(load_some(p + c, there - c)) : (Real){0};
    }
    input_1d(height, d, out);
    for (int j = 0; j < m; j++) down[j][k] = out[j];
  }
  for (int j = 0; j < m; j++) {
    input_1d(width, down[j], out);
    for (int k = 0; k < n; k++)
      store_some(to + (n * j + k) * apart + c, vector(out[k]), whole ? LANES : count - c);
  }
}

INLINE void transform_tile(int height, int width, const Images *x, Tile tile, int64_t first,
                           int64_t count, float *to, int64_t apart) {
  const int m = height + 2, n = width + 2;
  const float *pixels[36];
  int64_t there = x->channels - first;
  int whole = there >= count && count % LANES == 0;
  for (int j = 0; j < m; j++)
    for (int k = 0; k < n; k++) {
      const float *p = pixel(x, tile, j - 1, k - 1);
      pixels[n * j + k] = p ? p + first : 0;
      whole &= p != 0;
    }
  for (int64_t c = 0; c < count; c += LANES)
    if (whole)
      transform_vector(height, width, 1, pixels, c, there, count, to, apart);
    else
      transform_vector(height, width, 0, pixels, c, there, count, to, apart);
}

// The nine neighbours of each of the four pixels of a 2x2 tile, `count` floats with zeros behind.
static void gather_tile(const Images *x, Tile tile, int64_t count, float *to, int64_t apart) {
  int64_t c = x->channels;
  for (int pixel = 0; pixel < 4; pixel++) {
    float *at = to + pixel * apart;
    int64_t column = tile.column + pixel % 2 - 1;  // of the first of three
    int64_t left = column < 0, right = least(3, x->width - column);
    memset(at, 0, count * sizeof(float));
    for (int64_t i = 0; i < 3; i++) {
      int64_t row = tile.row + pixel / 2 + i - 1;
      if (row < 0 || row >= x->height || right <= left) continue;
      const float *from = x->data + ((tile.image * x->height + row) * x->width + column) * c;
      memcpy(at + (3 * i + left) * c, from + left * c, (right - left) * c * sizeof(float));
    }
  }
}

#endif
