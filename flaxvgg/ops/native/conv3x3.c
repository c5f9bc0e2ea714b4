// A 3x3 convolution as matrix products, with float32 sums that stay close to float64's.
//
// Most go by Winograd's minimal filtering (winograd.h). Over all channels every place of the
// transformed tiles is one matrix product, (tiles, inputs) x (inputs, outputs); its outputs go in
// panels of two vectors. F(2x4) takes 3 products for each output and pair of channels, F(2x2) 4, but
// a larger kernel is read for it, which pays on maps of many tiles. (F(4x4) would take 2.25, and its
// error on maps without structure is up to twice PyTorch's.) With few inputs (an image's colours)
// the transforms cost more than they save, and on maps of a few pixels, most of them beside the
// edge, direct sums are shorter: there is one product, whose rows are the nine neighbours of each
// pixel.
// Which one is taken depends on the height, width and channels of the images alone, and so does the
// order of every sum: the result is the same for any batch, any number of threads, and whether the
// kernel was packed before or is packed here.
//
// The products are float32: chains of 8, four chains to a group. Beyond that, what a sum of float32
// rounds off is kept, and goes first into the next group (Kahan 1965). With few inputs all sums are
// float64: they are short, and what the first layer of a network rounds is half of the network's
// error. So are the transforms, rounded once, the bias with them.
//
// A block of tiles is transformed and multiplied while it is in the cache, and a group of the depth
// goes through all of its rows before the next one does, so that its part of the kernel is read from
// the nearest cache. The next group's part, and the inputs of the rows that come next, are fetched
// meanwhile: the rows lie too far apart for the processor to foresee it.
//
// This file is compiled once for each instruction set; LEVEL is the name that its functions get.

#include "kernels.h"

enum {
  CACHE = 128 * 1024,     // floats of a block's transformed inputs, where the nearer cache has
  LEAST_ROWS = 24,        // room for so many rows; otherwise the products of all panels go to the
  FAR_ROWS = 18 * ROWS,   // farther one, and so many rows, the most, are worth the kernel's reading
  NEAR_ROWS = 9 * ROWS,   // whose sums the nearest has room for
  FEW_PANELS = 1 << 20,   // floats of panels that a worker packs for itself at a time
  LEAST_TILES = 72,       // of 2x4 in an image, for F(2x4)
  TURNS = 4,              // for each worker, so that all are done at about the same time
  AHEAD = 2,              // tiles before its turn, the place of a tile's outputs is fetched
};

// Both hand NaN on, as PyTorch does; zero is +0.
INLINE Vector relu(Vector v) { return (Vector)((Mask)v & ~(v <= 0)); }
INLINE Vector larger(Vector v, Vector other) { return pick((v > other) | (v != v), v, other); }

// The width of a tile for maps of this size; it is two high.
INLINE int64_t tile_width(const Images *x) {
  return !is_direct(x) && pieces(x->height, 2) * pieces(x->width, 4) >= LEAST_TILES ? 4 : 2;
}

