// SPDX-License-Identifier: Apache-2.0
#include "instruction_set.h"

namespace tdc {
namespace {

// The compiler's test also covers whether the operating system saves the registers (XCR0).
InstructionSet best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return InstructionSet::avx512_bf16;
  if (avx512) return InstructionSet::avx512;
  if (avx2) return InstructionSet::avx2;
#endif
  return InstructionSet::baseline;
}

InstructionSet current = best();

}  // namespace

InstructionSet instruction_set() { return current; }

}  // namespace tdc

// For tests and comparisons (tdc_kernels.native.use_instruction_set): -1 is the best there is.
// Returns the one in use from now on, or -1 where this CPU does not have the one asked for.
extern "C" __attribute__((visibility("default"))) int tdc_use_instruction_set(int level) {
  const int most = static_cast<int>(tdc::best());
  if (level > most) return -1;
  tdc::current = static_cast<tdc::InstructionSet>(level < 0 ? most : level);
  return static_cast<int>(tdc::current);
}
