// Convolution as a matrix product, see convolution.py. Floors: im2col reads x once (its windows
// overlap in the caches) and writes the columns; col2im the other way round; bias_relu reads and
// writes y. Pixels are counted in 32 bits, elements in 64.

struct Geometry {
  int N, H, W, C, Ho, Wo, Kh, Kw, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int groups;
};

template <int V>
__device__ void im2col_group(const io* __restrict__ x, io* __restrict__ columns,
                             const Geometry& s) {
  const int Cg = s.C / s.groups, vectors = Cg / V, row = s.Kh * s.Kw * vectors;
  const i64 pixels = (i64)s.N * s.Ho * s.Wo;
  x += blockIdx.z * Cg;
  columns += blockIdx.z * pixels * row * V;
  for (i64 at = blockIdx.x * (i64)blockDim.y + threadIdx.y; at < pixels;
       at += (i64)gridDim.x * blockDim.y) {
    const int pixel = at, wo = pixel % s.Wo, ho = pixel / s.Wo % s.Ho, n = pixel / s.Wo / s.Ho;
    for (int j = threadIdx.x; j < row; j += blockDim.x) {
      const int vector = j % vectors, tap = j / vectors;
      const int h = ho * s.stride_h - s.padding_h + tap / s.Kw * s.dilation_h;
      const int w = wo * s.stride_w - s.padding_w + tap % s.Kw * s.dilation_w;
      const bool inside = h >= 0 && h < s.H && w >= 0 && w < s.W;
      const i64 from = (((i64)n * s.H + h) * s.W + w) * s.C + vector * V;
      const auto pack = fetch<V>(inside ? x : nullptr, from);  // outside: zeros
      *reinterpret_cast<Pack<V, io>*>(columns + (at * row + j) * V) = pack;
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
im2col(const io* x, io* columns, const Geometry shape, int width) {
  if (width == WIDTH) im2col_group<WIDTH>(x, columns, shape);
  else im2col_group<1>(x, columns, shape);
}

// The output row or column whose window holds input `position` at tap `k`, or -1.
__device__ __forceinline__ int window(int position, int k, int stride, int padding, int dilation,
                                      int outputs) {
  const int start = position + padding - k * dilation;
  return start >= 0 && start % stride == 0 && start / stride < outputs ? start / stride : -1;
}

template <int V>
__device__ void col2im_pixels(const io* __restrict__ columns, io* __restrict__ grad_x,
                              const Geometry& s) {
  const int Cg = s.C / s.groups, row = s.Kh * s.Kw * Cg;
  const i64 pixels = (i64)s.N * s.H * s.W, windows = (i64)s.N * s.Ho * s.Wo;
  for (i64 at = blockIdx.x * (i64)blockDim.y + threadIdx.y; at < pixels;
       at += (i64)gridDim.x * blockDim.y) {
    const int pixel = at, w = pixel % s.W, h = pixel / s.W % s.H, n = pixel / s.W / s.H;
    for (int c = threadIdx.x * V; c < s.C; c += blockDim.x * V) {
      const io* group = columns + c / Cg * windows * row + c % Cg;
      real sum[V] = {};
      for (int kh = 0; kh < s.Kh; kh++) {
        const int ho = window(h, kh, s.stride_h, s.padding_h, s.dilation_h, s.Ho);
        for (int kw = 0; kw < s.Kw; kw++) {
          const int wo = window(w, kw, s.stride_w, s.padding_w, s.dilation_w, s.Wo);
          if (ho < 0 || wo < 0) continue;
          const i64 from = ((i64)n * s.Ho + ho) * s.Wo + wo;
          real value[V];
          load(value, group + from * row + (kh * s.Kw + kw) * Cg);
#pragma unroll
          for (int i = 0; i < V; i++) sum[i] += value[i];
        }
      }
      store(grad_x + at * s.C + c, sum);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
col2im(const io* columns, io* grad_x, const Geometry shape, int width) {
  if (width == WIDTH) col2im_pixels<WIDTH>(columns, grad_x, shape);
  else col2im_pixels<1>(columns, grad_x, shape);
}

template <int V>
__device__ void bias_relu_chunk(io* y, const void* bias, int wide_bias, int relu, i64 length,
                                int C, i64 rows_per_chunk) {
  const int c = first_channel<V>();
  if (c >= C) return;
  real b[V] = {};
  if (bias)
    for (int i = 0; i < V; i++)
      b[i] = wide_bias ? static_cast<const real*>(bias)[c + i]
                       : widen(static_cast<const io*>(bias)[c + i]);
  const Chunk rows = chunk_of_rows(length, rows_per_chunk);
  for (i64 row = rows.first + threadIdx.y; row < rows.last; row += blockDim.y) {
    real value[V];
    load(value, y + row * C + c);
#pragma unroll
    for (int i = 0; i < V; i++) {
      value[i] += b[i];
      value[i] = relu ? rectified(value[i]) : value[i];
    }
    store(y + row * C + c, value);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
bias_relu(io* y, const void* bias, int wide_bias, int relu, i64 length, int C,
          i64 rows_per_chunk, int width) {
  if (width == WIDTH)
    bias_relu_chunk<WIDTH>(y, bias, wide_bias, relu, length, C, rows_per_chunk);
  else
    bias_relu_chunk<1>(y, bias, wide_bias, relu, length, C, rows_per_chunk);
}
