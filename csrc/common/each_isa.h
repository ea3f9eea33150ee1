// SPDX-License-Identifier: Apache-2.0
// Compiles the file named by TDC_KERNEL once per instruction set, each into a namespace of its own
// (tdc::baseline, tdc::avx2, ...), with the vectors of simd.h: one binary for every x86-64 that uses
// what the machine has. TDC_VARIANT (instruction_set.h) picks one. Kernels call nothing of the
// standard library but memcpy: an inline function compiled here for AVX-512 could be the one copy
// that the linker keeps for everybody.
//
//   #define TDC_KERNEL "frame_similarity/kernel.h"
//   #include "common/each_isa.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/instruction_set.h"
#include "common/numbers.h"

#define TDC_ISA baseline
#define TDC_LEVEL 0
#include "common/one_isa.h"

#if defined(__x86_64__)
#define TDC_ISA avx2
#define TDC_LEVEL 1
#include "common/one_isa.h"

#define TDC_ISA avx512
#define TDC_LEVEL 2
#include "common/one_isa.h"

#define TDC_ISA avx512_bf16
#define TDC_LEVEL 3
#include "common/one_isa.h"
#endif

#undef TDC_KERNEL
