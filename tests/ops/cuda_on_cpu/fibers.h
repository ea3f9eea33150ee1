// SPDX-License-Identifier: Apache-2.0
// Runs the threads of a kernel as fibers of one OS thread, each until it waits for others; blocks
// one after the other. What cuda_on_cpu.h is for.
#pragma once

#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <bit>
#include <mutex>
#include <type_traits>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 : uint3 {
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : uint3{a, b, c} {}
};
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;  // 0: not stood in for
  cudaStream_t stream;
};
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_on_cpu {

inline constexpr int kLanes = 32, kMaxThreads = 1024;
inline constexpr size_t kStack = 256 << 10, kGuard = 4096;  // address space; pages come when used

enum class State : uint8_t { ready, at_barrier, at_warp, returned };
enum class Meeting : uint8_t { sync, shuffle, vote };  // the lanes of a mask come for the same one

struct Fiber {
  State state;
  Meeting meeting;
  int source;  // the lane whose value a shuffle returns
  unsigned mask;
  uint64_t value;
  uint3 index;
  bool started;
  void* stack;
  jmp_buf at;
};

struct Machine {
  std::mutex one_launch;  // operators may be called from several Python threads
  Fiber fibers[kMaxThreads];
  Fiber* current;
  unsigned threads;  // of a block
  jmp_buf scheduler;
  void (*kernel)(void*);
  void* arguments;
  char order;  // f, r or s
  uint64_t random;
  char error[240];  // empty: none
};
inline Machine machine;

template <typename... A>
void report(const char* format, A... values) {
  char* text = machine.error;
  if (text[0] != 0) return;  // the first one says why
  constexpr size_t size = sizeof machine.error;
  const int n = snprintf(text, size, "block (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z);
  snprintf(text + n, size - static_cast<size_t>(n), format, values...);
}

// Back to the scheduler, until it resumes the fiber. _setjmp keeps no signal mask: 10 ns.
inline void wait() {
  if (_setjmp(machine.current->at) == 0) _longjmp(machine.scheduler, 1);
}

[[noreturn]] inline void forever() {
  for (;;) {  // block after block, launch after launch
    machine.kernel(machine.arguments);
    machine.current->state = State::returned;
    wait();
  }
}

inline void start(Fiber& fiber) {
  constexpr size_t size = kGuard + kStack;
  if (fiber.stack == nullptr) {
    fiber.stack = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fiber.stack == MAP_FAILED) abort();
    mprotect(fiber.stack, kGuard, PROT_NONE);  // stacks grow down: an overflow is a crash
  }
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack;
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, &forever, 0);
  setcontext(&context);
}

inline void resume(Fiber& fiber) {
  machine.current = &fiber;
  threadIdx = fiber.index;
  if (_setjmp(machine.scheduler) != 0) return;
  if (!fiber.started) start(fiber);
  _longjmp(fiber.at, 1);
}

// While a kernel runs, a thread that does what it must not ends the launch, not the process. The
// compiler's checks (-fsanitize in __init__.py) end in SIGILL.
class Signals {
 public:
  Signals() {
    struct sigaction action = {};
    action.sa_handler = [](int signal) {
      report(signal == SIGILL ? "thread %d: overflow, or access misaligned or outside of an array"
                              : "thread %d: access to memory that is not there",
             static_cast<int>(machine.current - machine.fibers));
      _longjmp(machine.scheduler, 1);
    };
    action.sa_flags = SA_NODEFER;  // nobody returns from the handler to unblock the signal
    for (int i = 0; i < 3; ++i) sigaction(kCaught[i], &action, &before_[i]);
  }
  ~Signals() {
    for (int i = 0; i < 3; ++i) sigaction(kCaught[i], &before_[i], nullptr);
  }

 private:
  static constexpr int kCaught[3] = {SIGILL, SIGSEGV, SIGBUS};
  struct sigaction before_[3];
};

// ---------------------------------------------------------------- meetings of a warp

inline int number(const Fiber& f) { return static_cast<int>(&f - machine.fibers); }
inline int lane(const Fiber& f) { return number(f) % kLanes; }
inline Fiber* warp(const Fiber& f) { return machine.fibers + number(f) / kLanes * kLanes; }

// Lanes waiting with `mask` go on once all of it are there, but for those that have returned.
inline void meet(Fiber* lanes, unsigned mask, Meeting meeting) {
  unsigned there = 0, votes = 0;
  uint64_t values[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const Fiber& f = lanes[i];
    if (!(mask >> i & 1) || f.state == State::returned) continue;
    if (f.state != State::at_warp || f.mask != mask || f.meeting != meeting) return;
    there |= 1u << i;
    values[i] = f.value;
    if (f.value != 0) votes |= 1u << i;
  }
  for (int i = 0; i < kLanes; ++i) {
    if (!(there >> i & 1)) continue;
    Fiber& f = lanes[i];
    f.state = State::ready;
    if (meeting == Meeting::vote) f.value = static_cast<uint64_t>(votes) << 32 | there;
    if (meeting != Meeting::shuffle) continue;
    if (there >> f.source & 1) f.value = values[f.source];
    else report("lane %d shuffles from lane %d, which is not there", i, f.source);
  }
}

inline uint64_t collective(Meeting meeting, unsigned mask, uint64_t value, int source) {
  Fiber& f = *machine.current;
  f.state = State::at_warp;
  f.meeting = meeting;
  f.mask = mask;
  f.value = value;
  f.source = source;
  if (mask >> lane(f) & 1) meet(warp(f), mask, meeting);
  else report("lane %d waits with mask 0x%08x, which leaves it out", lane(f), mask);
  wait();
  return f.value;
}

