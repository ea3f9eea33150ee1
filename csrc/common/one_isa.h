// SPDX-License-Identifier: Apache-2.0
// TDC_KERNEL for the instruction set TDC_ISA, number TDC_LEVEL (instruction_set.h): the body of
// each_isa.h. Compilers differ in how the target of the functions in between is set.
#if defined(__clang__)
#if TDC_LEVEL == 1
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#elif TDC_LEVEL == 2
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#elif TDC_LEVEL == 3
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
    apply_to = function)
#endif
#else
#pragma GCC push_options
#if TDC_LEVEL == 1
#pragma GCC target("avx2,fma,f16c")
#elif TDC_LEVEL == 2
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#elif TDC_LEVEL == 3
#pragma GCC target( \
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
#endif
#endif

#include "common/simd.h"
#include TDC_KERNEL

#if !defined(__clang__)
#pragma GCC pop_options
#elif TDC_LEVEL > 0
#pragma clang attribute pop
#endif
#undef TDC_ISA
#undef TDC_LEVEL
