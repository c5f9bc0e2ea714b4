// The derivative of a 3x3 convolution by its kernel, by Winograd's filtering as in conv3x3.c.
//
// There y = A' [(G g G') * (B' d B)] A for each tile; so with dy for y, summed over the tiles,
//     dg = G' [sum (B' d B) * (A dy A')] G
// which are 16 matrix products over all channels, (inputs, tiles) x (tiles, outputs). With few
// inputs the product is direct: the neighbours of every pixel, times dy.
//
// A block of tiles is transformed and multiplied while it lies in the cache. Within a block the
// sums go in short chains; over the blocks, of which there may be thousands, they are float64.
//
// This file is compiled once for each instruction set; LEVEL is the name that its functions get.

#define FLOAT32_TRANSFORMS
#ifdef __AVX512F__
#define ROWS 6  // 22 times that are 128, but for 4
#endif

#include "tiles.h"

enum {
  MOST_DEPTH = 64,                             // of a block's products, and
  MOST_ROWS = (128 + ROWS - 1) / ROWS * ROWS,  // and
  MOST_COLUMNS = 128,                          // of the result, for which it is transformed
  LEAST_BLOCKS = 4,                            // of a span: fewer are not worth sums of their own
  MOST_SUMS = 1 << 24,                         // of all spans, 128 MB: with many threads, spans
                                               // are longer
};

INLINE Doubles load_sums(const double *from) { return *(const Doubles *)from; }
INLINE void store_sums(double *to, Doubles v) { *(Doubles *)to = v; }

// The rows of the result: the inputs, or all nine neighbours of them.
INLINE int64_t all_rows(const ByKernel *call) {
  return is_direct(&call->x) ? 9 * call->x.channels : call->x.channels;
}

INLINE int64_t all_panels(const ByKernel *call) { return pieces(call->dy.channels, PANEL); }

static void plan(Loops *loops, int64_t workers) {
  ByKernel *call = (ByKernel *)loops;
  int direct = is_direct(&call->x);
  int64_t rows = all_rows(call), panels = all_panels(call);
  call->tiles.height = call->tiles.width = 2;
  call->tiles.down = pieces(call->x.height, 2);
  call->tiles.across = pieces(call->x.width, 2);
  call->tiles.count = call->x.count * call->tiles.down * call->tiles.across;
  call->depth = direct ? 4 : 1;
  call->blocks = pieces(call->tiles.count, MOST_DEPTH / call->depth);
  call->block = call->blocks ? padded(pieces(call->tiles.count, call->blocks), CHAIN) : 0;
  call->row_ranges = direct ? rows > 0 : pieces(rows, MOST_ROWS);
  call->rows = rows ? padded(pieces(rows, call->row_ranges), ROWS) : 0;
  call->panel_ranges = pieces(panels * PANEL, MOST_COLUMNS);
  call->panels = panels ? pieces(panels, call->panel_ranges) : 0;
  call->places = direct ? 1 : 16;
  call->row_stride = call->rows + APART;
  call->input_stride = call->block * call->depth * call->row_stride;
  call->panel_stride = call->block * call->depth * PANEL;
  call->output_stride = call->panels * call->panel_stride + APART;
  call->sums = call->places * call->rows * call->panels * PANEL;
  int64_t ranges = call->row_ranges * call->panel_ranges;
  int64_t fair = ranges ? pieces(4 * workers, ranges) : 0;  // every worker finds some to do
  call->spans = least(fair, pieces(call->blocks, LEAST_BLOCKS));
  int64_t most = ranges && call->sums ? MOST_SUMS / (ranges * call->sums) : 0;
  if (call->spans > most && call->spans > 0) call->spans = most > 0 ? most : 1;
  loops->first_turns = call->spans * ranges;
  loops->second_turns = rows;
  loops->shared_floats = 2 * loops->first_turns * call->sums;
  loops->worker_floats = call->places * (call->input_stride + call->output_stride);
}

// The cotangents: of each tile, a row (PANEL) in every panel, at every place.

INLINE void cotangent_1d(Vector first, Vector second, Vector out[4]) {  // A y
  out[0] = first;
  out[1] = first + second;
  out[2] = first - second;
  out[3] = -second;
}

static void transform_outputs(const ByKernel *call, Tile tile, int64_t panel, int64_t panels,
                              float *to) {
  const float *from[4];
  for (int i = 0; i < 4; i++) from[i] = pixel(&call->dy, tile, i / 2, i % 2);
  for (int64_t lane = 0; lane < panels * PANEL; lane += LANES) {
    int64_t first = panel * PANEL + lane, count = call->dy.channels - first;
    float *at = to + lane / PANEL * call->panel_stride + lane % PANEL;
    Vector y[4], down[2][4], out[4];
    for (int i = 0; i < 4; i++) y[i] = from[i] ? load_some(from[i] + first, count) : (Vector){0};
    if (is_direct(&call->x)) {
      for (int i = 0; i < 4; i++) store(at + i * PANEL, y[i]);
      continue;
    }
    cotangent_1d(y[0], y[2], down[0]);
    cotangent_1d(y[1], y[3], down[1]);
    for (int j = 0; j < 4; j++) {
      cotangent_1d(down[0][j], down[1][j], out);
      for (int k = 0; k < 4; k++) store(at + (4 * j + k) * call->output_stride, out[k]);
    }
  }
}

// What a turn of the first loop does: the part of a span of tiles in a range of the result.
typedef struct {
  int64_t first_block, end_block;
  int64_t first_row, rows, first_panel, panels;
} Part;

