// SPDX-License-Identifier: Apache-2.0
// Which instruction set the kernels use: found out once, when the library is loaded.
#pragma once

namespace tdc {

// In rising order; tdc_kernels/native.py names them in the same order.
enum class InstructionSet : int { baseline, avx2, avx512, avx512_bf16 };

// The best this CPU has, unless tdc_use_instruction_set() chose a lower one.
InstructionSet instruction_set();

}  // namespace tdc

// The variant of a kernel for this CPU, e.g. TDC_VARIANT(add_rows<float>). each_isa.h makes them.
#if defined(__x86_64__)
#define TDC_VARIANT(...)                                                         \
  (::tdc::instruction_set() == ::tdc::InstructionSet::avx512_bf16                \
       ? &avx512_bf16::__VA_ARGS__                                               \
       : ::tdc::instruction_set() == ::tdc::InstructionSet::avx512               \
             ? &avx512::__VA_ARGS__                                              \
             : ::tdc::instruction_set() == ::tdc::InstructionSet::avx2           \
                   ? &avx2::__VA_ARGS__                                          \
                   : &baseline::__VA_ARGS__)
#else
#define TDC_VARIANT(...) (&baseline::__VA_ARGS__)
#endif
