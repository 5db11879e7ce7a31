// Sums over pixels and factors by image and channel, see pooling.py. Floors: spatial_sums reads x,
// and factor where given; scale_channels reads x where given, writes y. Here a "row" is a pixel of
// one image.

template <int V>
__device__ void sums_of_image(const io* __restrict__ x, const io* __restrict__ factor,
                              real* __restrict__ sums, double scale, i64 length, int C) {
  const int c = first_channel<V>();
  real total[V] = {};
  if (c < C)
    for (i64 row = threadIdx.y; row < length; row += blockDim.y) {
      const i64 at = (blockIdx.x * length + row) * C + c;
      const auto of_x = fetch<V>(x, at), of_factor = fetch<V>(factor, at);
      real value[V], other[V];
      widened(value, of_x);
      widened(other, of_factor);
#pragma unroll
      for (int i = 0; i < V; i++) total[i] += factor ? value[i] * other[i] : value[i];
    }
  add_over_thread_rows(total);
  if (threadIdx.y != 0 || c >= C) return;
#pragma unroll
  for (int i = 0; i < V; i++) sums[(i64)blockIdx.x * C + c + i] = total[i] * real(scale);
}

extern "C" __global__ void __launch_bounds__(THREADS)
spatial_sums(const io* x, const io* factor, real* sums, double scale, i64 length, int C,
             i64 rows_per_chunk, int width) {
  if (width == WIDTH) sums_of_image<WIDTH>(x, factor, sums, scale, length, C);
  else sums_of_image<1>(x, factor, sums, scale, length, C);
}

template <int V>
__device__ void scale_chunk(const io* __restrict__ x, const real* __restrict__ scale,
                            const real* __restrict__ shift, io* __restrict__ y, int images,
                            i64 length, int C, i64 rows_per_chunk) {
  const int c = first_channel<V>();
  if (c >= C) return;
  const Chunk rows = chunk_of_rows(length, rows_per_chunk);
  for (i64 image = blockIdx.z; image < images; image += gridDim.z) {
    real a[V] = {}, b[V] = {};
    if (scale) load_vector(a, scale + image * C, c);
    if (shift) load_vector(b, shift + image * C, c);
    for (i64 row = rows.first + threadIdx.y; row < rows.last; row += blockDim.y) {
      const i64 at = (image * length + row) * C + c;
      const auto of_x = fetch<V>(x, at);
      real value[V];
      widened(value, of_x);
#pragma unroll
      for (int i = 0; i < V; i++) value[i] = value[i] * a[i] + b[i];
      store(y + at, value);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
scale_channels(const io* x, const real* scale, const real* shift, io* y, int images, i64 length,
               int C, i64 rows_per_chunk, int width) {
  if (width == WIDTH)
    scale_chunk<WIDTH>(x, scale, shift, y, images, length, C, rows_per_chunk);
  else
    scale_chunk<1>(x, scale, shift, y, images, length, C, rows_per_chunk);
}
