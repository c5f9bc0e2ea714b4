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
// With few inputs (an image's colours) the transforms cost more than they save. There the products
// are direct: the "places" are the tile's four outputs, and a row has the nine neighbours of one.
//
// The order of the sums is what keeps the result close to the truth: chains of 8 products, 8 chains
// to a group, groups last (pairwise summation, Higham 2002, section 4.2). A processor adds while it
// multiplies, so the short chains cost nothing.
//
// This file is compiled once for each instruction set; LEVEL is the name that its functions get.

#include "conv3x3.h"

#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

enum {
  ROWS = 6,               // tiles, and
  PANEL = 2 * LANES,      // outputs, whose sums are held in registers
  CHAIN = 8,              // products added one after another
  GROUP = 8 * CHAIN,      // products whose chains are added before they join the rest
  LEAST_INPUTS = 16,      // for which it pays to transform
  CACHE = 128 * 1024,     // floats of a block's transformed inputs and products, where they fit
  LEAST_BLOCK = 6 * ROWS, // tiles of a block, unless there are few: each reads all of the kernel
  APART = 16,             // floats between places, lest they fall on the same lines of the cache
};

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Mask __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE Vector load(const float *from) { return *(const Vector *)from; }
INLINE void store(float *to, Vector v) { *(Vector *)to = v; }
INLINE Vector pick(Mask where, Vector v, Vector other) {
  return (Vector)(((Mask)v & where) | ((Mask)other & ~where));
}
// Both hand NaN on, as PyTorch does; zero is +0.
INLINE Vector relu(Vector v) { return (Vector)((Mask)v & ~(v <= 0)); }
INLINE Vector larger(Vector v, Vector other) { return pick((v > other) | (v != v), v, other); }

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t pieces(int64_t all, int64_t size) { return (all + size - 1) / size; }
INLINE int64_t padded(int64_t all, int64_t size) { return pieces(all, size) * size; }

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

static int is_direct(const Conv3x3 *conv) { return conv->inputs < LEAST_INPUTS; }

static void plan(Conv3x3 *conv, int64_t workers) {
  int direct = is_direct(conv);
  conv->tiles_down = conv->pool ? conv->height / 2 : pieces(conv->height, 2);
  conv->tiles_across = conv->pool ? conv->width / 2 : pieces(conv->width, 2);
  conv->tiles = conv->images * conv->tiles_down * conv->tiles_across;
  conv->depth = padded(direct ? 9 * conv->inputs : conv->inputs, CHAIN);
  conv->panels = pieces(conv->outputs, PANEL);
  conv->places = direct ? 4 : 16;
  conv->kernel_places = direct ? 1 : 16;
  int64_t block = CACHE / (conv->places * (conv->depth + PANEL));
  int64_t fair = pieces(conv->tiles, 2 * workers);  // every worker finds some to do
  block = least(block > LEAST_BLOCK ? block : LEAST_BLOCK, fair);
  conv->block = block > ROWS ? block / ROWS * ROWS : ROWS;
  conv->blocks = pieces(conv->tiles, conv->block);
  conv->kernel_stride = conv->depth * PANEL + APART;
  conv->input_stride = conv->block * conv->depth + APART;
  conv->product_stride = conv->block * PANEL + APART;
  int64_t kernel = conv->kernel_places * conv->kernel_stride;
  int64_t input = conv->places * conv->input_stride;
  conv->by_panels = conv->blocks * input < conv->panels * kernel;
  conv->shared_floats = conv->by_panels ? conv->blocks * input : conv->panels * kernel;
  conv->worker_floats =
      (conv->by_panels ? kernel : input) + conv->places * conv->product_stride;
}

// The kernel: from (3, 3, inputs, outputs) to (panels, places, depth, PANEL).

INLINE void kernel_1d(Vector g0, Vector g1, Vector g2, Vector out[4]) {  // G g
  Vector outer = (g0 + g2) * 0.5f, inner = g1 * 0.5f;
  out[0] = g0;
  out[1] = outer + inner;
  out[2] = outer - inner;
  out[3] = g2;
}

static void transform_kernel(const Conv3x3 *conv, int64_t panel, float *to) {
  int64_t c = conv->inputs;
  for (int64_t lane = 0; lane < PANEL; lane += LANES) {
    int64_t first = panel * PANEL + lane, count = conv->outputs - first;
    const float *from = conv->kernel + first;
    if (is_direct(conv)) {
      for (int64_t i = 0; i < conv->depth; i++)
        store(to + i * PANEL + lane, load_some(from + i * conv->outputs, i < 9 * c ? count : 0));
      continue;
    }
    for (int64_t i = 0; i < conv->depth; i++) {
      Vector down[4][3], across[4];
      for (int k = 0; k < 3; k++) {
        Vector g[3], column[4];
        for (int j = 0; j < 3; j++)
          g[j] = load_some(from + ((3 * j + k) * c + i) * conv->outputs, i < c ? count : 0);
        kernel_1d(g[0], g[1], g[2], column);
        for (int j = 0; j < 4; j++) down[j][k] = column[j];
      }
      for (int j = 0; j < 4; j++) {
        kernel_1d(down[j][0], down[j][1], down[j][2], across);
        for (int k = 0; k < 4; k++)
          store(to + (4 * j + k) * conv->kernel_stride + i * PANEL + lane, across[k]);
      }
    }
  }
}

