// Sums over pixels and factors by image and channel, see pooling.py. Floors: spatial_sums reads x,
// and factor and gate where given; scale_channels reads x and gate where given, writes y.
// Here a "row" is a pixel of one image.

template <int V>
__device__ void sums_of_image(const io* __restrict__ x, const io* __restrict__ factor,
                              const io* __restrict__ gate, void* __restrict__ sums, int wide,
                              double scale, i64 length, int C) {
  const int c = first_channel<V>();
  real total[V] = {};
  if (c < C)
    for (i64 row = threadIdx.y; row < length; row += blockDim.y) {
      const i64 at = (blockIdx.x * length + row) * C + c;
      const auto of_x = fetch<V>(x, at), of_gate = fetch<V>(gate, at);
      const auto of_factor = fetch<V>(factor, at);
      real value[V];
      widened(value, of_x);
      if (gate) close_gate(value, of_gate);
      if (factor) {
        real other[V];
        widened(other, of_factor);
#pragma unroll
        for (int i = 0; i < V; i++) value[i] *= other[i];
      }
#pragma unroll
      for (int i = 0; i < V; i++) total[i] += value[i];
    }
  add_over_thread_rows(total);
  if (threadIdx.y != 0 || c >= C) return;
  const i64 at = (i64)blockIdx.x * C + c;
#pragma unroll
  for (int i = 0; i < V; i++) {
    const real sum = total[i] * real(scale);
    if (wide) static_cast<real*>(sums)[at + i] = sum;
    else static_cast<io*>(sums)[at + i] = narrow(sum);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
spatial_sums(const io* x, const io* factor, const io* gate, void* sums, int wide, double scale,
             i64 length, int C, i64 rows_per_chunk, int width) {
  if (width == WIDTH)
    sums_of_image<WIDTH>(x, factor, gate, sums, wide, scale, length, C);
  else
    sums_of_image<1>(x, factor, gate, sums, wide, scale, length, C);
}

// V of the (N, C) `vector`, which may be stored either way; `missing` where there is none.
template <int V>
__device__ __forceinline__ void load_either(real (&to)[V], const void* vector, int wide, i64 at,
                                            real missing) {
#pragma unroll
  for (int i = 0; i < V; i++)
    to[i] = !vector ? missing
            : wide  ? static_cast<const real*>(vector)[at + i]
                    : widen(static_cast<const io*>(vector)[at + i]);
}

template <int V>
__device__ void scale_chunk(const io* __restrict__ x, const void* __restrict__ scale,
                            const void* __restrict__ shift, const io* __restrict__ gate,
                            io* __restrict__ y, int wide, double shift_factor, int relu,
                            int images, i64 length, int C, i64 rows_per_chunk) {
  const int c = first_channel<V>();
  if (c >= C) return;
  const Chunk rows = chunk_of_rows(length, rows_per_chunk);
  for (i64 image = blockIdx.z; image < images; image += gridDim.z) {
    real a[V], b[V];
    load_either(a, scale, wide, image * C + c, 0);
    load_either(b, shift, wide, image * C + c, 0);
    for (i64 row = rows.first + threadIdx.y; row < rows.last; row += blockDim.y) {
      const i64 at = (image * length + row) * C + c;
      const auto of_x = fetch<V>(x, at), of_gate = fetch<V>(gate, at);
      real value[V];
      widened(value, of_x);
      if (gate) close_gate(value, of_gate);
#pragma unroll
      for (int i = 0; i < V; i++) {
        value[i] = value[i] * a[i] + b[i] * real(shift_factor);
        value[i] = relu ? rectified(value[i]) : value[i];
      }
      store(y + at, value);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
scale_channels(const io* x, const void* scale, const void* shift, const io* gate, io* y, int wide,
               double shift_factor, int relu, int images, i64 length, int C, i64 rows_per_chunk,
               int width) {
  if (width == WIDTH)
    scale_chunk<WIDTH>(x, scale, shift, gate, y, wide, shift_factor, relu, images, length, C,
                       rows_per_chunk);
  else
    scale_chunk<1>(x, scale, shift, gate, y, wide, shift_factor, relu, images, length, C,
                   rows_per_chunk);
}
