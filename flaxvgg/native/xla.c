// The way from XLA to the convolution: its arguments, its threads, and room to work in.

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

#include "conv3x3.h"
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

static const Conv3x3Functions *functions(void) {
#if defined(__x86_64__)
  if (level() == 2) return &conv3x3_avx512;
  if (level() == 1) return &conv3x3_avx2;
#endif
  return &conv3x3_baseline;
}

// A loop whose turns are taken by whichever of XLA's threads is free. The caller takes turns too,
// so that it never waits for a thread that waits for it; who comes too late finds none left.
typedef struct {
  Turn *take;
  const Conv3x3 *conv;
  float *rooms;  // of the workers, one behind the other
  int64_t room_floats, turns;
  int64_t next, done, workers, owners;  // counted by all threads at once
} Loop;

static void take_turns(Loop *loop) {
  int64_t turn, worker = -1;
  while ((turn = __atomic_fetch_add(&loop->next, 1, __ATOMIC_RELAXED)) < loop->turns) {
    if (worker < 0) worker = __atomic_fetch_add(&loop->workers, 1, __ATOMIC_RELAXED);
    loop->take(loop->conv, turn, loop->rooms + worker * loop->room_floats);
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

static int run(XLA_FFI_CallFrame *frame, int64_t workers, Turn *take, const Conv3x3 *conv,
               int64_t turns, float *rooms, int64_t room_floats) {
  Loop *loop = malloc(sizeof(Loop));
  if (!loop) return 0;
  *loop = (Loop){take, conv, rooms, room_floats, turns, 0, 0, 0, 1};
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

// Whether the buffers are what `flaxvgg/native` promises; there may be no bias.
static int fits(const XLA_FFI_CallFrame *frame) {
  int64_t count = frame->args.size;
  if ((count != 2 && count != 3) || frame->rets.size != 1 || frame->attrs.size != 2) return 0;
  const int64_t ranks[4] = {4, 4, 1, 4};
  for (int64_t i = 0; i < 4; i++) {
    if (i == 2 && count == 2) continue;
    const XLA_FFI_Buffer *buffer = i < 3 ? frame->args.args[i] : frame->rets.rets[0];
    if (buffer->dtype != XLA_FFI_DataType_F32 || buffer->rank != ranks[i]) return 0;
  }
  for (int i = 0; i < 2; i++) {
    const XLA_FFI_Scalar *scalar = frame->attrs.attrs[i];
    if (frame->attrs.types[i] != XLA_FFI_AttrType_SCALAR || scalar->dtype != XLA_FFI_DataType_PRED)
      return 0;
  }
  const int64_t *x = ((XLA_FFI_Buffer *)frame->args.args[0])->dims;
  const int64_t *kernel = ((XLA_FFI_Buffer *)frame->args.args[1])->dims;
  if (count == 3 && ((XLA_FFI_Buffer *)frame->args.args[2])->dims[0] != kernel[3]) return 0;
  return kernel[0] == 3 && kernel[1] == 3 && kernel[2] == x[3];
}

EXPORT XLA_FFI_Error *flaxvgg_conv3x3(XLA_FFI_CallFrame *frame) {
  XLA_FFI_Extension_Base *extension = frame->extension_start;
  if (extension && extension->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)extension)->metadata;
    metadata->api_version.major_version = XLA_FFI_API_MAJOR;
    metadata->api_version.minor_version = XLA_FFI_API_MINOR;
    metadata->traits = 0;
    return NULL;
  }
  if (!fits(frame))
    return failure(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT,
                   "flaxvgg_conv3x3 takes float32 x (n, h, w, c), kernel (3, 3, c, o), bias (o)");
  const XLA_FFI_Buffer *x = frame->args.args[0], *kernel = frame->args.args[1];
  const XLA_FFI_Buffer *bias = frame->args.size == 3 ? frame->args.args[2] : NULL;
  const XLA_FFI_Buffer *y = frame->rets.rets[0];
  const char *pool = ((XLA_FFI_Scalar *)frame->attrs.attrs[0])->value;  // sorted by name
  const char *relu = ((XLA_FFI_Scalar *)frame->attrs.attrs[1])->value;
  const Conv3x3Functions *use = functions();
  int64_t workers = threads(frame);
  Conv3x3 conv = {
      .x = x->data, .kernel = kernel->data, 
      .bias = bias ? bias->data : NULL, .y = y->data,
      .images = x->dims[0], .height = x->dims[1], .width = x->dims[2], .inputs = x->dims[3],
      .outputs = kernel->dims[3], .relu = *relu, .pool = *pool,
  };
  use->plan(&conv, workers);
  int64_t own = conv.worker_floats;
  Room *room = borrow(conv.shared_floats + workers * own);
  int done = 0;
  if (room) {
    conv.shared = start_of(room);
    float *rooms = conv.shared + conv.shared_floats;
    done = run(frame, workers, use->first_turn, &conv, use->first_turns(&conv), rooms, own) &&
           run(frame, workers, use->second_turn, &conv, use->second_turns(&conv), rooms, own);
    give_back(room);
  }
  if (!done)
    return failure(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED,
                   "flaxvgg_conv3x3: no memory to work in");
  return NULL;
}
