// A linear layer of few images does little but read its kernel: 411 MB for fc6 of vgg16. Behind a
// ReLU most inputs are zero (87 % of pool5), and a row of the kernel that meets only zeros adds
// nothing: it is not read. That is exact for every finite kernel. NaN is no zero.
//
// The depth falls into parts, whose sums join at the end; within a part, chains of 8 products are
// added to groups of 8 chains (pairwise summation, Higham 2002, section 4.2). The result does not
// depend on how many workers there are.
//
// This file is compiled once for each instruction set; LEVEL is the name that its functions get.

#include "linear.h"

#include <string.h>

#include "vectors.h"

enum { PARTS = 16, CHAINS = 8 };  // of the depth, and of a group

// sums (rows, outputs) += x times `count` rows of the kernel, in one chain.
INLINE void add_chain(const Linear *linear, const int64_t *at, int64_t count, float *sums) {
  for (int64_t column = 0; column < linear->outputs; column += LANES) {
    int64_t width = linear->outputs - column;
    Vector kernel[CHAIN];
    for (int64_t i = 0; i < count; i++)
      kernel[i] = load_some(linear->kernel + at[i] * linear->outputs + column, width);
    for (int64_t row = 0; row < linear->rows; row++) {
      const float *x = linear->x + row * linear->depth;
      Vector chain = x[at[0]] * kernel[0];
      for (int64_t i = 1; i < count; i++) chain = chain + x[at[i]] * kernel[i];
      float *to = sums + row * linear->outputs + column;
      store_some(to, load_some(to, width) + chain, width);
    }
  }
}

INLINE void add_and_clear(float *to, float *from, int64_t floats) {
  for (int64_t i = 0; i < floats; i += LANES) {
    Vector sum = load_some(to + i, floats - i) + load_some(from + i, floats - i);
    store_some(to + i, sum, floats - i);
    store_some(from + i, (Vector){0}, floats - i);
  }
}

static int is_needed(const Linear *linear, int64_t k) {
  for (int64_t row = 0; row < linear->rows; row++)
    if (!(linear->x[row * linear->depth + k] == 0)) return 1;
  return 0;
}

static int64_t floats(const Linear *linear) { return linear->rows * linear->outputs; }

// A part's sums, and behind them its group's.
static float *sums_of(const Linear *linear, int64_t part) {
  return linear->loops.shared + part * 2 * floats(linear);
}

static void plan(Loops *loops, int64_t workers) {
  (void)workers;
  loops->first_turns = PARTS;
  loops->second_turns = 1;
  loops->shared_floats = PARTS * 2 * floats((const Linear *)loops);
  loops->worker_floats = 0;
}

static void first_turn(const Loops *loops, int64_t part, float *room) {
  (void)room;
  const Linear *linear = (const Linear *)loops;
  float *sums = sums_of(linear, part), *group = sums + floats(linear);
  memset(sums, 0, 2 * floats(linear) * sizeof(float));
  int64_t at[CHAIN], count = 0, chains = 0;
  int64_t end = (part + 1) * linear->depth / PARTS;
  for (int64_t k = part * linear->depth / PARTS; k < end; k++) {
    if (is_needed(linear, k)) at[count++] = k;
    if (count < CHAIN) continue;
    add_chain(linear, at, CHAIN, group);
    count = 0;
    if (++chains % CHAINS == 0) add_and_clear(sums, group, floats(linear));
  }
  if (count) add_chain(linear, at, count, group);
  add_and_clear(sums, group, floats(linear));
}

static void second_turn(const Loops *loops, int64_t turn, float *room) {
  (void)turn;
  (void)room;
  const Linear *linear = (const Linear *)loops;
  for (int64_t apart = 1; apart < PARTS; apart *= 2)
    for (int64_t part = 0; part < PARTS; part += 2 * apart)
      add_and_clear(sums_of(linear, part), sums_of(linear, part + apart), floats(linear));
  memcpy(linear->y, loops->shared, floats(linear) * sizeof(float));
}

const Operation LEVEL = {plan, first_turn, second_turn};
