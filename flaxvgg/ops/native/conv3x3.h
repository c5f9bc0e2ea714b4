// A 3x3 convolution with padding 1, and what may follow it: bias, ReLU, 2x2 max pooling; and its
// derivative by the kernel.
#ifndef FLAXVGG_CONV3X3_H
#define FLAXVGG_CONV3X3_H

#include "loops.h"

typedef struct {
  const float *data;  // (n, h, w, c)
  int64_t count, height, width, channels;
} Images;

typedef struct {
  int64_t height, width;        // of a tile
  int64_t down, across, count;  // of an image, and of all of them
} Tiles;

// A kernel as the products take it: (places, panels, chunk), a chunk for one product of a panel.
typedef struct {
  int64_t places, panels, chunk;
} Packing;

typedef struct {
  Loops loops;
  Images x;
  const float *kernel;                       // (3, 3, c, o); if turned, the (3, 3, o, c) of which
                                             // this is the transpose
  const float *slopes;                       // (2) that the kernel's positive and its other values
                                             // are multiplied by, or NULL
  const float *bias;                         // (o) or NULL
  const float *packed;                       // the kernel packed, or NULL
  float *y;                                  // (n, h, w, o), or (n, h/2, w/2, o) if pooled, or
                                             // NULL: then all that is wanted is
  float *packed_to;                          // the kernel packed
  int64_t outputs;
  int relu, pool, turned;
  // What `plan` fills in.
  Tiles tiles;                               // of outputs
  int64_t depth;                             // rows of the kernel
  Packing packing;
  int64_t rows;                              // of a tile in every matrix product,
  int64_t row_stride;                        // and floats from one to the next
  int64_t block, blocks;                     // tiles that are worked on at a time
  int64_t span, spans;                       // panels likewise
  int64_t input_stride, product_stride;      // from one place to the next, in floats
  int by_panels;                             // the inputs are shared; a turn takes a span and
  int64_t splits;                            // some of the blocks
} Conv3x3;

typedef struct {
  Loops loops;
  Images x, dy;                              // (n, h, w, c), (n, h, w, o)
  float *dkernel;                            // (3, 3, c, o)
  // What `plan` fills in.
  Tiles tiles;                               // 2x2 tiles of dy
  int64_t block, blocks, spans;              // tiles, and blocks of them; a turn takes a span,
  int64_t rows, row_ranges;                  // some rows of the result,
  int64_t panels, panel_ranges;              // and some panels of its columns
  int64_t places, depth;                     // matrix products, and what a tile adds to their depth
  int64_t row_stride, input_stride, panel_stride, output_stride;  // in floats
  int64_t sums;                              // float64 sums of a turn
} ByKernel;

extern const Operation conv3x3_baseline, conv3x3_avx2, conv3x3_avx512;
extern const Operation by_kernel_baseline, by_kernel_avx2, by_kernel_avx512;

#endif
