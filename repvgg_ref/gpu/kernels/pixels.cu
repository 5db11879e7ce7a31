// Bytes to standardised images, see pixels.py. Floor: reads 1, writes sizeof(io) bytes an element.

constexpr int PIXELS = WIDTH < 4 ? WIDTH : 4;  // elements of one access of the images

template <int V>
__device__ void standardise(const unsigned char* __restrict__ pixels,
                            const real* __restrict__ mean, const real* __restrict__ std,
                            io* __restrict__ images, real scale, i64 size, int C) {
  const i64 vectors = size / V;
  for (i64 vector = blockIdx.x * (i64)blockDim.x + threadIdx.x; vector < vectors;
       vector += (i64)gridDim.x * blockDim.x) {
    const i64 at = vector * V;
    const auto bytes = *reinterpret_cast<const Pack<V, unsigned char>*>(pixels + at);
    int channel = at % C;
    real value[V];
#pragma unroll
    for (int i = 0; i < V; i++) {
      value[i] = (bytes.element[i] * scale - mean[channel]) / std[channel];
      channel = channel + 1 == C ? 0 : channel + 1;
    }
    store(images + at, value);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
standardise_uint8(const unsigned char* pixels, const real* mean, const real* std, io* images,
                  double scale, i64 size, int C, int width) {
  if (width == PIXELS) standardise<PIXELS>(pixels, mean, std, images, scale, size, C);
  else standardise<1>(pixels, mean, std, images, scale, size, C);
}
