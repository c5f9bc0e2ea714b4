// A 3x3 convolution with padding 1, and what may follow it: bias, ReLU, 2x2 max pooling.
#ifndef FLAXVGG_CONV3X3_H
#define FLAXVGG_CONV3X3_H

#include <stdint.h>

typedef struct {
  const float *x, *kernel, *bias;            // (n, h, w, c), (3, 3, c, o), (o) or NULL
  float *y;                                  // (n, h, w, o), or (n, h/2, w/2, o) if pooled
  int64_t images, height, width, inputs, outputs;
  int relu, pool;
  // What `plan` fills in.
  int64_t tiles_down, tiles_across, tiles;   // 2x2 tiles of the output
  int64_t block, blocks;                     // tiles that are worked on at a time
  int64_t depth, panels;                     // rows of the kernel; its columns go in panels
  int64_t places, kernel_places;             // matrix products of a tile, and kernels for them
  int64_t kernel_stride, input_stride, product_stride;  // from one place to the next, in floats
  int by_panels;                             // the inputs are shared, a turn is a panel
  int64_t shared_floats, worker_floats;      // room for what is shared, and for each worker
  float *shared;                             // that room
} Conv3x3;

// A turn of a loop; `room` is the worker's own.
typedef void Turn(const Conv3x3 *conv, int64_t turn, float *room);

// What there is for each instruction set: the first loop is over before the second begins.
typedef struct {
  void (*plan)(Conv3x3 *conv, int64_t workers);
  int64_t (*first_turns)(const Conv3x3 *conv);
  Turn *first_turn;
  int64_t (*second_turns)(const Conv3x3 *conv);
  Turn *second_turn;
} Conv3x3Functions;

extern const Conv3x3Functions conv3x3_baseline, conv3x3_avx2, conv3x3_avx512;

#endif
