// Arrays as (rows, C): which part is whose. Block x takes a chunk of rows, block y a tile of
// channels; thread x of a block has V neighbouring channels for all its rows, thread y every
// blockDim.y-th row. Neighbouring threads so read neighbouring 16 bytes.

struct Chunk {
  i64 first, last;  // rows
};

__device__ __forceinline__ Chunk chunk_of_rows(i64 length, i64 rows_per_chunk) {
  const i64 first = blockIdx.x * rows_per_chunk;
  return {first, first + rows_per_chunk < length ? first + rows_per_chunk : length};
}

template <int V>
__device__ __forceinline__ int first_channel() {
  return (blockIdx.y * blockDim.x + threadIdx.x) * V;
}

template <int V>
__device__ __forceinline__ void load_vector(real (&to)[V], const real* from, int channel) {
#pragma unroll
  for (int i = 0; i < V; i++) to[i] = from[channel + i];
}

// Where the ReLU's output is 0 no gradient passes; where it is NaN, one does, as in the reference.
template <int V>
__device__ __forceinline__ void close_gate(real (&grad)[V], const Pack<V, io>& y) {
#pragma unroll
  for (int i = 0; i < V; i++) grad[i] = widen(y.element[i]) <= 0 ? 0 : grad[i];
}

// Sums `value` over the block's thread rows, as a tree in fixed order; thread row 0 has the sum.
template <int V>
__device__ void add_over_thread_rows(real (&value)[V]) {
  __shared__ real sums[THREADS * V];
  const int at = (threadIdx.y * blockDim.x + threadIdx.x) * V;
#pragma unroll
  for (int i = 0; i < V; i++) sums[at + i] = value[i];
  for (int step = 1; step < blockDim.y; step *= 2) {
    __syncthreads();
    if (threadIdx.y % (2 * step) == 0 && threadIdx.y + step < blockDim.y)
#pragma unroll
      for (int i = 0; i < V; i++) sums[at + i] += sums[at + step * blockDim.x * V + i];
  }
#pragma unroll
  for (int i = 0; i < V; i++) value[i] = sums[at + i];
  __syncthreads();  // the next call may write
}
