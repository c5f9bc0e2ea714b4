// Winograd's minimal filtering F(2x2, 3x3), with float32 sums in short chains.
//
// A 2x2 tile of outputs takes 36 products for each pair of channels, or 16 after the 4x4 tile of
// inputs d and the kernel g were transformed by sums and differences (Lavin & Gray 2016,
// arXiv:1509.09308, equations 6 to 12):
//     y = A' [(G g G') * (B' d B)] A
//     B' = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1]
//     G  = [1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1]     A' = [1 1 1 0; 0 1 -1 -1]
// Over all channels these are 16 matrix products, (tiles, inputs) x (inputs, outputs). A task
// transforms a block of tiles, small enough to stay in the cache, and goes through the outputs in
// panels of two vectors: 16 products of the panel, and the way back, with bias, ReLU and pooling.
//
// With few inputs (an image's colours) the transforms cost more than they save, and on maps of a few
// pixels, most of them beside the edge, direct sums are shorter. There the products are direct: the
// "places" are the tile's four outputs, and a row has the nine neighbours of one.
//
// The products are float32. The transforms of the kernel and of the outputs are float64 and rounded
// once, the bias with them: they are a small part of the work, and would be half of the error.
//
// This file is compiled once for each instruction set; LEVEL is the name that its functions get.

#include "tiles.h"
#include "vectors.h"

enum {
  CACHE = 128 * 1024,     // floats of a block's transformed inputs and products, where they fit
  LEAST_BLOCK = 6 * ROWS, // tiles of a block, unless there are few: each reads all of the kernel
};

// Both hand NaN on, as PyTorch does; zero is +0.
INLINE Vector pick(Mask where, Vector v, Vector other) {
  return (Vector)(((Mask)v & where) | ((Mask)other & ~where));
}
INLINE Vector relu(Vector v) { return (Vector)((Mask)v & ~(v <= 0)); }
INLINE Vector larger(Vector v, Vector other) { return pick((v > other) | (v != v), v, other); }

static void plan(Loops *loops, int64_t workers) {
  Conv3x3 *conv = (Conv3x3 *)loops;
  const Images *x = &conv->x;
  int direct = is_direct(x);
  conv->tiles.down = conv->pool ? x->height / 2 : pieces(x->height, 2);
  conv->tiles.across = conv->pool ? x->width / 2 : pieces(x->width, 2);
  conv->tiles.count = x->count * conv->tiles.down * conv->tiles.across;
  conv->depth = padded(direct ? 9 * x->channels : x->channels, CHAIN);
  conv->panels = pieces(conv->outputs, PANEL);
  conv->places = direct ? 4 : 16;
  conv->kernel_places = direct ? 1 : 16;
  int64_t block = CACHE / (conv->places * (conv->depth + PANEL));
  int64_t fair = pieces(conv->tiles.count, 2 * workers);  // every worker finds some to do
  block = least(block > LEAST_BLOCK ? block : LEAST_BLOCK, fair);
  conv->block = block > ROWS ? block / ROWS * ROWS : ROWS;
  conv->blocks = pieces(conv->tiles.count, conv->block);
  conv->kernel_stride = conv->depth * PANEL + APART;
  conv->input_stride = conv->block * conv->depth + APART;
  conv->product_stride = conv->block * PANEL + APART;
  int64_t kernel = conv->kernel_places * conv->kernel_stride;
  int64_t input = conv->places * conv->input_stride;
  conv->by_panels = conv->blocks * input < conv->panels * kernel;
  loops->first_turns = conv->by_panels ? conv->blocks : conv->panels;
  loops->second_turns = conv->by_panels ? conv->panels : conv->blocks;
  loops->shared_floats = conv->by_panels ? conv->blocks * input : conv->panels * kernel;
  loops->worker_floats =
      (conv->by_panels ? kernel : input) + conv->places * conv->product_stride;
}

// The kernel: from (3, 3, inputs, outputs) to (panels, places, depth, PANEL).

INLINE void kernel_1d(Doubles g0, Doubles g1, Doubles g2, Doubles out[4]) {  // G g
  Doubles outer = 0.5 * (g0 + g2), inner = 0.5 * g1;
  out[0] = g0;
  out[1] = outer + inner;
  out[2] = outer - inner;
  out[3] = g2;
}

static void transform_kernel(const Conv3x3 *conv, int64_t panel, float *to) {
  int64_t c = conv->x.channels;
  for (int64_t lane = 0; lane < PANEL; lane += LANES) {
    int64_t first = panel * PANEL + lane, count = conv->outputs - first;
    const float *from = conv->kernel + first;
    if (is_direct(&conv->x)) {
      for (int64_t i = 0; i < conv->depth; i++)
        store(to + i * PANEL + lane, load_some(from + i * conv->outputs, i < 9 * c ? count : 0));
      continue;
    }
    for (int64_t i = 0; i < conv->depth; i++) {
      Doubles down[4][3], across[4];
      for (int k = 0; k < 3; k++) {
        Doubles g[3], column[4];
        for (int j = 0; j < 3; j++)
          g[j] = widen(
              load_some(from + ((3 * j + k) * c + i) * conv->outputs, i < c ? count : 0));
        kernel_1d(g[0], g[1], g[2], column);
        for (int j = 0; j < 4; j++) down[j][k] = column[j];
      }
      for (int j = 0; j < 4; j++) {
        kernel_1d(down[j][0], down[j][1], down[j][2], across);
        for (int k = 0; k < 4; k++)
          store(to + (4 * j + k) * conv->kernel_stride + i * PANEL + lane, rounded(across[k]));
      }
    }
  }
}

// The inputs: of each tile, a row (depth) at every place.

