// y = x times a kernel, for few rows of x.
#ifndef FLAXVGG_LINEAR_H
#define FLAXVGG_LINEAR_H

#include "loops.h"

typedef struct {
  Loops loops;
  const float *x, *kernel;  // (rows, depth), (depth, outputs)
  float *y;                 // (rows, outputs)
  int64_t rows, depth, outputs;
} Linear;

extern const Operation linear_baseline, linear_avx2, linear_avx512;

#endif
