// CUDA's words on a CPU: what a .cu file may use, and how a grid of threads is run.
//
// Blocks run one after the other. A kernel without barriers is a plain loop over its threads. In
// one with barriers every thread is a fiber, with a stack of its own; a barrier is a yield. Warps,
// and threads in a warp, are run in an order drawn from `seed` (0: ascending), anew after each
// barrier, each as far as it can, so that a missing barrier shows. Shared memory is filled with NaN
// bits before each block.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <type_traits>
#include <utility>

#define __global__ static
#define __device__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("emulated_shared")))

struct dim3 { unsigned x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulated {

constexpr size_t STACK = 1 << 16;
constexpr int MOST_THREADS = 1024;
enum State : char { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

struct Thread {
  void* stack_pointer;
  State state;
  int line;         // of the barrier it waits at
  uint64_t offered; // to the other lanes of its warp
};

static Thread threads[MOST_THREADS];
static Thread* running;  // nullptr: a plain loop, where there is no barrier
static void* scheduler_stack_pointer;
static char* stacks;
static void (*body)(void*);
static void* body_argument;
static char* dynamic_shared;
static char message[400];

// Saves the callee's registers on this stack, goes on where the other stack was left.
extern "C" void emulated_switch(void** save, void* resume);
#if defined(__x86_64__)
asm(".text\n.hidden emulated_switch\n.globl emulated_switch\nemulated_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
#elif defined(__aarch64__)
asm(".text\n.hidden emulated_switch\n.globl emulated_switch\nemulated_switch:\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\n"
    "stp x25, x26, [sp, #48]\nstp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\n"
    "stp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\n"
    "ldp x25, x26, [sp, #48]\nldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\n"
    "ldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n");
#else
#error "the emulator knows how to switch stacks on x86-64 and aarch64"
#endif

static void fiber_main() {
  body(body_argument);
  running->state = DONE;
  emulated_switch(&running->stack_pointer, scheduler_stack_pointer);
  abort();  // a finished thread is never resumed
}

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __asan_unpoison_memory_region(void const volatile*, size_t);
#endif

static void prepare(int thread) {
  char* bottom = stacks + thread * STACK;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(bottom, STACK);  // a launch that failed left its frames there
#endif
  void** top = (void**)(bottom + STACK - 64);
  memset(top - 32, 0, 40 * sizeof(void*) - 64);
  threads[thread] = {nullptr, READY, 0, 0};
#if defined(__x86_64__)
  top[0] = (void*)fiber_main;  // 6 registers below it; the stack is aligned as after a call
  threads[thread].stack_pointer = top - 6;
#else
  top[-20 + 11] = (void*)fiber_main;  // x30
  threads[thread].stack_pointer = top - 20;
#endif
}

static void require_fiber() {
  if (!running) throw "a barrier in a kernel that was taken to have none";
}

static void wait(State state, int line) {
  require_fiber();
  running->state = state;
  running->line = line;
  emulated_switch(&running->stack_pointer, scheduler_stack_pointer);
}

// A permutation of 0 ... count - 1: i -> (first + i * step) mod count, with coprime step.
struct Order {
  unsigned first, step, count;
  unsigned operator()(unsigned i) const { return (first + (uint64_t)i * step) % count; }
};

static Order draw(unsigned count, uint64_t& seed) {
  if (seed == 0) return {0, 1, count};
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  unsigned step = 1 + (seed >> 33) % count, a = step, b = count;
  while (b) { unsigned r = a % b; a = b; b = r; }
  return {unsigned(seed >> 40) % count, a == 1 ? step : count - 1 ? count - 1 : 1, count};
}

static void place(unsigned t) {
  threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
}

// Lets the threads `first` ... `last` - 1 go on if all of them wait at one `barrier`.
static bool release(int first, int last, State barrier) {
  for (int t = first; t < last; t++)
    if (threads[t].state != barrier || threads[t].line != threads[first].line) return false;
  for (int t = first; t < last; t++) threads[t].state = READY;
  return true;
}

// Runs one warp until its threads wait for the block, are done, or are stuck.
static void run_warp(int first, int last, uint64_t& seed) {
  do {
    const Order order = draw(last - first, seed);
    for (int i = 0; i < last - first; i++) {
      running = &threads[first + order(i)];
      if (running->state != READY) continue;
      place(running - threads);
      emulated_switch(&scheduler_stack_pointer, running->stack_pointer);
    }
  } while (release(first, last, AT_WARP_BARRIER));
  running = nullptr;
}

// Each warp runs as far ahead of the others as the barriers of the block allow.
static bool run_fibers(int count, uint64_t& seed) {
  const int warps = (count + warpSize - 1) / warpSize;
  for (int t = 0; t < count; t++) prepare(t);
  do {
    const Order order = draw(warps, seed);
    for (int i = 0; i < warps; i++) {
      const int first = order(i) * warpSize;
      run_warp(first, first + warpSize < count ? first + warpSize : count, seed);
    }
  } while (release(0, count, AT_BLOCK_BARRIER));
  int waiting = 0, first = 0;
  for (int t = count - 1; t >= 0; t--)
    if (threads[t].state != DONE) waiting++, first = t;
  if (waiting == 0) return true;
  snprintf(message, sizeof message,
           "block (%u, %u, %u): %d of %d threads wait for ever, thread %d at the barrier of line %d",
           blockIdx.x, blockIdx.y, blockIdx.z, waiting, count, first, abs(threads[first].line));
  return false;
}

static void poison_shared();

static const char* run_grid(const int* grid, const int* block, long shared_bytes, uint64_t seed,
                            bool fibers) {
  gridDim = {(unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2]};
  blockDim = {(unsigned)block[0], (unsigned)block[1], (unsigned)block[2]};
  const unsigned count = blockDim.x * blockDim.y * blockDim.z;
  const long blocks = (long)gridDim.x * gridDim.y * gridDim.z;
  if (fibers && !stacks)
    stacks = (char*)mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  dynamic_shared = shared_bytes ? (char*)malloc(shared_bytes) : nullptr;
  const Order block_order = draw(blocks, seed);
  const char* error = nullptr;
  for (long i = 0; i < blocks && !error; i++) {
    const unsigned b = block_order(i);
    blockIdx = {b % gridDim.x, b / gridDim.x % gridDim.y, b / gridDim.x / gridDim.y};
    poison_shared();
    if (dynamic_shared) memset(dynamic_shared, 0xFF, shared_bytes);
    if (fibers) {
      if (!run_fibers(count, seed)) error = message;
      continue;
    }
    const Order order = draw(count, seed);
    try {
      for (unsigned t = 0; t < count; t++) place(order(t)), body(body_argument);
    } catch (const char* why) {
      error = why;
    }
  }
  free(dynamic_shared);
  return error;
}

template <class... P, size_t... I>
static const char* launch(void (*kernel)(P...), void** arguments, const int* grid,
                          const int* block, long shared_bytes, uint64_t seed, bool fibers,
                          std::index_sequence<I...>) {
  auto call = [&] { kernel(*(P*)arguments[I]...); };
  body = [](void* call_it) { (*(decltype(call)*)call_it)(); };
  body_argument = &call;
  return run_grid(grid, block, shared_bytes, seed, fibers);
}

// What a parameter is, for the check of arguments: p4f = pointer to float, i8 = long long, s64 = a
// structure of 64 bytes.
template <class T>
static char letter() {
  return std::is_floating_point<T>() ? 'f' : std::is_signed<T>() ? 'i' : 'u';
}

template <class P>
static void describe(char*& to) {
  using Pointed = typename std::remove_pointer<P>::type;
  if constexpr (std::is_pointer<P>() && std::is_arithmetic<Pointed>())
    to += sprintf(to, "p%d%c ", (int)sizeof(Pointed), letter<Pointed>());
  else if constexpr (std::is_pointer<P>())
    to += sprintf(to, "p0 ");
  else if constexpr (std::is_arithmetic<P>())
    to += sprintf(to, "%c%d ", letter<P>(), (int)sizeof(P));
  else
    to += sprintf(to, "s%d ", (int)sizeof(P));
}

template <class... P>
static const char* parameters(void (*)(P...)) {
  static char text[8 * sizeof...(P) + 1];
  char* to = text;
  (describe<P>(to), ...);
  return text;
}

template <class... P>
static std::index_sequence_for<P...> indices(void (*)(P...)) { return {}; }

template <class T>
static T exchange(T value, int line, int source) {
  static_assert(sizeof(T) <= 8, "one register pair at most");
  require_fiber();
  memcpy(&running->offered, &value, sizeof(T));
  const int lane0 = (running - threads) / warpSize * warpSize;
  wait(AT_WARP_BARRIER, line);
  uint64_t found = ~(uint64_t)0;  // a lane that is not there offers NaN
  if (lane0 + source < int(blockDim.x * blockDim.y * blockDim.z))
    found = threads[lane0 + source].offered;
  wait(AT_WARP_BARRIER, -line);
  T result;
  memcpy(&result, &found, sizeof(T));
  return result;
}

static int lane() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % warpSize;
}

}  // namespace emulated

#define __syncthreads() emulated::wait(emulated::AT_BLOCK_BARRIER, __LINE__)
#define __syncwarp(...) emulated::wait(emulated::AT_WARP_BARRIER, __LINE__)
#define __shfl_xor_sync(mask, value, bits) \
  emulated::exchange(value, __LINE__, emulated::lane() ^ (bits))
#define __shfl_down_sync(mask, value, delta)  \
  emulated::exchange(value, __LINE__,         \
                     emulated::lane() + (delta) < 32 ? emulated::lane() + (delta) : emulated::lane())
#define __shfl_sync(mask, value, source) emulated::exchange(value, __LINE__, (source) % 32)

// The conversions that storage.cuh makes with one instruction on a device.
static inline float half_to_float(unsigned short bits) {
  _Float16 value;
  memcpy(&value, &bits, 2);
  return (float)value;
}
static inline unsigned short float_to_half(float value) {
  const _Float16 narrow = (_Float16)value;
  unsigned short bits;
  memcpy(&bits, &narrow, 2);
  return bits;
}
