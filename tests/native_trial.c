// The compiled operations called as XLA calls them, for a sanitizer to watch: random shapes, memory
// that ends where an array does, several calls at a time, each with several threads, a pool that
// refuses, and memory that is not to be had. Every result is compared with plain loops in float64.
//
//     native_trial CALLS, with FLAXVGG_INSTRUCTIONS as it is read by the library

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "xla/ffi/api/c_api.h"

const char *flaxvgg_instructions(void);
void flaxvgg_packing(int64_t height, int64_t width, int64_t inputs, int64_t outputs,
                     int64_t shape[3]);
XLA_FFI_Handler flaxvgg_conv3x3, flaxvgg_conv3x3_by_kernel, flaxvgg_linear, flaxvgg_pack;

enum { CALLERS = 3 };

// What stands for XLA: its pool begins a thread for every task.
struct XLA_FFI_ExecutionContext {
  int64_t threads;
  int refuses;
};
struct XLA_FFI_Error {
  XLA_FFI_Error_Code code;
};

typedef struct {
  XLA_FFI_Task *task;
  void *data;
} Task;

static int64_t running;  // tasks
static _Thread_local int64_t allocations_left = -1;

// In `xla.c` this is what malloc means.
void *trial_malloc(size_t size) {
  if (allocations_left == 0) return NULL;
  if (allocations_left > 0) allocations_left--;
  return malloc(size);
}

static void *take(void *given) {
  Task task = *(Task *)given;
  free(given);
  task.task(task.data);
  __atomic_fetch_sub(&running, 1, __ATOMIC_ACQ_REL);
  return NULL;
}

static XLA_FFI_Error *error_of(XLA_FFI_Error_Code code) {
  XLA_FFI_Error *error = malloc(sizeof *error);
  *error = (XLA_FFI_Error){code};
  return error;
}

static XLA_FFI_Error *create(XLA_FFI_Error_Create_Args *args) { return error_of(args->errc); }
static void destroy(XLA_FFI_Error_Destroy_Args *args) { free(args->error); }

static XLA_FFI_Error *schedule(XLA_FFI_ThreadPool_Schedule_Args *args) {
  if (args->ctx->refuses) return error_of(XLA_FFI_Error_Code_UNIMPLEMENTED);
  Task *task = malloc(sizeof *task);
  *task = (Task){args->task, args->data};
  __atomic_fetch_add(&running, 1, __ATOMIC_ACQ_REL);
  pthread_t thread;
  if (pthread_create(&thread, NULL, take, task)) abort();
  pthread_detach(thread);
  return NULL;
}

static XLA_FFI_Error *number(XLA_FFI_ThreadPool_NumThreads_Args *args) {
  if (args->ctx->refuses == 2) return error_of(XLA_FFI_Error_Code_UNIMPLEMENTED);
  *args->num_threads = args->ctx->threads;
  return NULL;
}

static const XLA_FFI_Api api = {
    .struct_size = XLA_FFI_Api_STRUCT_SIZE, .XLA_FFI_Error_Create = create,
    .XLA_FFI_Error_Destroy = destroy, .XLA_FFI_ThreadPool_Schedule = schedule,
    .XLA_FFI_ThreadPool_NumThreads = number,
};

// Chance, the same in every run.
static int64_t below(uint64_t *state, int64_t count) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (int64_t)((*state >> 33) % (uint64_t)count);
}

#define ONE_OF(state, choices) (choices)[below(state, sizeof(choices) / sizeof *(choices))]

typedef struct {
  XLA_FFI_Buffer buffer;
  int64_t dims[4], size;
  float *data;
} Array;

static void make(Array *array, uint64_t *state, int64_t rank, const int64_t *dims) {
  array->size = 1;
  for (int64_t i = 0; i < rank; i++) array->size *= array->dims[i] = dims[i];
  array->data = malloc(array->size * sizeof(float));  // no byte more: what is behind is watched
  for (int64_t i = 0; i < array->size; i++)
    array->data[i] = state ? (float)below(state, 2001) / 1000 - 1 : NAN;
  array->buffer = (XLA_FFI_Buffer){
      XLA_FFI_Buffer_STRUCT_SIZE, NULL, XLA_FFI_DataType_F32, array->data, rank, array->dims};
}

