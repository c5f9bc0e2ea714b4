// The way from XLA to the operations: arguments, threads, room to work in.

#include <stdlib.h>
#include <string.h>
#if defined(_WIN32)
#include <windows.h>
#define yield SwitchToThread
#else
#include <sched.h>
#define yield sched_yield
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "conv3x3.h"
#include "linear.h"
#include "xla/ffi/api/c_api.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

// What the processor and its operating system have: 2 AVX-512, 1 AVX2, 0 neither.
static int vectors(void) {
#if defined(__x86_64__)
  unsigned a, b, c, d, low = 0, high = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA)) return 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) return 0;
  unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL;
  return (low & 0xe6) == 0xe6 && (b & avx512) == avx512 ? 2 : 1;
#else
  return 0;
#endif
}

static const char *const names[] = {"baseline", "AVX2", "AVX-512"};

// The widest vectors there are, or those that the environment wants, if they are narrower.
static int level(void) {
  static int found = -1;
  if (found >= 0) return found;
  int widest = vectors();
  const char *wanted = getenv("FLAXVGG_INSTRUCTIONS");
  for (int i = 0; wanted && i < widest; i++)
    if (strcmp(wanted, names[i]) == 0) widest = i;
  return found = widest;
}

EXPORT const char *flaxvgg_instructions(void) { return names[level()]; }

#if defined(__x86_64__)
static const Operation *const conv3x3[] = {&conv3x3_baseline, &conv3x3_avx2, &conv3x3_avx512};
static const Operation *const by_kernel[] = {
    &by_kernel_baseline, &by_kernel_avx2, &by_kernel_avx512};
static const Operation *const linear[] = {&linear_baseline, &linear_avx2, &linear_avx512};
#else
static const Operation *const conv3x3[] = {&conv3x3_baseline};
static const Operation *const by_kernel[] = {&by_kernel_baseline};
static const Operation *const linear[] = {&linear_baseline};
#endif

// A loop whose turns are taken by whichever of XLA's threads is free. The caller takes turns too,
// so that it never waits for a thread that waits for it; who comes too late finds none left.
typedef struct {
  Turn *take;
  const Loops *call;
  float *rooms;  // of the workers, one behind the other
  int64_t room_floats, turns;
  int64_t next, done, workers, owners;  // counted by all threads at once
} Loop;

static void take_turns(Loop *loop) {
  int64_t turn, worker = -1;
  while ((turn = __atomic_fetch_add(&loop->next, 1, __ATOMIC_RELAXED)) < loop->turns) {
    if (worker < 0) worker = __atomic_fetch_add(&loop->workers, 1, __ATOMIC_RELAXED);
    loop->take(loop->call, turn, loop->rooms + worker * loop->room_floats);
    __atomic_fetch_add(&loop->done, 1, __ATOMIC_RELEASE);
  }
}

static void leave(Loop *loop) {
  if (__atomic_sub_fetch(&loop->owners, 1, __ATOMIC_ACQ_REL) == 0) free(loop);
}

static void help(void *loop) {
  take_turns(loop);
  leave(loop);
}