static void plan(Loops *loops, int64_t workers) {
  Conv3x3 *conv = (Conv3x3 *)loops;
  const Images *x = &conv->x;
  int direct = is_direct(x);
  conv->tiles = (Tiles){.height = 2, .width = tile_width(x)};
  conv->rows = direct ? 4 : 1;
  conv->depth = padded(direct ? 9 * x->channels : x->channels, CHAIN);
  conv->packing.places = direct ? 1 : 4 * (conv->tiles.width + 2);
  conv->packing.panels = pieces(conv->outputs, PANEL);
  conv->packing.chunk = conv->depth * PANEL + APART;
  int64_t places = conv->packing.places, panels = conv->packing.panels;
  int64_t kernel = places * conv->packing.chunk;  // of a panel
  if (conv->packed_to) {
    *loops = (Loops){.first_turns = panels};
    return;
  }

  // Rows and columns of y, or of what is pooled.
  conv->tiles.down = pieces(conv->pool ? x->height / 2 * 2 : x->height, conv->tiles.height);
  conv->tiles.across = pieces(conv->pool ? x->width / 2 * 2 : x->width, conv->tiles.width);
  conv->tiles.count = x->count * conv->tiles.down * conv->tiles.across;

  conv->row_stride = direct ? conv->depth : conv->depth + APART;
  int64_t turns = workers > 1 ? TURNS * workers : 1;
  int64_t tile = places * conv->rows * conv->row_stride;  // its inputs
  int64_t block = CACHE / (tile > 0 ? tile : 1);
  int is_small = block * conv->rows >= LEAST_ROWS;  // so that the cache has enough of them
  block = is_small ? least(block, FAR_ROWS / conv->rows) : FAR_ROWS;
  conv->span = is_small ? 1 : panels;
  conv->by_panels = conv->packed ? pieces(conv->tiles.count, block) < turns && workers > 1
                                 : conv->tiles.count * tile < panels * kernel;
  if (conv->by_panels) {  // the inputs are read again for each span
    int64_t most = conv->packed ? panels : FEW_PANELS / (kernel > 0 ? kernel : 1);
    conv->span = least(panels / turns, most);
    if (conv->span < 1) conv->span = least(panels, 1);
  }
  conv->spans = conv->span ? pieces(panels, conv->span) : 0;
  int64_t splits = conv->by_panels && conv->spans ? pieces(turns, conv->spans) : turns;
  block = least(block, pieces(conv->tiles.count, splits));  // every worker finds some to do
  conv->blocks = block ? pieces(conv->tiles.count, block) : 0;
  conv->block = conv->blocks ? padded(pieces(conv->tiles.count, conv->blocks), ROWS) : 0;
  conv->blocks = conv->block ? pieces(conv->tiles.count, conv->block) : 0;
  conv->splits = least(splits, conv->blocks);

  conv->input_stride = conv->block * conv->rows * conv->row_stride;
  conv->product_stride = conv->span * conv->block * conv->rows * PANEL + APART;
  int64_t input = places * conv->input_stride;
  loops->worker_floats = places * conv->product_stride + NEAR_ROWS * PANEL;
  if (conv->by_panels) {
    loops->first_turns = conv->blocks;
    loops->second_turns = conv->spans * conv->splits;
    loops->shared_floats = conv->blocks * input;
    loops->worker_floats += conv->packed ? 0 : conv->span * kernel;
  } else {
    loops->first_turns = conv->packed ? 0 : panels;
    loops->second_turns = conv->blocks;
    loops->shared_floats = conv->packed ? 0 : panels * kernel;
    loops->worker_floats += input;
  }
}

// The inputs: of each tile, its rows (depth) at every place.

INLINE int64_t tiles_of(const Conv3x3 *conv, int64_t block) {
  return least(conv->block, conv->tiles.count - block * conv->block);
}

// The pixels of a tile that the one before it has not begin to be fetched.
static void prefetch_inputs(const Conv3x3 *conv, int64_t i) {
  if (i >= conv->tiles.count) return;
  Tile tile = tile_at(&conv->tiles, i);
  for (int64_t j = -1; j <= conv->tiles.height; j++)
    for (int64_t k = 1; k <= conv->tiles.width; k++) {
      const float *p = pixel(&conv->x, tile, j, k);
      for (int64_t c = 0; p && c < conv->x.channels; c += LINE) __builtin_prefetch(p + c);
    }
}

static void transform_inputs(const Conv3x3 *conv, int64_t block, float *to) {
  int64_t count = tiles_of(conv, block), size = conv->rows * conv->row_stride;
  for (int64_t i = 0; i < count; i++) {
    Tile tile = tile_at(&conv->tiles, block * conv->block + i);
    if (conv->packing.places == 1) {
      gather_tile(&conv->x, tile, conv->depth, to + i * size, conv->row_stride);
      continue;
    }
    prefetch_inputs(conv, block * conv->block + i + 1);
    if (conv->tiles.width == 4)
      transform_tile(2, 4, &conv->x, tile, 0, conv->depth, to + i * size, conv->input_stride);
    else
      transform_tile(2, 2, &conv->x, tile, 0, conv->depth, to + i * size, conv->input_stride);
  }
  int64_t rows = count * conv->rows, rest = padded(rows, ROWS) - rows;
  for (int64_t place = 0; place < conv->packing.places; place++)
    memset(to + place * conv->input_stride + rows * conv->row_stride, 0,
           rest * conv->row_stride * sizeof(float));
}