// The inputs: of each tile, a row (depth) at every place.

typedef struct {
  int64_t image, row, column;  // of the tile's first output
} Tile;

INLINE Tile tile_at(const Conv3x3 *conv, int64_t i) {
  int64_t across = i % conv->tiles_across, line = i / conv->tiles_across;
  return (Tile){line / conv->tiles_down, 2 * (line % conv->tiles_down), 2 * across};
}

// A pixel of the tile's 4x4 neighbourhood, or NULL outside the image.
INLINE const float *pixel(const Conv3x3 *conv, Tile tile, int64_t down, int64_t across) {
  int64_t row = tile.row + down - 1, column = tile.column + across - 1;
  if (row < 0 || row >= conv->height || column < 0 || column >= conv->width) return 0;
  return conv->x + ((tile.image * conv->height + row) * conv->width + column) * conv->inputs;
}

INLINE void input_1d(Vector d0, Vector d1, Vector d2, Vector d3, Vector out[4]) {  // B' d
  out[0] = d0 - d2;
  out[1] = d1 + d2;
  out[2] = d2 - d1;
  out[3] = d1 - d3;
}

static void transform_tile(const Conv3x3 *conv, Tile tile, float *to) {
  const float *from[16];
  for (int i = 0; i < 16; i++) from[i] = pixel(conv, tile, i / 4, i % 4);
  for (int64_t c = 0; c < conv->depth; c += LANES) {
    int64_t count = conv->inputs - c, room = conv->depth - c;
    Vector down[4][4], out[4];
    for (int k = 0; k < 4; k++) {
      Vector d[4], column[4];
      for (int j = 0; j < 4; j++) {
        const float *p = from[4 * j + k];
        d[j] = p ? load_some(p + c, count) : (Vector){0};
      }
      input_1d(d[0], d[1], d[2], d[3], column);
      for (int j = 0; j < 4; j++) down[j][k] = column[j];
    }
    for (int j = 0; j < 4; j++) {
      input_1d(down[j][0], down[j][1], down[j][2], down[j][3], out);
      for (int k = 0; k < 4; k++)
        store_some(to + (4 * j + k) * conv->input_stride + c, out[k], room);
    }
  }
}

static void gather_tile(const Conv3x3 *conv, Tile tile, float *to) {
  int64_t c = conv->inputs;
  float patch[4][4 * LEAST_INPUTS];
  for (int i = 0; i < 16; i++) {
    const float *p = pixel(conv, tile, i / 4, i % 4);
    for (int64_t j = 0; j < c; j++) patch[i / 4][i % 4 * c + j] = p ? p[j] : 0;
  }
  for (int place = 0; place < 4; place++) {
    float *row = to + place * conv->input_stride;
    for (int i = 0; i < 3; i++)
      memcpy(row + 3 * i * c, patch[place / 2 + i] + place % 2 * c, 3 * c * sizeof(float));
    for (int64_t j = 9 * c; j < conv->depth; j++) row[j] = 0;
  }
}

static void transform_inputs(const Conv3x3 *conv, int64_t block, float *to) {
  int64_t first = block * conv->block, count = least(conv->block, conv->tiles - first);
  for (int64_t i = 0; i < count; i++) {
    Tile tile = tile_at(conv, first + i);
    if (is_direct(conv))
      gather_tile(conv, tile, to + i * conv->depth);
    else
      transform_tile(conv, tile, to + i * conv->depth);
  }
  int64_t rest = padded(count, ROWS) - count;
  for (int64_t place = 0; place < conv->places; place++)
    memset(to + place * conv->input_stride + count * conv->depth, 0,
           rest * conv->depth * sizeof(float));
}

