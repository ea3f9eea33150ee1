// SPDX-License-Identifier: Apache-2.0
// Vectors of the instruction set being compiled (each_isa.h includes this once per set, hence no
// include guard). Arithmetic is the compiler's vector extension (+, *, comparisons, ?:), so that
// only loads, stores and conversions stand here.
//
//   Vec<T>          kLanes<T> values in the accumulation type of T: fp32, or fp64 for double
//   load<T>(p), load<T>(p, n)       elements of type T, converted; with n < kLanes<T> zeros behind
//   store<T>(p, v), store<T>(p, v, n)
//   sum<T>(v)       of all lanes, in a fixed order

#define TDC_INLINE inline __attribute__((always_inline))

namespace tdc::TDC_ISA {

#if TDC_LEVEL >= 2
inline constexpr int kBytes = 64;
#elif TDC_LEVEL == 1
inline constexpr int kBytes = 32;
#else
inline constexpr int kBytes = 16;
#endif

using f32v = float __attribute__((vector_size(kBytes)));
using f64v = double __attribute__((vector_size(kBytes)));
using u32v = uint32_t __attribute__((vector_size(kBytes)));
using u16v = uint16_t __attribute__((vector_size(kBytes / 2)));  // half types of one f32v

template <typename T>
struct Simd {
  using vec = f32v;
};
template <>
struct Simd<double> {
  using vec = f64v;
};
template <typename T>
using Vec = typename Simd<T>::vec;
template <typename T>
inline constexpr int kLanes = static_cast<int>(sizeof(Vec<T>) / sizeof(acc_t<T>));

TDC_INLINE f32v from_bf16(u16v x) {
  return reinterpret_cast<f32v>(__builtin_convertvector(x, u32v) << 16);
}

TDC_INLINE u16v to_bf16(f32v x) {
#if TDC_LEVEL == 3
  return reinterpret_cast<u16v>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
#else
  const u32v bits = reinterpret_cast<u32v>(x);
  const u32v rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  return __builtin_convertvector(x != x ? u32v{} + 0x7fc0 : rounded, u16v);
#endif
}

TDC_INLINE f32v from_f16(u16v x) {
#if TDC_LEVEL >= 2
  return reinterpret_cast<f32v>(_mm512_maskz_cvtph_ps(0xffff, reinterpret_cast<__m256i>(x)));
#elif TDC_LEVEL == 1
  return reinterpret_cast<f32v>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(x)));
#else
  f32v out;
  for (int i = 0; i < kLanes<float>; ++i) out[i] = f16(x[i], f16::from_bits());
  return out;
#endif
}

TDC_INLINE u16v to_f16(f32v x) {
#if TDC_LEVEL >= 2
  return reinterpret_cast<u16v>(_mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(x), 0));  // 0: to nearest
#elif TDC_LEVEL == 1
  return reinterpret_cast<u16v>(_mm256_cvtps_ph(reinterpret_cast<__m256>(x), 0));
#else
  u16v out;
  for (int i = 0; i < kLanes<float>; ++i) out[i] = f16(x[i]).x;
  return out;
#endif
}

// `n` elements, or all lanes where n is kLanes<T>; lanes behind are zero.
template <typename T>
TDC_INLINE Vec<T> load(const T* p, int n = kLanes<T>) {
  if constexpr (sizeof(T) == 2) {
    u16v bits{};
    std::memcpy(&bits, p, static_cast<size_t>(n) * sizeof(T));
    if constexpr (std::is_same_v<T, bf16>) return from_bf16(bits);
    else return from_f16(bits);
  } else {
    Vec<T> v{};
    std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(T));
    return v;
  }
}

// 2 kLanes<T> elements in an order of their own, the same for every call: for bf16 the even and the
// odd ones, which takes a shift and a mask where widening would take shuffles (1.4 times slower).
template <typename T>
TDC_INLINE void load_two(const T* p, Vec<T>& a, Vec<T>& b) {
  if constexpr (std::is_same_v<T, bf16>) {
    u32v bits;
    std::memcpy(&bits, p, sizeof(bits));
    a = reinterpret_cast<f32v>(bits << 16);
    b = reinterpret_cast<f32v>(bits & 0xffff0000u);
  } else {
    a = load<T>(p);
    b = load<T>(p + kLanes<T>);
  }
}

template <typename T>
TDC_INLINE void store(T* p, Vec<T> v, int n = kLanes<T>) {
  if constexpr (std::is_same_v<T, bf16>) {
    const u16v bits = to_bf16(v);
    std::memcpy(p, &bits, static_cast<size_t>(n) * sizeof(T));
  } else if constexpr (std::is_same_v<T, f16>) {
    const u16v bits = to_f16(v);
    std::memcpy(p, &bits, static_cast<size_t>(n) * sizeof(T));
  } else {
    std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(T));
  }
}

template <typename T>
TDC_INLINE acc_t<T> sum(Vec<T> v) {
  acc_t<T> lanes[kLanes<T>];
  std::memcpy(lanes, &v, sizeof(v));
  for (int step = kLanes<T> / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  }
  return lanes[0];
}

}  // namespace tdc::TDC_ISA