static int run(XLA_FFI_CallFrame *frame, int64_t workers, Turn *take, const Loops *call,
               int64_t turns) {
  Loop *loop = malloc(sizeof(Loop));
  if (!loop) return 0;
  float *rooms = call->shared + call->shared_floats;
  *loop = (Loop){take, call, rooms, call->worker_floats, turns, 0, 0, 0, 1};
  for (int64_t i = 1; i < workers && i < turns; i++) {
    __atomic_fetch_add(&loop->owners, 1, __ATOMIC_RELAXED);
    XLA_FFI_ThreadPool_Schedule_Args args = {
        XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, help, loop};
    XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_Schedule(&args);
    if (error) {  // no pool: the caller takes every turn
      XLA_FFI_Error_Destroy_Args destroy = {
          XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
      frame->api->XLA_FFI_Error_Destroy(&destroy);
      leave(loop);
      break;
    }
  }
  take_turns(loop);
  while (__atomic_load_n(&loop->done, __ATOMIC_ACQUIRE) < turns) yield();
  leave(loop);
  return 1;
}

static int64_t threads(XLA_FFI_CallFrame *frame) {
  int64_t count = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {
      XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx, &count};
  XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_NumThreads(&args);
  if (!error) return count;
  XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
  frame->api->XLA_FFI_Error_Destroy(&destroy);
  return 1;
}

// The last call's room is kept for the next one: the system hands out new pages slowly. Calls at
// the same time each have their own.
typedef struct {
  size_t floats;
  char data[];
} Room;

enum { LINE = 64 };  // bytes of a line of the cache: a vector that lies across two is read twice

static Room *kept;

static Room *borrow(size_t floats) {
  Room *room = __atomic_exchange_n(&kept, NULL, __ATOMIC_ACQ_REL);
  if (room && room->floats >= floats) return room;
  free(room);
  room = malloc(sizeof(Room) + floats * sizeof(float) + LINE);
  if (room) room->floats = floats;
  return room;
}

static float *start_of(Room *room) {
  return (float *)(((uintptr_t)room->data + LINE - 1) / LINE * LINE);
}

static void give_back(Room *room) { free(__atomic_exchange_n(&kept, room, __ATOMIC_ACQ_REL)); }

static XLA_FFI_Error *failure(XLA_FFI_CallFrame *frame, XLA_FFI_Error_Code code, const char *what) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL, what, code};
  return frame->api->XLA_FFI_Error_Create(&args);
}

// Whether XLA only asks which version this is for.
static int is_question(XLA_FFI_CallFrame *frame) {
  XLA_FFI_Extension_Base *extension = frame->extension_start;
  if (!extension || extension->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)extension)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  metadata->traits = 0;
  return 1;
}

// XLA gives large results back to the system and gets them anew in every call, a page of 4 KiB at a
// time as it is written to: up to a sixth of a forward and backward pass. Pages of 2 MiB are asked
// for instead, where the system has them (Linux, unless it is set to "never").
static void ask_for_large_pages(const XLA_FFI_Buffer *result) {
#if defined(MADV_HUGEPAGE)
  enum { PAGE = 1 << 21, LEAST = 2 };
  uintptr_t start = (uintptr_t)result->data, size = sizeof(float);
  for (int64_t i = 0; i < result->rank; i++) size *= (uintptr_t)result->dims[i];
  if (size < LEAST * PAGE) return;
  uintptr_t first = start / PAGE * PAGE, end = (start + size + PAGE - 1) / PAGE * PAGE;
  madvise((void *)first, end - first, MADV_HUGEPAGE);  // a wish: whether it is granted is no matter
#else
  (void)result;
#endif
}

static XLA_FFI_Error *compute(XLA_FFI_CallFrame *frame, const Operation *operation, Loops *call) {
  int64_t workers = threads(frame);
  ask_for_large_pages(frame->rets.rets[0]);
  operation->plan(call, workers);
  Room *room = borrow(call->shared_floats + workers * call->worker_floats);
  int done = 0;
  if (room) {
    call->shared = start_of(room);
    done = run(frame, workers, operation->first_turn, call, call->first_turns) &&
           run(frame, workers, operation->second_turn, call, call->second_turns);
    give_back(room);
  }
  if (done) return NULL;
  return failure(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED,
                 "flaxvgg: no memory to work in");
}

static int is_float32(const XLA_FFI_Buffer *buffer, int64_t rank) {
  return buffer->dtype == XLA_FFI_DataType_F32 && buffer->rank == rank;
}

static int is_kernel(const XLA_FFI_Buffer *kernel, int64_t inputs, int64_t outputs) {
  const int64_t *dims = kernel->dims;
  return is_float32(kernel, 4) && dims[0] == 3 && dims[1] == 3 && dims[2] == inputs &&
         dims[3] == outputs;
}

static Images images(const XLA_FFI_Buffer *x) {
  return (Images){x->data, x->dims[0], x->dims[1], x->dims[2], x->dims[3]};
}