// to (rows, PANEL) = inputs (rows, depth) times a chunk of the kernel; `lost` (rows, PANEL) has what
// the sums so far have rounded off, from the second group on. `nth` is the group's number, or 2.

INLINE void add_group(const float *inputs, int64_t row, const float *kernel, int64_t depth, int nth,
                      int is_last, float *to, float *lost) {
  Vector sum[ROWS][2];
  for (int r = 0; nth == 2 && r < ROWS; r++)
    for (int v = 0; v < 2; v++) sum[r][v] = load(lost + r * PANEL + v * LANES);
  multiply(inputs, row, 1, kernel, depth, nth == 2, sum);
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < 2; v++) {
      int64_t at = r * PANEL + v * LANES;
      Vector after = sum[r][v];
      if (nth > 0) {
        Vector before = load(to + at);
        after = before + sum[r][v];
        if (!is_last) store(lost + at, sum[r][v] - (after - before));
      }
      store(to + at, after);
    }
}

// With few inputs, whose sums are short: float64, rounded once.
static void multiply_few(const Conv3x3 *conv, int64_t rows, const float *inputs,
                         const float *kernel, float *to) {
  double left[ROWS][9 * LEAST_INPUTS];
  Doubles right[9 * LEAST_INPUTS][2];
  int64_t depth = 9 * conv->x.channels;  // without what fills up the last chain
  for (int64_t i = 0; i < depth; i++)
    for (int v = 0; v < 2; v++) right[i][v] = widen(load(kernel + i * PANEL + v * LANES));
  for (int64_t row = 0; row < rows; row += ROWS) {
    for (int64_t r = 0; r < ROWS; r++)
      for (int64_t i = 0; i < depth; i++) left[r][i] = inputs[(row + r) * conv->row_stride + i];
    for (int v = 0; v < 2; v++) {
      Doubles sum[ROWS] = {0};
      for (int64_t i = 0; i < depth; i++)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) sum[r] += left[r][i] * right[i][v];
      for (int r = 0; r < ROWS; r++)
        store(to + (row + r) * PANEL + v * LANES, rounded(sum[r]));
    }
  }
}

static void multiply_rows(const Conv3x3 *conv, int64_t rows, const float *inputs,
                          const float *kernel, float *to, float *lost) {
  int64_t depth = conv->depth, stride = conv->row_stride;
  if (conv->x.channels < LEAST_INPUTS) {
    multiply_few(conv, rows, inputs, kernel, to);
    return;
  }
  for (int64_t group = 0; group < depth || group == 0; group += GROUP)
    for (int64_t row = 0; row < rows; row += ROWS) {
      const float *left = inputs + row * stride + group, *right = kernel + group * PANEL;
      float *sums = to + row * PANEL, *rest = lost + row * PANEL;
      int nth = least(group / GROUP, 2), is_last = depth - group <= GROUP;
      for (int64_t r = 0; r < ROWS; r++) {
        for (int64_t i = 0; i < GROUP; i += LINE) __builtin_prefetch(left + (ROWS + r) * stride + i);
        __builtin_prefetch(right + GROUP * PANEL + (row + r) * LINE);
      }
      if (depth - group < GROUP)
        add_group(left, stride, right, depth - group, nth, 1, sums, rest);
      else if (nth == 0)
        add_group(left, stride, right, GROUP, 0, is_last, sums, rest);
      else if (nth == 1)
        add_group(left, stride, right, GROUP, 1, is_last, sums, rest);
      else
        add_group(left, stride, right, GROUP, 2, is_last, sums, rest);
    }
}