INLINE Part part_of(const ByKernel *call, int64_t turn) {
  int64_t ranges = call->row_ranges * call->panel_ranges;
  int64_t span = turn / ranges, range = turn % ranges;
  Part part = {
      .first_block = span * call->blocks / call->spans,
      .end_block = (span + 1) * call->blocks / call->spans,
      .first_row = range / call->panel_ranges * call->rows,
      .first_panel = range % call->panel_ranges * call->panels,
  };
  part.rows = least(call->rows, padded(all_rows(call) - part.first_row, ROWS));
  part.panels = least(call->panels, all_panels(call) - part.first_panel);
  return part;
}

static double *sums_of(const ByKernel *call, int64_t turn) {
  return (double *)call->loops.shared + turn * call->sums;
}

// Both transforms of a block; how deep its products are, with zeros up to a whole chain.
static int64_t transform_block(const ByKernel *call, const Part *part, int64_t block,
                               float *inputs, float *outputs) {
  int64_t first = block * call->block, count = least(call->block, call->tiles.count - first);
  for (int64_t i = 0; i < count; i++) {
    Tile tile = tile_at(&call->tiles, first + i);
    float *to = inputs + i * call->depth * call->row_stride;
    if (is_direct(&call->x))
      gather_tile(&call->x, tile, part->rows, to, call->row_stride);
    else
      transform_tile(2, 2, &call->x, tile, part->first_row, padded(part->rows, LANES), to,
                     call->input_stride);  // whole vectors: what is too much is not read
    transform_outputs(call, tile, part->first_panel, part->panels,
                      outputs + i * call->depth * PANEL);
  }
  int64_t depth = count * call->depth, rest = padded(depth, CHAIN) - depth;
  for (int64_t place = 0; place < call->places && rest; place++) {
    float *input = inputs + place * call->input_stride + depth * call->row_stride;
    memset(input, 0, rest * call->row_stride * sizeof(float));
    for (int64_t panel = 0; panel < part->panels; panel++) {
      float *output = outputs + place * call->output_stride + panel * call->panel_stride;
      memset(output + depth * PANEL, 0, rest * PANEL * sizeof(float));
    }
  }
  return depth + rest;
}

static void add_product(const float *inputs, int64_t step, const float *outputs, int64_t depth,
                        int is_first, double *sums) {
  Vector product[ROWS][2];
  multiply(inputs, 1, step, outputs, depth, 0, product);
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < 2; v++) {
      double *to = sums + r * PANEL + v * LANES;
      Doubles more = widen(product[r][v]);
      if (!is_first) more += load_sums(to);
      store_sums(to, more);
    }
}

static void first_turn(const Loops *loops, int64_t turn, float *room) {
  const ByKernel *call = (const ByKernel *)loops;
  Part part = part_of(call, turn);
  float *inputs = room, *outputs = room + call->places * call->input_stride;
  for (int64_t block = part.first_block; block < part.end_block; block++) {
    int64_t depth = transform_block(call, &part, block, inputs, outputs);
    double *sums = sums_of(call, turn);
    for (int64_t place = 0; place < call->places; place++)
      for (int64_t panel = 0; panel < call->panels; panel++)
        for (int64_t row = 0; row < call->rows; row += ROWS, sums += ROWS * PANEL)
          if (panel < part.panels && row < part.rows)
            add_product(inputs + place * call->input_stride + row, call->row_stride,
                        outputs + place * call->output_stride + panel * call->panel_stride,
                        depth, block == part.first_block, sums);
  }
}

// The way back: the sums of all spans, and G' m G of them.

INLINE void sums_1d(Doubles m0, Doubles m1, Doubles m2, Doubles m3, Doubles out[3]) {  // G' m
  out[0] = m0 + 0.5 * (m1 + m2);
  out[1] = 0.5 * (m1 - m2);
  out[2] = 0.5 * (m1 + m2) + m3;
}

static void second_turn(const Loops *loops, int64_t row, float *room) {
  (void)room;
  const ByKernel *call = (const ByKernel *)loops;
  int64_t ranges = call->row_ranges * call->panel_ranges, outputs = call->dy.channels;
  for (int64_t first = 0; first < outputs; first += LANES) {
    int64_t panel = first / PANEL, count = outputs - first;
    int64_t range = row / call->rows * call->panel_ranges + panel / call->panels;
    int64_t at = (panel % call->panels * call->rows + row % call->rows) * PANEL + first % PANEL;
    Doubles m[16] = {0}, down[3][4], out[3];
    for (int64_t span = 0; span < call->spans; span++) {
      const double *sums = sums_of(call, span * ranges + range) + at;
      for (int i = 0; i < call->places; i++)
        m[i] += load_sums(sums + i * call->rows * call->panels * PANEL);
    }
    float *to = call->dkernel + row * outputs + first;
    if (is_direct(&call->x)) {
      store_some(to, rounded(m[0]), count);
      continue;
    }
    for (int k = 0; k < 4; k++) {
      sums_1d(m[k], m[4 + k], m[8 + k], m[12 + k], out);
      for (int j = 0; j < 3; j++) down[j][k] = out[j];
    }
    for (int j = 0; j < 3; j++) {
      sums_1d(down[j][0], down[j][1], down[j][2], down[j][3], out);
      for (int k = 0; k < 3; k++)
        store_some(to + (3 * j + k) * call->x.channels * outputs,
                   rounded(out[k]), count);
    }
  }
}

const Operation LEVEL = {plan, first_turn, second_turn};
