// SPDX-License-Identifier: Apache-2.0
// One tile of the features, walked along time: the previous frame's tile is still in the cache when
// the next one comes, so that memory is read once.

namespace tdc::TDC_ISA {

// sums[2t] += <x_{t-1}, x_t>, sums[2t+1] += |x_t|^2 over `width` features of the frames [first,
// last); x_t stands at frames + t*stride. The pair of frame 0 does not exist and is left alone.
template <typename T>
void tile_sums(const T* frames, int64_t stride, int64_t width, int64_t first, int64_t last,
               acc_t<T>* sums) {
  constexpr int lanes = kLanes<T>, unroll = 4;  // 4 x 2 chains hide the 4 cycles of an FMA
  for (int64_t t = first; t < last; ++t) {
    const T* x = frames + t * stride;
    const T* previous = t > 0 ? x - stride : x;
    Vec<T> dot[unroll] = {}, square[unroll] = {};
    int64_t i = 0;
    for (; i + unroll * lanes <= width; i += unroll * lanes) {
      if constexpr (sizeof(T) == 2) {
        // Converting leaves too few loads in flight: asked for 1 kB ahead, bf16 went from 0.79 to
        // 0.88 of the read bandwidth, while fp32 lost a little.
        for (int at = 0; at < unroll * lanes; at += 32) __builtin_prefetch(x + i + at + 512);
      }
      for (int u = 0; u < unroll; u += 2) {
        Vec<T> x0, x1, p0, p1;
        load_two<T>(x + i + u * lanes, x0, x1);
        load_two<T>(previous + i + u * lanes, p0, p1);
        dot[u] += p0 * x0;
        dot[u + 1] += p1 * x1;
        square[u] += x0 * x0;
        square[u + 1] += x1 * x1;
      }
    }
    for (; i < width; i += lanes) {
      const int n = static_cast<int>(width - i < lanes ? width - i : lanes);
      const Vec<T> a = load<T>(x + i, n);
      dot[0] += load<T>(previous + i, n) * a;
      square[0] += a * a;
    }
    if (t > 0) sums[2 * t] = sum<T>((dot[0] + dot[1]) + (dot[2] + dot[3]));
    sums[2 * t + 1] = sum<T>((square[0] + square[1]) + (square[2] + square[3]));
  }
}

// grad_t = a_t x_{t-1} + b_t x_t + c_t x_{t+1} over `width` features of the frames [first, last);
// weights holds a_t, b_t, c_t per frame. A neighbour of weight 0 is not read: it may not exist, or
// belong to another video and hold a NaN.
template <typename T>
void tile_gradient(const T* frames, int64_t stride, int64_t width, int64_t first, int64_t last,
                   const acc_t<T>* weights, T* grad, int64_t grad_stride) {
  constexpr int lanes = kLanes<T>;
  for (int64_t t = first; t < last; ++t) {
    const T* x = frames + t * stride;
    const acc_t<T>* w = weights + 3 * t;
    const T* previous = w[0] != 0 ? x - stride : x;
    const T* next = w[2] != 0 ? x + stride : x;
    T* out = grad + t * grad_stride;
    for (int64_t i = 0; i < width; i += lanes) {
      const int n = static_cast<int>(width - i < lanes ? width - i : lanes);
      if (n == lanes) {
        store<T>(out + i, w[0] * load<T>(previous + i) + w[1] * load<T>(x + i) +
                              w[2] * load<T>(next + i));
      } else {
        store<T>(out + i,
                 w[0] * load<T>(previous + i, n) + w[1] * load<T>(x + i, n) +
                     w[2] * load<T>(next + i, n),
                 n);
      }
    }
  }
}

}  // namespace tdc::TDC_ISA