template <typename T>
T shuffle(unsigned mask, T value, int source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = collective(Meeting::shuffle, mask, bits, source);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

// ---------------------------------------------------------------- scheduler

// f(0), ..., f(n-1) in the order asked for; shuffled means affine steps modulo a power of two.
template <typename F>
void in_order(uint64_t n, F&& f) {
  const uint64_t mask = std::bit_ceil(n) - 1;
  uint64_t start = 0, step = 1;
  if (machine.order == 'r') start = step = mask;
  if (machine.order == 's') {
    machine.random = machine.random * 6364136223846793005u + 1442695040888963407u;
    start = machine.random >> 33;
    step = machine.random >> 45 | 1;
  }
  for (uint64_t i = 0; i <= mask; ++i) {
    const uint64_t k = (start + i * step) & mask;
    if (k < n && machine.error[0] == 0) f(k);
  }
}

// Runs a warp's lanes until all wait for other warps or have returned.
inline void run_warp(Fiber* lanes) {
  for (bool ran = true; ran;) {
    ran = false;
    in_order(kLanes, [&](uint64_t i) {
      if (lanes[i].state != State::ready) return;
      ran = true;
      resume(lanes[i]);
      if (lanes[i].state != State::returned) return;
      for (int k = 0; k < kLanes; ++k) {  // the others may have waited for this one
        if (lanes[k].state == State::at_warp) meet(lanes, lanes[k].mask, lanes[k].meeting);
      }
    });
  }
}

inline void report_stuck() {
  int at_barrier = 0, returned = 0, at_warp = 0;
  const Fiber* example = nullptr;
  for (unsigned i = 0; i < machine.threads; ++i) {
    const Fiber& f = machine.fibers[i];
    at_barrier += f.state == State::at_barrier;
    returned += f.state == State::returned;
    at_warp += f.state == State::at_warp;
    if (f.state == State::at_warp && example == nullptr) example = &f;
  }
  report("deadlock: %d threads wait at __syncthreads, %d at a warp operation (the first is thread "
         "%d, mask 0x%08x), %d have returned",
         at_barrier, at_warp, number(*example), example->mask, returned);
}

// A thread-local segment holds nothing but __shared__ variables in these libraries.
inline void poison_shared() {
  static thread_local char inside;
  struct Segment {
    char* start = nullptr;
    size_t bytes = 0, initialised = 0;
  } found;
  inside = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        char* start = static_cast<char*>(info->dlpi_tls_data);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type != PT_TLS || start == nullptr) continue;
          if (&inside < start || &inside >= start + header.p_memsz) continue;
          *static_cast<Segment*>(data) = {start, header.p_memsz, header.p_filesz};
          return 1;
        }
        return 0;
      },
      &found);
  if (found.initialised > 0) report("a thread-local or __shared__ variable is initialised");
  else memset(found.start, 0xff, found.bytes);
}

inline void run_block() {
  poison_shared();
  const unsigned warps = (machine.threads + kLanes - 1) / kLanes;
  for (unsigned i = 0; i < warps * kLanes; ++i) {
    machine.fibers[i].state = i < machine.threads ? State::ready : State::returned;
  }
  for (;;) {
    in_order(warps, [](uint64_t w) { run_warp(machine.fibers + w * kLanes); });
    if (machine.error[0] != 0) return;
    int waiting = 0, stuck = 0;
    for (unsigned i = 0; i < machine.threads; ++i) {
      waiting += machine.fibers[i].state == State::at_barrier;
      stuck += machine.fibers[i].state == State::at_warp;
    }
    if (stuck > 0) return report_stuck();
    if (waiting == 0) return;
    for (unsigned i = 0; i < machine.threads; ++i) {
      if (machine.fibers[i].state == State::at_barrier) machine.fibers[i].state = State::ready;
    }
  }
}

inline cudaError_t launch(const cudaLaunchConfig_t& config, void (*kernel)(void*),
                          void* arguments) {
  const std::lock_guard lock(machine.one_launch);
  const dim3 grid = config.gridDim, block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const char* order = getenv("TDC_CUDA_ON_CPU_ORDER");
  machine.order = order == nullptr ? 's' : order[0];
  machine.random = 0;  // the same launch runs in the same order
  machine.error[0] = 0;
  machine.kernel = kernel;
  machine.arguments = arguments;
  machine.threads = static_cast<unsigned>(threads);
  blockIdx = {};
  blockDim = block;
  gridDim = grid;
  if (blocks == 0 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535 || threads == 0 ||
      threads > kMaxThreads || block.z > 64 || config.dynamicSmemBytes > 0) {
    report("invalid launch: %u x %u x %u blocks of %u x %u x %u threads, dynamic memory %zu",
           grid.x, grid.y, grid.z, block.x, block.y, block.z, config.dynamicSmemBytes);
    return cudaErrorInvalidConfiguration;
  }
  for (unsigned i = 0; i < threads; ++i) {
    machine.fibers[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  }
  const Signals caught;
  in_order(blocks, [&](uint64_t b) {
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    run_block();
  });
  if (machine.error[0] == 0) return cudaSuccess;
  for (Fiber& f : machine.fibers) f.started = false;  // some are in the middle of the kernel
  return cudaErrorLaunchFailure;
}

}  // namespace cuda_on_cpu
