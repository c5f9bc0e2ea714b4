// Images in 2x2 tiles, and what a convolution takes from a tile's 4x4 neighbourhood.
#ifndef FLAXVGG_TILES_H
#define FLAXVGG_TILES_H

#include <string.h>

#include "conv3x3.h"
#include "vectors.h"

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
  return (Tile){line / tiles->down, 2 * (line % tiles->down), 2 * across};
}

// A pixel of the tile, or beside it, or NULL outside the image.
INLINE const float *pixel(const Images *x, Tile tile, int64_t down, int64_t across) {
  int64_t row = tile.row + down, column = tile.column + across;
  if (row < 0 || row >= x->height || column < 0 || column >= x->width) return 0;
  return x->data + ((tile.image * x->height + row) * x->width + column) * x->channels;
}

INLINE void input_1d(Vector d0, Vector d1, Vector d2, Vector d3, Vector out[4]) {  // B' d
  out[0] = d0 - d2;
  out[1] = d1 + d2;
  out[2] = d2 - d1;
  out[3] = d1 - d3;
}

// B' d B: `count` channels from `first` on, and zeros where there are no more; `apart` floats lie
// between the 16 places.
static void transform_tile(const Images *x, Tile tile, int64_t first, int64_t count, float *to,
                           int64_t apart) {
  const float *from[16];
  for (int i = 0; i < 16; i++) from[i] = pixel(x, tile, i / 4 - 1, i % 4 - 1);
  for (int64_t c = 0; c < count; c += LANES) {
    int64_t there = x->channels - first - c;
    Vector down[4][4], out[4];
    for (int k = 0; k < 4; k++) {
      Vector d[4], column[4];
      for (int j = 0; j < 4; j++) {
        const float *p = from[4 * j + k];
        d[j] = p ? load_some(p + first + c, there) : (Vector){0};
      }
      input_1d(d[0], d[1], d[2], d[3], column);
      for (int j = 0; j < 4; j++) down[j][k] = column[j];
    }
    for (int j = 0; j < 4; j++) {
      input_1d(down[j][0], down[j][1], down[j][2], down[j][3], out);
      for (int k = 0; k < 4; k++) store_some(to + (4 * j + k) * apart + c, out[k], count - c);
    }
  }
}

// The nine neighbours of each of the tile's four pixels, `count` floats with zeros behind.
static void gather_tile(const Images *x, Tile tile, int64_t count, float *to, int64_t apart) {
  int64_t c = x->channels;
  for (int place = 0; place < 4; place++) {
    float *at = to + place * apart;
    int64_t column = tile.column + place % 2 - 1;  // of the first of three
    int64_t left = column < 0, right = least(3, x->width - column);
    memset(at, 0, count * sizeof(float));
    for (int64_t i = 0; i < 3; i++) {
      int64_t row = tile.row + place / 2 + i - 1;
      if (row < 0 || row >= x->height || right <= left) continue;
      const float *from = x->data + ((tile.image * x->height + row) * x->width + column) * c;
      memcpy(at + (3 * i + left) * c, from + left * c, (right - left) * c * sizeof(float));
    }
  }
}

#endif