// The outputs: a tile's products at every place, from `from` on, to its outputs, and to y.

INLINE void outputs_of(int height, int width, const Conv3x3 *conv, const float *from,
                       Doubles out[4][4]) {
  const int m = height + 2, n = width + 2;
  if (conv->packing.places == 1) {
    for (int i = 0; i < 4; i++) out[i / 2][i % 2] = widen(load(from + i * PANEL));
    return;
  }
  Doubles down[4][6], products[6], column[4];
  for (int k = 0; k < n; k++) {
    for (int j = 0; j < m; j++)
      products[j] = widen(load(from + (n * j + k) * conv->product_stride));
    output_1d(height, products, column);
    for (int j = 0; j < height; j++) down[j][k] = column[j];
  }
  for (int j = 0; j < height; j++) output_1d(width, down[j], out[j]);
}

// A vector of a tile's channels, from `first` on; `rows` and `columns` of the tile lie in y. Where it
// is `whole`, all do, and all channels.
INLINE void finish_vector(int tall, int wide, int pool, int whole, const Conv3x3 *conv,
                          int64_t first, int64_t rows, int64_t columns, const float *from,
                          float *to, int64_t row_apart) {
  int64_t count = whole ? LANES : conv->outputs - first;
  Doubles bias = widen(conv->bias ? load_some(conv->bias + first, count) : (Vector){0});
  Doubles sums[4][4];
  Vector out[4][4];
  outputs_of(tall, wide, conv, from, sums);
  for (int i = 0; i < tall; i++)
    for (int j = 0; j < wide; j++) out[i][j] = rounded(sums[i][j] + bias);
  const int step = pool ? 2 : 1;
  for (int i = 0; i < tall / step; i++)
    for (int j = 0; j < wide / step; j++) {
      if (!whole && (i >= rows || j >= columns)) continue;
      Vector v = out[i][j];
      if (pool)  // ReLU is monotone: the largest stays the largest
        v = larger(larger(out[2 * i][2 * j], out[2 * i][2 * j + 1]),
                   larger(out[2 * i + 1][2 * j], out[2 * i + 1][2 * j + 1]));
      store_some(to + i * row_apart + j * conv->outputs, conv->relu ? relu(v) : v, count);
    }
}

INLINE void finish_tile(int tall, int wide, int pool, const Conv3x3 *conv, Tile tile, int64_t panel,
                        const float *from) {
  const int step = pool ? 2 : 1;
  int64_t height = conv->x.height / step, width = conv->x.width / step;
  int64_t row = tile.row / step, column = tile.column / step;
  int64_t rows = height - row, columns = width - column, apart = width * conv->outputs;
  for (int64_t lane = 0; lane < PANEL; lane += LANES) {
    int64_t first = panel * PANEL + lane;
    if (first >= conv->outputs) return;
    float *to = conv->y + ((tile.image * height + row) * width + column) * conv->outputs + first;
    if (first + LANES <= conv->outputs && rows >= tall / step && columns >= wide / step)
      finish_vector(tall, wide, pool, 1, conv, first, rows, columns, from + lane, to, apart);
    else
      finish_vector(tall, wide, pool, 0, conv, first, rows, columns, from + lane, to, apart);
  }
}

// Lines of the cache begin to be fetched in which a tile's outputs will be written.
static void prefetch_tile(const Conv3x3 *conv, int64_t i, int64_t panel) {
  if (i >= conv->tiles.count) return;
  Tile tile = tile_at(&conv->tiles, i);
  const int64_t step = conv->pool ? 2 : 1;
  int64_t height = conv->x.height / step, width = conv->x.width / step;
  int64_t end_row = least(height, (tile.row + conv->tiles.height) / step);
  int64_t end_column = least(width, (tile.column + conv->tiles.width) / step);
  for (int64_t row = tile.row / step; row < end_row; row++)
    for (int64_t column = tile.column / step; column < end_column; column++) {
      const float *to = conv->y + ((tile.image * height + row) * width + column) * conv->outputs +
                        panel * PANEL;
      __builtin_prefetch(to, 1);
      __builtin_prefetch(to + LANES, 1);
    }
}