static void transform_inputs(const Conv3x3 *conv, int64_t block, float *to) {
  int64_t first = block * conv->block, count = least(conv->block, conv->tiles.count - first);
  for (int64_t i = 0; i < count; i++) {
    Tile tile = tile_at(&conv->tiles, first + i);
    if (is_direct(&conv->x))
      gather_tile(&conv->x, tile, conv->depth, to + i * conv->depth, conv->input_stride);
    else
      transform_tile(&conv->x, tile, 0, conv->depth, to + i * conv->depth,
                     conv->input_stride);
  }
  int64_t rest = padded(count, ROWS) - count;
  for (int64_t place = 0; place < conv->places; place++)
    memset(to + place * conv->input_stride + count * conv->depth, 0,
           rest * conv->depth * sizeof(float));
}

// The outputs: a tile's products at every place, from `from` on, to its four outputs, and to y.

INLINE void output_1d(Doubles m0, Doubles m1, Doubles m2, Doubles m3, Doubles out[2]) {  // A' m
  out[0] = m0 + (m1 + m2);
  out[1] = (m1 - m2) - m3;
}

INLINE void outputs_of(const Conv3x3 *conv, const float *from, Doubles out[4]) {
  if (conv->places == 4) {
    for (int i = 0; i < 4; i++) out[i] = widen(load(from + i * conv->product_stride));
    return;
  }
  Doubles down[2][4];
  for (int k = 0; k < 4; k++) {
    Doubles m[4], column[2];
    for (int j = 0; j < 4; j++) m[j] = widen(load(from + (4 * j + k) * conv->product_stride));
    output_1d(m[0], m[1], m[2], m[3], column);
    for (int j = 0; j < 2; j++) down[j][k] = column[j];
  }
  for (int j = 0; j < 2; j++)
    output_1d(down[j][0], down[j][1], down[j][2], down[j][3], out + 2 * j);
}

static void finish(const Conv3x3 *conv, Tile tile, int64_t panel, const float *from) {
  for (int64_t lane = 0; lane < PANEL; lane += LANES) {
    int64_t first = panel * PANEL + lane, count = conv->outputs - first;
    if (count <= 0) return;
    Doubles bias = widen(conv->bias ? load_some(conv->bias + first, count) : (Vector){0}), sums[4];
    Vector out[4];
    outputs_of(conv, from + lane, sums);
    for (int i = 0; i < 4; i++) out[i] = rounded(sums[i] + bias);
    if (conv->pool) {  // ReLU is monotone: the largest stays the largest
      Vector v = larger(larger(out[0], out[1]), larger(out[2], out[3]));
      int64_t line = tile.image * (conv->x.height / 2) + tile.row / 2;
      float *to = conv->y + (line * (conv->x.width / 2) + tile.column / 2) * conv->outputs + first;
      store_some(to, conv->relu ? relu(v) : v, count);
      continue;
    }
    for (int i = 0; i < 4; i++) {
      int64_t row = tile.row + i / 2, column = tile.column + i % 2;
      if (row >= conv->x.height || column >= conv->x.width) continue;
      Vector v = out[i];
      int64_t line = tile.image * conv->x.height + row;
      float *to = conv->y + (line * conv->x.width + column) * conv->outputs + first;
      store_some(to, conv->relu ? relu(v) : v, count);
    }
  }
}

static void multiply_rows(const Conv3x3 *conv, const float *inputs, const float *kernel,
                          float *to) {
  Vector product[ROWS][2];
  multiply(inputs, conv->depth, 1, kernel, conv->depth, product);
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < 2; v++) store(to + r * PANEL + v * LANES, product[r][v]);
}

static void multiply_block(const Conv3x3 *conv, int64_t block, int64_t panel, const float *inputs,
                           const float *kernel, float *products) {
  int64_t first = block * conv->block, count = least(conv->block, conv->tiles.count - first);
  for (int64_t place = 0; place < conv->places; place++)
    for (int64_t row = 0; row < count; row += ROWS)
      multiply_rows(conv, inputs + place * conv->input_stride + row * conv->depth,
                    kernel + place % conv->kernel_places * conv->kernel_stride,
                    products + place * conv->product_stride + row * PANEL);
  for (int64_t i = 0; i < count; i++)
    finish(conv, tile_at(&conv->tiles, first + i), panel, products + i * PANEL);
}

// Two loops: what all share is transformed first, the kernel or, where they are fewer, the inputs.

static float *shared_panel(const Conv3x3 *conv, int64_t panel) {
  return conv->loops.shared + panel * conv->kernel_places * conv->kernel_stride;
}

static float *shared_block(const Conv3x3 *conv, int64_t block) {
  return conv->loops.shared + block * conv->places * conv->input_stride;
}

static void first_turn(const Loops *loops, int64_t turn, float *room) {
  const Conv3x3 *conv = (const Conv3x3 *)loops;
  (void)room;
  if (conv->by_panels)
    transform_inputs(conv, turn, shared_block(conv, turn));
  else
    transform_kernel(conv, turn, shared_panel(conv, turn));
}

static void second_turn(const Loops *loops, int64_t turn, float *room) {
  const Conv3x3 *conv = (const Conv3x3 *)loops;
  float *products = room + loops->worker_floats - conv->places * conv->product_stride;
  if (conv->by_panels) {
    transform_kernel(conv, turn, room);
    for (int64_t block = 0; block < conv->blocks; block++)
      multiply_block(conv, block, turn, shared_block(conv, block), room, products);
  } else {
    transform_inputs(conv, turn, room);
    for (int64_t panel = 0; panel < conv->panels; panel++)
      multiply_block(conv, turn, panel, room, shared_panel(conv, panel), products);
  }
}

const Operation LEVEL = {plan, first_turn, second_turn};
