// How an operation is spread over threads.
#ifndef FLAXVGG_LOOPS_H
#define FLAXVGG_LOOPS_H

#include <stdint.h>

// Two loops, of which the first is over before the second begins, and the room that they need.
typedef struct {
  int64_t first_turns, second_turns;
  int64_t shared_floats, worker_floats;  // for all, and for each worker
  float *shared;
} Loops;

// A turn of a loop; `room` is the worker's own.
typedef void Turn(const Loops *call, int64_t turn, float *room);

// What there is for each instruction set; `call` begins what the operation is about.
typedef struct {
  void (*plan)(Loops *call, int64_t workers);
  Turn *first_turn, *second_turn;
} Operation;

#endif