// A block of tiles and some panels, whose chunks of the kernel are `apart` floats from one place to
// the next.
static void multiply_block(const Conv3x3 *conv, int64_t block, int64_t first, int64_t panels,
                           const float *inputs, const float *kernel, int64_t apart,
                           float *products) {
  int64_t count = tiles_of(conv, block), rows = padded(count * conv->rows, ROWS);
  int64_t size = conv->block * conv->rows * PANEL;  // of a panel's products
  float *lost = products + conv->packing.places * conv->product_stride;
  for (int64_t place = 0; place < conv->packing.places; place++)
    for (int64_t panel = 0; panel < panels; panel++)
      for (int64_t row = 0; row < rows; row += NEAR_ROWS)
        multiply_rows(conv, least(rows - row, NEAR_ROWS),
                      inputs + place * conv->input_stride + row * conv->row_stride,
                      kernel + place * apart + panel * conv->packing.chunk,
                      products + place * conv->product_stride + panel * size + row * PANEL, lost);
  for (int64_t i = 0; i < count; i++) {
    Tile tile = tile_at(&conv->tiles, block * conv->block + i);
    for (int64_t panel = 0; panel < panels; panel++) {
      prefetch_tile(conv, block * conv->block + i + AHEAD, first + panel);
      const float *from = products + panel * size + i * conv->rows * PANEL;
      if (conv->tiles.width == 4 && conv->pool)
        finish_tile(2, 4, 1, conv, tile, first + panel, from);
      else if (conv->tiles.width == 4)
        finish_tile(2, 4, 0, conv, tile, first + panel, from);
      else if (conv->pool)
        finish_tile(2, 2, 1, conv, tile, first + panel, from);
      else
        finish_tile(2, 2, 0, conv, tile, first + panel, from);
    }
  }
}

// Two loops: what all share is made first, the packed kernel or, where they are fewer, the inputs.

static float *shared_block(const Conv3x3 *conv, int64_t block) {
  return conv->loops.shared + block * conv->packing.places * conv->input_stride;
}

static void first_turn(const Loops *loops, int64_t turn, float *room) {
  const Conv3x3 *conv = (const Conv3x3 *)loops;
  (void)room;
  if (conv->by_panels) {
    transform_inputs(conv, turn, shared_block(conv, turn));
    return;
  }
  float *to = conv->packed_to ? conv->packed_to : loops->shared;
  pack_panel(conv, turn, to + turn * conv->packing.chunk,
             conv->packing.panels * conv->packing.chunk);
}

static void second_turn(const Loops *loops, int64_t turn, float *room) {
  const Conv3x3 *conv = (const Conv3x3 *)loops;
  const Packing *packing = &conv->packing;
  const float *packed = conv->packed ? conv->packed : loops->shared;
  int64_t apart = packing->panels * packing->chunk;
  float *own = room + packing->places * conv->product_stride + NEAR_ROWS * PANEL;
  if (!conv->by_panels) {
    transform_inputs(conv, turn, own);
    for (int64_t first = 0; first < packing->panels; first += conv->span)
      multiply_block(conv, turn, first, least(conv->span, packing->panels - first), own,
                     packed + first * packing->chunk, apart, room);
    return;
  }
  int64_t first = turn / conv->splits * conv->span, split = turn % conv->splits;
  int64_t panels = least(conv->span, packing->panels - first);
  if (conv->packed) {
    packed += first * packing->chunk;
  } else {
    packed = own, apart = panels * packing->chunk;
    for (int64_t i = 0; i < panels; i++)
      pack_panel(conv, first + i, own + i * packing->chunk, apart);
  }
  for (int64_t block = split * conv->blocks / conv->splits;
       block < (split + 1) * conv->blocks / conv->splits; block++)
    multiply_block(conv, block, first, panels, shared_block(conv, block), packed, apart, room);
}

const Operation LEVEL = {plan, first_turn, second_turn};
