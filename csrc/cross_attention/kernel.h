// SPDX-License-Identifier: Apache-2.0
// Products of small panels, and the softmax between them, on the CPU. One copy per instruction set
// (common/each_isa.h).
//
// A panel is a matrix of kColumns columns, row after row: the queries of one head (padded to a
// multiple of kColumns) as columns of whatever they are multiplied with. The other factor is read
// where it lies, a value at a time, which is broadcast: weights and tokens are never packed.

namespace tdc::TDC_ISA {

// Rows of a tile: as many as leave registers for a row of the panel and a broadcast value. 12
// accumulators hide the latency of 16 registers' worth of multiply-adds, 4 cycles times 2 per cycle.
template <typename A>
inline constexpr int kVectors = kColumns / kLanes<A>;
#if TDC_LEVEL >= 2
template <typename A>
inline constexpr int kRows = 12;
#else
template <typename A>
inline constexpr int kRows = kVectors<A> >= 8 ? 1 : 12 / kVectors<A>;
#endif

// c[i][:] (+)= sum over p of a[i * row + p * step] * b[p][:], for R rows.
template <typename A, int R>
TDC_INLINE void tile(const A* a, int64_t row, int64_t step, const A* b, int64_t depth, A* c,
                     bool add) {
  constexpr int kV = kVectors<A>, kL = kLanes<A>;
  Vec<A> sum[R][kV] = {};
  for (int64_t p = 0; p < depth; ++p, a += step, b += kColumns) {
    Vec<A> x[kV];
    for (int v = 0; v < kV; ++v) x[v] = load<A>(b + v * kL);
    for (int i = 0; i < R; ++i) {
      for (int v = 0; v < kV; ++v) sum[i][v] += a[i * row] * x[v];
    }
  }
  // c is added last: a sum of blocks' sums loses less than one long sum (scores over 3584 columns: a
  // tenth of the error).
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < kV; ++v) {
      A* to = c + i * kColumns + v * kL;
      store<A>(to, add ? load<A>(to) + sum[i][v] : sum[i][v]);
    }
  }
}

template <typename A, int R>
void last_tile(int rows, const A* a, int64_t row, int64_t step, const A* b, int64_t depth, A* c,
               bool add) {
  if constexpr (R > 0) {
    if (rows == R) tile<A, R>(a, row, step, b, depth, c, add);
    else last_tile<A, R - 1>(rows, a, row, step, b, depth, c, add);
  }
}

// The panel c (+)= a b: `rows` rows of it, `depth` of b.
template <typename A>
void multiply(const A* a, int64_t row, int64_t step, const A* b, int64_t rows, int64_t depth, A* c,
              bool add) {
  constexpr int kR = kRows<A>;
  int64_t i = 0;
  if (row == 1) {  // a constant for the compiler: one address for all rows of a tile
    for (; i + kR <= rows; i += kR) tile<A, kR>(a + i, 1, step, b, depth, c + i * kColumns, add);
  } else {
    for (; i + kR <= rows; i += kR) {
      tile<A, kR>(a + i * row, row, 1, b, depth, c + i * kColumns, add);
    }
  }
  last_tile<A, kR - 1>(static_cast<int>(rows - i), a + i * row, row, step, b, depth,
                       c + i * kColumns, add);
}