static int is_packed(const XLA_FFI_Buffer *buffer, const Packing *packing) {
  const int64_t *dims = buffer->dims;
  return is_float32(buffer, 3) && dims[0] == packing->places && dims[1] == packing->panels &&
         dims[2] == packing->chunk;
}

// Whether there are as many attributes as that, all scalars of a type.
static int are_scalars(const XLA_FFI_CallFrame *frame, int64_t count, XLA_FFI_DataType dtype) {
  if (frame->attrs.size != count) return 0;
  for (int64_t i = 0; i < count; i++) {
    if (frame->attrs.types[i] != XLA_FFI_AttrType_SCALAR) return 0;
    if (((XLA_FFI_Scalar *)frame->attrs.attrs[i])->dtype != dtype) return 0;
  }
  return 1;
}

// In the order of their names.
static const void *scalar(const XLA_FFI_CallFrame *frame, int64_t i) {
  return ((XLA_FFI_Scalar *)frame->attrs.attrs[i])->value;
}

// Attributes of flaxvgg_conv3x3.
static int has_pool(const XLA_FFI_CallFrame *frame) { return *(const char *)scalar(frame, 0); }
static int has_relu(const XLA_FFI_CallFrame *frame) { return *(const char *)scalar(frame, 1); }
static int is_sloped(const XLA_FFI_CallFrame *frame) { return *(const char *)scalar(frame, 2); }
static int is_turned(const XLA_FFI_CallFrame *frame) { return *(const char *)scalar(frame, 3); }

// Whether the buffers are what `flaxvgg/ops/native` promises; the third, which may be missing, is a
// bias, or slopes.
static int fits_conv3x3(const XLA_FFI_CallFrame *frame) {
  int64_t count = frame->args.size;
  if ((count != 2 && count != 3) || frame->rets.size != 1) return 0;
  if (!are_scalars(frame, 4, XLA_FFI_DataType_PRED)) return 0;
  const XLA_FFI_Buffer *x = frame->args.args[0], *kernel = frame->args.args[1];
  const XLA_FFI_Buffer *y = frame->rets.rets[0];
  if (!is_float32(x, 4) || !is_float32(y, 4)) return 0;
  int64_t inputs = x->dims[3], outputs = y->dims[3];
  if (kernel->rank == 4 && !(is_turned(frame) ? is_kernel(kernel, outputs, inputs)
                                              : is_kernel(kernel, inputs, outputs)))
    return 0;
  if (count == 3) {
    const XLA_FFI_Buffer *third = frame->args.args[2];
    if (!is_float32(third, 1) || third->dims[0] != (is_sloped(frame) ? 2 : outputs)) return 0;
  }
  return count == 3 || !is_sloped(frame);
}

EXPORT XLA_FFI_Error *flaxvgg_conv3x3(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return NULL;
  const Operation *operation = conv3x3[level()];
  Conv3x3 call = {0};
  int fits = fits_conv3x3(frame);
  if (fits) {
    const XLA_FFI_Buffer *kernel = frame->args.args[1], *y = frame->rets.rets[0];
    const XLA_FFI_Buffer *third = frame->args.size == 3 ? frame->args.args[2] : NULL;
    call = (Conv3x3){
        .x = images(frame->args.args[0]), .y = y->data,
        .outputs = y->dims[3], .pool = has_pool(frame), .relu = has_relu(frame),
        .turned = is_turned(frame),
    };
    if (third && is_sloped(frame))
      call.slopes = third->data;
    else if (third)
      call.bias = third->data;
    if (kernel->rank == 4) {
      call.kernel = kernel->data;
    } else {
      call.packed = kernel->data;
      operation->plan(&call.loops, 1);
      fits = is_packed(kernel, &call.packing);
    }
  }
  if (fits) return compute(frame, operation, &call.loops);
  return failure(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT,
                 "flaxvgg_conv3x3 takes float32 x (n, h, w, c), kernel (3, 3, c, o), or "
                 "(3, 3, o, c) if turned, or what flaxvgg_pack makes of it for images of this "
                 "size, and bias (o) or slopes (2)");
}