// The call's result, whole; 0 where it found no memory, which it may only where there is none.
static int call(XLA_FFI_Handler *handler, uint64_t *state, Array *arrays, int64_t count,
                Array *result, XLA_FFI_DataType dtype, const void *const *settings) {
  static const int64_t threads[] = {1, 2, 3, 8};
  struct XLA_FFI_ExecutionContext context = {ONE_OF(state, threads), 0};
  if (below(state, 8) == 0) context.refuses = 1 + (int)below(state, 2);
  void *args[3], *rets[] = {&result->buffer}, *attrs[4];
  XLA_FFI_Scalar scalars[4];
  XLA_FFI_AttrType types[] = {XLA_FFI_AttrType_SCALAR, XLA_FFI_AttrType_SCALAR,
                              XLA_FFI_AttrType_SCALAR, XLA_FFI_AttrType_SCALAR};
  for (int64_t i = 0; i < count; i++) args[i] = &arrays[i].buffer;
  int64_t settings_count = !settings ? 0 : dtype == XLA_FFI_DataType_PRED ? 4 : 2;
  for (int64_t i = 0; i < settings_count; i++) {
    scalars[i] = (XLA_FFI_Scalar){dtype, (void *)settings[i]};
    attrs[i] = &scalars[i];
  }
  XLA_FFI_CallFrame frame = {
      .struct_size = XLA_FFI_CallFrame_STRUCT_SIZE, .api = &api, .ctx = &context,
      .stage = XLA_FFI_ExecutionStage_EXECUTE, .args = {.size = count, .args = args},
      .rets = {.size = 1, .rets = rets},
      .attrs = {.size = settings_count, .types = types, .attrs = attrs},
  };
  int scarce = below(state, 16) == 0;
  allocations_left = scarce ? below(state, 3) : -1;
  XLA_FFI_Error *error = handler(&frame);
  allocations_left = -1;
  if (!error) return 1;
  if (!scarce || error->code != XLA_FFI_Error_Code_RESOURCE_EXHAUSTED) {
    fprintf(stderr, "an error of code %d\n", (int)error->code);
    abort();
  }
  free(error);
  return 0;
}

static void compare(const char *what, const Array *found, int64_t i, double expected,
                    double terms) {
  if (fabs(found->data[i] - expected) <= 1e-5 * (1 + terms)) return;
  fprintf(stderr, "%s (%ld, %ld, %ld, %ld): value %ld is %g, not %g\n", what,
          (long)found->dims[0], (long)found->dims[1], (long)found->dims[2],
          (long)found->dims[3], (long)i, found->data[i], expected);
  abort();
}

static double at(const Array *x, int64_t n, int64_t i, int64_t j, int64_t c) {
  const int64_t *d = x->dims;
  if (i < 0 || i >= d[1] || j < 0 || j >= d[2]) return 0;
  return x->data[((n * d[1] + i) * d[2] + j) * d[3] + c];
}

static const int64_t CHANNELS[] = {0, 1, 2, 3, 5, 8, 15, 16, 17, 24, 31, 33, 48, 64, 65};

static void images_of(uint64_t *state, int64_t *n, int64_t *h, int64_t *w) {
  int large = below(state, 20) == 0;
  *n = below(state, large ? 2 : 4);
  *h = below(state, large ? 48 : 11);
  *w = below(state, large ? 48 : 11);
}

static void trial_of_conv3x3(uint64_t *state) {
  int64_t n, h, w, c = ONE_OF(state, CHANNELS), o = ONE_OF(state, CHANNELS);
  images_of(state, &n, &h, &w);
  uint8_t settings[4];  // pool, relu, sloped, turned
  for (int i = 0; i < 4; i++) settings[i] = (uint8_t)below(state, 2);
  int pool = settings[0], sloped = settings[2], turned = settings[3];
  int biased = !sloped && below(state, 2);
  Array arrays[3] = {0}, y;
  make(&arrays[0], state, 4, (int64_t[]){n, h, w, c});
  make(&arrays[1], state, 4, turned ? (int64_t[]){3, 3, o, c} : (int64_t[]){3, 3, c, o});
  make(&arrays[2], state, 1, (int64_t[]){sloped ? 2 : o});
  make(&y, NULL, 4, pool ? (int64_t[]){n, h / 2, w / 2, o} : (int64_t[]){n, h, w, o});
  const float *kernel = arrays[1].data;
  const void *const flags[] = {&settings[0], &settings[1], &settings[2], &settings[3]};
  const void *const size[] = {&h, &w};
  Array operands[] = {arrays[0], arrays[1], arrays[2]}, packed = {0};
  int done = 1;
  if (!turned && !sloped && below(state, 2)) {  // by a kernel that is packed first
    int64_t shape[3];
    flaxvgg_packing(h, w, c, o, shape);
    make(&packed, NULL, 3, shape);
    done = call(flaxvgg_pack, state, &arrays[1], 1, &packed, XLA_FFI_DataType_S64, size);
    operands[1] = packed;
  }
  for (int i = 0; i < 3; i++) operands[i].buffer.dims = operands[i].dims;
  int count = 2 + (biased || sloped);
  if (done && call(flaxvgg_conv3x3, state, operands, count, &y, XLA_FFI_DataType_PRED, flags))
    for (int64_t i = 0; i < y.size; i++) {
      int64_t k = i % o, q = i / o % y.dims[2], p = i / o / y.dims[2] % y.dims[1];
      int64_t image = i / o / y.dims[2] / y.dims[1];
      double largest = -INFINITY;
      for (int corner = 0; corner < (pool ? 4 : 1); corner++) {
        int64_t row = pool ? 2 * p + corner / 2 : p, column = pool ? 2 * q + corner % 2 : q;
        double sum = biased ? arrays[2].data[k] : 0;
        for (int t = 0; t < 9; t++)
          for (int64_t j = 0; j < c; j++) {
            double w = turned ? kernel[((8 - t) * o + k) * c + j] : kernel[(t * c + j) * o + k];
            if (sloped) w *= arrays[2].data[w > 0 ? 0 : 1];
            sum += at(&arrays[0], image, row + t / 3 - 1, column + t % 3 - 1, j) * w;
          }
        largest = fmax(largest, sum);
      }
      compare("conv3x3", &y, i, settings[1] ? fmax(largest, 0) : largest, 9.0 * c);
    }
  for (int i = 0; i < 3; i++) free(arrays[i].data);
  free(packed.data);
  free(y.data);
}

