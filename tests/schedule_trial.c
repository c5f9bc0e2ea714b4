// How the turns of a convolution would be shared by many workers: `plan` is asked for each, and the
// turns are given to whoever is free first, as xla.c does. The unit is a multiplication of vectors.
//
//     schedule_trial: lines "image layer workers packed speed-up", beside one worker

#define LEVEL conv3x3_schedule
#include "conv3x3.c"

#include <stdio.h>
#include <stdlib.h>

static double packing_cost(const Conv3x3 *conv) {  // of a panel
  return 6.0 * conv->packing.places * conv->depth * PANEL / LANES;
}

static double inputs_cost(const Conv3x3 *conv, int64_t block) {
  return 4.0 * tiles_of(conv, block) * conv->packing.places * conv->rows * conv->depth / LANES;
}

static double block_cost(const Conv3x3 *conv, int64_t block, int64_t panels) {
  int64_t rows = padded(tiles_of(conv, block) * conv->rows, ROWS);
  double products = 1.2 * rows * conv->packing.places * conv->depth;
  double outputs = 6.0 * tiles_of(conv, block) * conv->packing.places * conv->rows;
  return (products + outputs) * panels * (PANEL / LANES);
}

static double first_cost(const Conv3x3 *conv, int64_t turn) {
  return conv->by_panels ? inputs_cost(conv, turn) : packing_cost(conv);
}

static double second_cost(const Conv3x3 *conv, int64_t turn) {
  if (!conv->by_panels)
    return inputs_cost(conv, turn) + block_cost(conv, turn, conv->packing.panels);
  int64_t first = turn / conv->splits * conv->span, split = turn % conv->splits;
  int64_t panels = least(conv->span, conv->packing.panels - first);
  double cost = conv->packed ? 0 : packing_cost(conv);
  for (int64_t block = split * conv->blocks / conv->splits;
       block < (split + 1) * conv->blocks / conv->splits; block++)
    cost += block_cost(conv, block, panels);
  return cost;
}

// When the last of the turns is over.
static double time_of(const Conv3x3 *conv, int64_t turns, int64_t workers,
                      double cost(const Conv3x3 *, int64_t)) {
  double free_at[256] = {0}, end = 0;
  for (int64_t turn = 0; turn < turns; turn++) {
    int64_t next = 0;
    for (int64_t i = 1; i < workers; i++)
      if (free_at[i] < free_at[next]) next = i;
    free_at[next] += cost(conv, turn);
    if (free_at[next] > end) end = free_at[next];
  }
  return end;
}

static double time_with(Conv3x3 conv, int64_t workers) {
  plan(&conv.loops, workers);
  return time_of(&conv, conv.loops.first_turns, workers, first_cost) +
         time_of(&conv, conv.loops.second_turns, workers, second_cost);
}

int main(void) {
  static const int64_t sizes[] = {32, 64, 112, 224}, many[] = {2, 8, 16, 64};
  static const int64_t channels[][2] = {{3, 64}, {64, 64}, {64, 128}, {128, 128}, {128, 256},
                                        {256, 256}, {256, 512}, {512, 512}, {512, 512}};
  static const int64_t halvings[] = {0, 0, 1, 1, 2, 2, 3, 3, 4};
  static const char *const names[] = {"conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1",
                                      "conv3_2", "conv4_1", "conv4_2", "conv5_2"};
  static const float packed;
  for (int s = 0; s < 4; s++)
    for (int layer = 0; layer < 9; layer++)
      for (int is_packed = 0; is_packed < 2; is_packed++) {
        int64_t side = sizes[s] >> halvings[layer];
        Conv3x3 conv = {
            .x = {NULL, 1, side, side, channels[layer][0]}, .outputs = channels[layer][1],
            .packed = is_packed ? &packed : NULL,
        };
        double alone = time_with(conv, 1);
        for (int i = 0; i < 4; i++)
          printf("%ld %s %ld %d %.2f\n", (long)sizes[s], names[layer], (long)many[i], is_packed,
                 alone / time_with(conv, many[i]));
      }
  return 0;
}