// A kernel's packing for maps of this size; its shape, for who allocates it, in `shape`.
static Conv3x3 packing_of(const float *kernel, int64_t height, int64_t width, int64_t inputs,
                          int64_t outputs, float *to) {
  Conv3x3 call = {
      .x = {NULL, 0, height, width, inputs}, .kernel = kernel, .outputs = outputs,
      .packed_to = to,
  };
  conv3x3[level()]->plan(&call.loops, 1);
  return call;
}

EXPORT void flaxvgg_packing(int64_t height, int64_t width, int64_t inputs, int64_t outputs,
                            int64_t shape[3]) {
  static float nowhere;
  Packing packing = packing_of(NULL, height, width, inputs, outputs, &nowhere).packing;
  shape[0] = packing.places, shape[1] = packing.panels, shape[2] = packing.chunk;
}

EXPORT XLA_FFI_Error *flaxvgg_pack(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return NULL;
  Conv3x3 call = {0};
  int fits = frame->args.size == 1 && frame->rets.size == 1 &&
             are_scalars(frame, 2, XLA_FFI_DataType_S64);
  if (fits) {
    const XLA_FFI_Buffer *kernel = frame->args.args[0], *to = frame->rets.rets[0];
    fits = is_float32(kernel, 4) && is_kernel(kernel, kernel->dims[2], kernel->dims[3]);
    if (fits)
      call = packing_of(kernel->data, *(const int64_t *)scalar(frame, 0),
                        *(const int64_t *)scalar(frame, 1), kernel->dims[2], kernel->dims[3],
                        to->data);
    fits = fits && is_packed(to, &call.packing);
  }
  if (fits) return compute(frame, conv3x3[level()], &call.loops);
  return failure(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT,
                 "flaxvgg_pack takes a float32 kernel (3, 3, c, o), height and width");
}

static int fits_by_kernel(const XLA_FFI_CallFrame *frame) {
  if (frame->args.size != 2 || frame->rets.size != 1 || frame->attrs.size != 0) return 0;
  const XLA_FFI_Buffer *x = frame->args.args[0], *dy = frame->args.args[1];
  const XLA_FFI_Buffer *dkernel = frame->rets.rets[0];
  if (!is_float32(x, 4) || !is_float32(dy, 4) || !is_kernel(dkernel, x->dims[3], dy->dims[3]))
    return 0;
  return memcmp(x->dims, dy->dims, 3 * sizeof(int64_t)) == 0;
}

EXPORT XLA_FFI_Error *flaxvgg_conv3x3_by_kernel(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return NULL;
  if (!fits_by_kernel(frame))
    return failure(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT,
                   "flaxvgg_conv3x3_by_kernel takes float32 x (n, h, w, c), dy (n, h, w, o)");
  ByKernel call = {
      .x = images(frame->args.args[0]), .dy = images(frame->args.args[1]),
      .dkernel = ((XLA_FFI_Buffer *)frame->rets.rets[0])->data,
  };
  return compute(frame, by_kernel[level()], &call.loops);
}

static int fits_linear(const XLA_FFI_CallFrame *frame) {
  if (frame->args.size != 2 || frame->rets.size != 1 || frame->attrs.size != 0) return 0;
  const XLA_FFI_Buffer *x = frame->args.args[0], *kernel = frame->args.args[1];
  if (!is_float32(x, 2) || !is_float32(kernel, 2) || !is_float32(frame->rets.rets[0], 2)) return 0;
  return x->dims[1] == kernel->dims[0];
}

EXPORT XLA_FFI_Error *flaxvgg_linear(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return NULL;
  if (!fits_linear(frame))
    return failure(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT,
                   "flaxvgg_linear takes float32 x (n, k), kernel (k, o)");
  const XLA_FFI_Buffer *x = frame->args.args[0], *kernel = frame->args.args[1];
  Linear call = {
      .x = x->data, .kernel = kernel->data,
      .y = ((XLA_FFI_Buffer *)frame->rets.rets[0])->data,
      .rows = x->dims[0], .depth = x->dims[1], .outputs = kernel->dims[1],
  };
  return compute(frame, linear[level()], &call.loops);
}