static void trial_of_by_kernel(uint64_t *state) {
  int64_t n, h, w, c = ONE_OF(state, CHANNELS), o = ONE_OF(state, CHANNELS);
  images_of(state, &n, &h, &w);
  Array arrays[2], dkernel;
  make(&arrays[0], state, 4, (int64_t[]){n, h, w, c});
  make(&arrays[1], state, 4, (int64_t[]){n, h, w, o});
  make(&dkernel, NULL, 4, (int64_t[]){3, 3, c, o});
  if (call(flaxvgg_conv3x3_by_kernel, state, arrays, 2, &dkernel, XLA_FFI_DataType_PRED, NULL))
    for (int64_t i = 0; i < dkernel.size; i++) {
      int64_t k = i % o, j = i / o % c, t = i / o / c;
      double sum = 0;
      for (int64_t image = 0; image < n; image++)
        for (int64_t p = 0; p < h * w; p++)
          sum += at(&arrays[0], image, p / w + t / 3 - 1, p % w + t % 3 - 1, j) *
                 at(&arrays[1], image, p / w, p % w, k);
      compare("by_kernel", &dkernel, i, sum, (double)(n * h * w));
    }
  for (int i = 0; i < 2; i++) free(arrays[i].data);
  free(dkernel.data);
}

static void trial_of_linear(uint64_t *state) {
  static const int64_t depths[] = {0, 1, 7, 8, 63, 64, 65, 200, 513, 700};
  int64_t rows = below(state, 20), depth = ONE_OF(state, depths), o = ONE_OF(state, CHANNELS);
  Array arrays[2], y = {0};
  make(&arrays[0], state, 2, (int64_t[]){rows, depth});
  make(&arrays[1], state, 2, (int64_t[]){depth, o});
  make(&y, NULL, 2, (int64_t[]){rows, o});
  for (int64_t k = 0; k < depth; k++)  // what meets only zeros is not read
    if (below(state, 2))
      for (int64_t row = 0; row < rows; row++) arrays[0].data[row * depth + k] = 0;
  if (call(flaxvgg_linear, state, arrays, 2, &y, XLA_FFI_DataType_PRED, NULL))
    for (int64_t i = 0; i < y.size; i++) {
      double sum = 0;
      for (int64_t k = 0; k < depth; k++)
        sum += (double)arrays[0].data[i / o * depth + k] * arrays[1].data[k * o + i % o];
      compare("linear", &y, i, sum, (double)depth);
    }
  for (int i = 0; i < 2; i++) free(arrays[i].data);
  free(y.data);
}

static long calls;

static void *caller(void *seed) {
  uint64_t state = *(uint64_t *)seed;
  for (long i = 0; i < calls; i++) {
    trial_of_conv3x3(&state);
    trial_of_by_kernel(&state);
    trial_of_linear(&state);
  }
  return NULL;
}

int main(int argc, char **argv) {
  calls = argc > 1 ? atol(argv[1]) : 100;
  const char *instructions = flaxvgg_instructions();  // as when the library is loaded
  pthread_t threads[CALLERS];
  uint64_t seeds[CALLERS];
  for (int i = 0; i < CALLERS; i++) {
    seeds[i] = (uint64_t)i + 1;
    if (pthread_create(&threads[i], NULL, caller, &seeds[i])) abort();
  }
  for (int i = 0; i < CALLERS; i++) pthread_join(threads[i], NULL);
  while (__atomic_load_n(&running, __ATOMIC_ACQUIRE)) sched_yield();
  printf("%ld calls with %s\n", 3 * CALLERS * calls, instructions);
  return 0;
}