// exp(x) for x <= 0: x = n ln 2 + r, a Taylor polynomial of r (below half an ulp for |r| <= ln 2 / 2
// at this degree), and n added to the exponent. A NaN stays one.
template <typename A>
TDC_INLINE Vec<A> exponential(Vec<A> x) {
  constexpr bool kDouble = sizeof(A) == 8;
  constexpr int kDegree = kDouble ? 13 : 7;
  constexpr A kShift = kDouble ? A(6755399441055744.0) : A(12582912.0);  // 1.5 * 2^(mantissa bits)
  constexpr A kLow = kDouble ? A(-708) : A(-87);                         // below: 0
  constexpr A kLn2High = kDouble ? A(6.93147180369123816490e-01) : A(0.693145751953125);
  constexpr A kLn2Low = kDouble ? A(1.90821492927058770002e-10) : A(1.42860682030941723212e-6);
  using Bits = std::conditional_t<kDouble, uint64_t __attribute__((vector_size(kBytes))), u32v>;
  const Vec<A> shifted = x * A(1.44269504088896340736) + kShift;
  const Vec<A> n = shifted - kShift;
  const Vec<A> r = (x - n * kLn2High) - n * kLn2Low;
  A factor[kDegree + 1] = {1};
  for (int k = 1; k <= kDegree; ++k) factor[k] = factor[k - 1] / A(k);
  Vec<A> y = Vec<A>{} + factor[kDegree];
  for (int k = kDegree - 1; k >= 0; --k) y = y * r + factor[k];
  const Bits scaled = reinterpret_cast<Bits>(y) +
                      (reinterpret_cast<Bits>(shifted) << (kDouble ? 52 : 23));
  const Vec<A> result = x < kLow ? Vec<A>{} : reinterpret_cast<Vec<A>>(scaled);
  return x != x ? x : result;
}

// Softmax down the columns of a panel of scores, in place. `hidden`: nonzero for rows that get no
// weight, or null. At least one row is not hidden.
template <typename A>
void softmax(A* panel, int64_t rows, const uint8_t* hidden) {
  constexpr int kL = kLanes<A>;
  for (int v = 0; v < kVectors<A>; ++v) {
    A* at = panel + v * kL;
    Vec<A> most = Vec<A>{} - std::numeric_limits<A>::infinity();
    for (int64_t i = 0; i < rows; ++i) {
      if (hidden != nullptr && hidden[i] != 0) continue;
      const Vec<A> x = load<A>(at + i * kColumns);
      most = x > most ? x : most;
    }
    Vec<A> total{};
    for (int64_t i = 0; i < rows; ++i) {
      Vec<A> x{};
      if (hidden == nullptr || hidden[i] == 0) x = exponential<A>(load<A>(at + i * kColumns) - most);
      total += x;
      store<A>(at + i * kColumns, x);
    }
    const Vec<A> scale = A(1) / total;
    for (int64_t i = 0; i < rows; ++i) {
      store<A>(at + i * kColumns, load<A>(at + i * kColumns) * scale);
    }
  }
}

// In place of the gradient g of the probabilities p that of the scores: p (g - sum over rows of p g).
template <typename A>
void softmax_gradient(const A* p, A* g, int64_t rows) {
  constexpr int kL = kLanes<A>;
  for (int v = 0; v < kVectors<A>; ++v) {
    const int64_t at = v * kL;
    Vec<A> total{};
    for (int64_t i = 0; i < rows; ++i) {
      total += load<A>(p + at + i * kColumns) * load<A>(g + at + i * kColumns);
    }
    for (int64_t i = 0; i < rows; ++i) {
      const Vec<A> x = load<A>(g + at + i * kColumns) - total;
      store<A>(g + at + i * kColumns, load<A>(p + at + i * kColumns) * x);
    }
  }
}

// `rows` rows of `width` elements of type T, `stride` apart, as a dense matrix of A.
template <typename T, typename A>
void convert(const T* x, int64_t stride, int64_t rows, int64_t width, A* out) {
  for (int64_t i = 0; i < rows; ++i, x += stride, out += width) {
    if constexpr (std::is_same_v<T, A>) {
      std::memcpy(out, x, static_cast<size_t>(width) * sizeof(A));
    } else if constexpr (std::is_same_v<acc_t<T>, A>) {
      int64_t j = 0;
      for (; j + kLanes<T> <= width; j += kLanes<T>) store<A>(out + j, load<T>(x + j));
      const int rest = static_cast<int>(width - j);
      if (rest > 0) store<A>(out + j, load<T>(x + j, rest), rest);
    } else {
      for (int64_t j = 0; j < width; ++j) out[j] = static_cast<A>(x[j]);
    }
  }
}

}  // namespace tdc::TDC_ISA