// to (ROWS, PANEL) = inputs (ROWS, depth) times kernel (depth, PANEL).
static void multiply(const float *inputs, const float *kernel, int64_t depth, float *to) {
  Vector all[ROWS][2];
  for (int64_t group = 0; group < depth; group += GROUP) {
    Vector sum[ROWS][2];
    for (int64_t chain = group; chain < least(depth, group + GROUP); chain += CHAIN) {
      Vector part[ROWS][2];
#pragma GCC unroll 8
      for (int i = 0; i < CHAIN; i++) {
        const float *k = kernel + (chain + i) * PANEL;
        Vector first = load(k), second = load(k + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
          float d = inputs[r * depth + chain + i];
          part[r][0] = i ? part[r][0] + d * first : d * first;
          part[r][1] = i ? part[r][1] + d * second : d * second;
        }
      }
      for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < 2; v++)
          if (chain == group)
            sum[r][v] = part[r][v];
          else
            sum[r][v] += part[r][v];
    }
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < 2; v++)
        if (group == 0)
          all[r][v] = sum[r][v];
        else
          all[r][v] += sum[r][v];
  }
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < 2; v++) store(to + r * PANEL + v * LANES, all[r][v]);
}

// The outputs: a tile's products at every place, from `from` on, to its four outputs, and to y.

INLINE void output_1d(Vector m0, Vector m1, Vector m2, Vector m3, Vector out[2]) {  // A' m
  out[0] = m0 + (m1 + m2);
  out[1] = (m1 - m2) - m3;
}

INLINE void outputs_of(const Conv3x3 *conv, const float *from, Vector out[4]) {
  Vector m[16], down[2][4];
  for (int i = 0; i < conv->places; i++) m[i] = load(from + i * conv->product_stride);
  if (is_direct(conv)) {
    for (int i = 0; i < 4; i++) out[i] = m[i];
    return;
  }
  for (int k = 0; k < 4; k++) {
    Vector column[2];
    output_1d(m[k], m[4 + k], m[8 + k], m[12 + k], column);
    for (int j = 0; j < 2; j++) down[j][k] = column[j];
  }
  for (int j = 0; j < 2; j++) output_1d(down[j][0], down[j][1], down[j][2], down[j][3], out + 2 * j);
}

static void finish(const Conv3x3 *conv, Tile tile, int64_t panel, const float *from) {
  for (int64_t lane = 0; lane < PANEL; lane += LANES) {
    int64_t first = panel * PANEL + lane, count = conv->outputs - first;
    if (count <= 0) return;
    Vector bias = conv->bias ? load_some(conv->bias + first, count) : (Vector){0}, out[4];
    outputs_of(conv, from + lane, out);
    if (conv->pool) {  // bias and ReLU are monotone: the largest stays the largest
      Vector v = larger(larger(out[0], out[1]), larger(out[2], out[3])) + bias;
      int64_t line = tile.image * (conv->height / 2) + tile.row / 2;
      float *to = conv->y + (line * (conv->width / 2) + tile.column / 2) * conv->outputs + first;
      store_some(to, conv->relu ? relu(v) : v, count);
      continue;
    }
    for (int i = 0; i < 4; i++) {
      int64_t row = tile.row + i / 2, column = tile.column + i % 2;
      if (row >= conv->height || column >= conv->width) continue;
      Vector v = out[i] + bias;
      int64_t line = tile.image * conv->height + row;
      float *to = conv->y + (line * conv->width + column) * conv->outputs + first;
      store_some(to, conv->relu ? relu(v) : v, count);
    }
  }
}

static void multiply_block(const Conv3x3 *conv, int64_t block, int64_t panel, const float *inputs,
                           const float *kernel, float *products) {
  int64_t first = block * conv->block, count = least(conv->block, conv->tiles - first);
  for (int64_t place = 0; place < conv->places; place++)
    for (int64_t row = 0; row < count; row += ROWS)
      multiply(inputs + place * conv->input_stride + row * conv->depth,
               kernel + place % conv->kernel_places * conv->kernel_stride, conv->depth,
               products + place * conv->product_stride + row * PANEL);
  for (int64_t i = 0; i < count; i++)
    finish(conv, tile_at(conv, first + i), panel, products + i * PANEL);
}

// Two loops: what all share is transformed first, the kernel or, where they are fewer, the inputs.

static float *shared_panel(const Conv3x3 *conv, int64_t panel) {
  return conv->shared + panel * conv->kernel_places * conv->kernel_stride;
}

static float *shared_block(const Conv3x3 *conv, int64_t block) {
  return conv->shared + block * conv->places * conv->input_stride;
}

static int64_t first_turns(const Conv3x3 *conv) {
  return conv->by_panels ? conv->blocks : conv->panels;
}

static int64_t second_turns(const Conv3x3 *conv) {
  return conv->by_panels ? conv->panels : conv->blocks;
}

static void first_turn(const Conv3x3 *conv, int64_t turn, float *room) {
  (void)room;
  if (conv->by_panels)
    transform_inputs(conv, turn, shared_block(conv, turn));
  else
    transform_kernel(conv, turn, shared_panel(conv, turn));
}

static void second_turn(const Conv3x3 *conv, int64_t turn, float *room) {
  float *products = room + conv->worker_floats - conv->places * conv->product_stride;
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

const Conv3x3Functions LEVEL = {plan, first_turns, first_turn, second_turns, second_turn};
