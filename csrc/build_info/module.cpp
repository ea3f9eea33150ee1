// SPDX-License-Identifier: Apache-2.0
// What the compiled libraries were built with and what this CPU can do: no tensors, hence pybind11.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

std::map<std::string, std::string> build() {
  return {
      {"compiler", TDC_COMPILER " " __VERSION__},
      {"flags", TDC_FLAGS},
      {"torch_target", TDC_TORCH_TARGET},
      {"torch_built_against", TDC_TORCH_VERSION},
      {"cuda_archs", TDC_CUDA_ARCHS},
      {"cuda_runtime", TDC_CUDA_RUNTIME},
  };
}

#if defined(__x86_64__)
// The compiler's own test covers what the operating system saves of the registers (XCR0); it does
// not know AMX in every version in use, so that is read from CPUID leaf 7, EDX bits 22, 24, 25.
std::vector<std::string> instruction_sets() {
  __builtin_cpu_init();
  std::vector<std::string> names;
  if (__builtin_cpu_supports("avx2")) names.emplace_back("avx2");
  if (__builtin_cpu_supports("fma")) names.emplace_back("fma");
  if (__builtin_cpu_supports("avx512f")) names.emplace_back("avx512f");
  if (__builtin_cpu_supports("avx512vnni")) names.emplace_back("avx512_vnni");
  if (__builtin_cpu_supports("avx512bf16")) names.emplace_back("avx512_bf16");
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
    if (edx & (1u << 22)) names.emplace_back("amx_bf16");
    if (edx & (1u << 24)) names.emplace_back("amx_tile");
    if (edx & (1u << 25)) names.emplace_back("amx_int8");
  }
  return names;
}
#elif defined(__aarch64__) && defined(__linux__)
// Bits of AT_HWCAP and AT_HWCAP2 as the kernel's asm/hwcap.h numbers them.
std::vector<std::string> instruction_sets() {
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  std::vector<std::string> names;
  if (first & (1ul << 1)) names.emplace_back("neon");
  if (first & (1ul << 20)) names.emplace_back("dotprod");
  if (first & (1ul << 22)) names.emplace_back("sve");
  if (second & (1ul << 1)) names.emplace_back("sve2");
  if (second & (1ul << 14)) names.emplace_back("bf16");
  return names;
}
#else
std::vector<std::string> instruction_sets() { return {}; }
#endif

}  // namespace

PYBIND11_MODULE(_build_info, m) {
  m.doc() = "Build information of the native library";
  m.def("build", &build, "Compiler, flags, targeted torch version.");
  m.def("instruction_sets", &instruction_sets, "Names of the vector extensions of this CPU.");
}
