// SPDX-License-Identifier: Apache-2.0
// One compressed row of the packed context, or of its gradient, at a time: it stays in the L1 cache
// between the pass that sums it up and the one that writes (14 kB in the paper's fp32).

namespace tdc::TDC_ISA {

// sums = {<x, x>, <x, g>}; g may be null, then the second is 0.
template <typename T>
void row_sums(const T* x, const T* g, int64_t width, acc_t<T>* sums) {
  constexpr int lanes = kLanes<T>, unroll = 4;  // 4 chains hide the 4 cycles of an FMA
  Vec<T> square[unroll] = {}, dot[unroll] = {};
  int64_t i = 0;
  for (; i + unroll * lanes <= width; i += unroll * lanes) {
    for (int u = 0; u < unroll; u += 2) {
      Vec<T> x0, x1;
      load_two<T>(x + i + u * lanes, x0, x1);
      square[u] += x0 * x0;
      square[u + 1] += x1 * x1;
      if (g == nullptr) continue;
      Vec<T> g0, g1;
      load_two<T>(g + i + u * lanes, g0, g1);
      dot[u] += x0 * g0;
      dot[u + 1] += x1 * g1;
    }
  }
  for (; i < width; i += lanes) {
    const int n = static_cast<int>(width - i < lanes ? width - i : lanes);
    const Vec<T> a = load<T>(x + i, n);
    square[0] += a * a;
    if (g != nullptr) dot[0] += a * load<T>(g + i, n);
  }
  sums[0] = sum<T>((square[0] + square[1]) + (square[2] + square[3]));
  sums[1] = sum<T>((dot[0] + dot[1]) + (dot[2] + dot[3]));
}

// x rounded to bf16, in the upper half of every element.
TDC_INLINE u32v upper_bf16(f32v x) {
  const u32v bits = reinterpret_cast<u32v>(x);
  const u32v rounded = bits + 0x7fff + ((bits >> 16) & 1);  // to nearest, ties to even
  return (x != x ? u32v{} + 0x7fc00000u : rounded) & 0xffff0000u;
}

// What load_two took apart. With it bf16 rows took 0.6 of the time of widening and narrowing.
template <typename T>
TDC_INLINE void store_two(T* p, Vec<T> a, Vec<T> b) {
  if constexpr (std::is_same_v<T, bf16>) {
    const u32v bits = upper_bf16(a) >> 16 | upper_bf16(b);
    std::memcpy(p, &bits, sizeof(bits));
  } else {
    store<T>(p, a);
    store<T>(p + kLanes<T>, b);
  }
}

// out = x / norm
template <typename T>
void divide_row(const T* x, acc_t<T> norm, int64_t width, T* out) {
  constexpr int lanes = kLanes<T>;
  int64_t i = 0;
  for (; i + 2 * lanes <= width; i += 2 * lanes) {
    Vec<T> a, b;
    load_two<T>(x + i, a, b);
    store_two<T>(out + i, a / norm, b / norm);
  }
  for (; i < width; i += lanes) {
    const int n = static_cast<int>(width - i < lanes ? width - i : lanes);
    store<T>(out + i, load<T>(x + i, n) / norm, n);
  }
}

// out = (g - along * x) / norm
template <typename T>
void gradient_row(const T* g, const T* x, acc_t<T> along, acc_t<T> norm, int64_t width, T* out) {
  constexpr int lanes = kLanes<T>;
  int64_t i = 0;
  for (; i + 2 * lanes <= width; i += 2 * lanes) {
    Vec<T> g0, g1, x0, x1;
    load_two<T>(g + i, g0, g1);
    load_two<T>(x + i, x0, x1);
    store_two<T>(out + i, (g0 - along * x0) / norm, (g1 - along * x1) / norm);
  }
  for (; i < width; i += lanes) {
    const int n = static_cast<int>(width - i < lanes ? width - i : lanes);
    store<T>(out + i, (load<T>(g + i, n) - along * load<T>(x + i, n)) / norm, n);
  }
}

// out = sum of the `count` rows of grad named by `rows`, in their order. `sums` has room for whole
// vectors of `width` numbers.
template <typename T>
void sum_rows(const T* grad, int64_t stride, const int32_t* rows, int64_t count, int64_t width,
              acc_t<T>* sums, T* out) {
  constexpr int lanes = kLanes<T>;
  const int64_t whole = width - width % lanes;
  const int rest = static_cast<int>(width - whole);
  const auto add = [=](const Vec<T>& g, acc_t<T>* to) __attribute__((always_inline)) {
    Vec<T> total;
    std::memcpy(&total, to, sizeof(total));
    total += g;
    std::memcpy(to, &total, sizeof(total));
  };
  const Vec<T> zero{};
  for (int64_t i = 0; i < width; i += lanes) std::memcpy(sums + i, &zero, sizeof(zero));
  for (int64_t r = 0; r < count; ++r) {
    const T* g = grad + rows[r] * stride;
    for (int64_t i = 0; i < whole; i += lanes) add(load<T>(g + i), sums + i);
    if (rest > 0) add(load<T>(g + whole, rest), sums + whole);
  }
  for (int64_t i = 0; i < width; i += lanes) {
    Vec<T> total;
    std::memcpy(&total, sums + i, sizeof(total));
    store<T>(out + i, total, static_cast<int>(width - i < lanes ? width - i : lanes));
  }
}

}  // namespace tdc::TDC_ISA
