// The three-branch block, see branches.py. S = bytes of one activation array; B = branches there.
// Floors: channel_moments reads B S. branches_forward reads B S, writes S. branches_backward_sums
// reads (B + 2) S. branches_backward reads (B + 2) S, writes B S. Partial sums add up to 1/16 S for
// each array read, coefficients nothing that counts.

struct Moments {
  real count, mean, m2;  // m2: sum of squared distances from the mean
};

// Chan, Golub & LeVeque 1983, eq. 2.1.
__device__ __forceinline__ Moments merged(const Moments& a, const Moments& b) {
  if (b.count == 0) return a;
  const real count = a.count + b.count, delta = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}

// Welford's update over this thread's rows, then the merge over the block's thread rows.
template <int V>
__device__ void moments_of_chunk(const io* __restrict__ array, real* __restrict__ partial,
                                 i64 length, int C, i64 rows_per_chunk) {
  __shared__ real counts[THREADS], means[THREADS * V], m2s[THREADS * V];
  const int c = first_channel<V>(), thread = threadIdx.y * blockDim.x + threadIdx.x;
  real mean[V] = {}, m2[V] = {}, count = 0;
  if (c < C) {
    const Chunk rows = chunk_of_rows(length, rows_per_chunk);
#pragma unroll 4
    for (i64 row = rows.first + threadIdx.y; row < rows.last; row += blockDim.y) {
      real value[V];
      load(value, array + row * C + c);
      count += 1;
      const real share = 1 / count;
#pragma unroll
      for (int i = 0; i < V; i++) {
        const real delta = value[i] - mean[i];
        mean[i] += delta * share;
        m2[i] += delta * (value[i] - mean[i]);
      }
    }
  }
  counts[thread] = count;
#pragma unroll
  for (int i = 0; i < V; i++) means[thread * V + i] = mean[i], m2s[thread * V + i] = m2[i];
  for (int step = 1; step < blockDim.y; step *= 2) {
    __syncthreads();
    if (threadIdx.y % (2 * step) != 0 || threadIdx.y + step >= blockDim.y) continue;
    const int other = thread + step * blockDim.x;
    Moments both = {};
    for (int i = 0; i < V; i++) {
      both = merged({counts[thread], means[thread * V + i], m2s[thread * V + i]},
                    {counts[other], means[other * V + i], m2s[other * V + i]});
      means[thread * V + i] = both.mean, m2s[thread * V + i] = both.m2;
    }
    counts[thread] = both.count;
  }
  if (threadIdx.y == 0 && c < C)
    for (int i = 0; i < V; i++)
      partial[c + i] = means[thread * V + i], partial[C + c + i] = m2s[thread * V + i];
}

extern "C" __global__ void __launch_bounds__(THREADS)
channel_moments(const io* y3, const io* y1, const io* x, real* partial, i64 length, int C,
                i64 rows_per_chunk, int width) {
  const io* array = blockIdx.z == 0 ? y3 : blockIdx.z == 1 ? y1 : x;
  if (!array) return;
  partial += (blockIdx.z * (i64)gridDim.x + blockIdx.x) * 2 * C;
  if (width == WIDTH) moments_of_chunk<WIDTH>(array, partial, length, C, rows_per_chunk);
  else moments_of_chunk<1>(array, partial, length, C, rows_per_chunk);
}

// (3, chunks, 2, C) -> (3, 2, C); each of 8 thread rows merges every 8th chunk, then a tree.
extern "C" __global__ void __launch_bounds__(THREADS)
merge_moments(const real* partial, real* moments, int present, i64 length, int C,
              i64 rows_per_chunk, i64 chunks) {
  __shared__ Moments found[8][32];
  const int c = blockIdx.x * 32 + threadIdx.x, branch = blockIdx.y;
  Moments mine = {};
  if (c < C && present >> branch & 1)
    for (i64 chunk = threadIdx.y; chunk < chunks; chunk += 8) {
      const real* from = partial + (branch * chunks + chunk) * 2 * C + c;
      const i64 rest = length - chunk * rows_per_chunk;
      mine = merged(mine, {real(rest < rows_per_chunk ? rest : rows_per_chunk), from[0], from[C]});
    }
  found[threadIdx.y][threadIdx.x] = mine;
  for (int step = 4; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.y < step) {
      Moments& here = found[threadIdx.y][threadIdx.x];
      here = merged(here, found[threadIdx.y + step][threadIdx.x]);
    }
  }
  if (threadIdx.y != 0 || c >= C) return;
  moments[branch * 2 * C + c] = found[0][threadIdx.x].mean;
  moments[branch * 2 * C + C + c] = found[0][threadIdx.x].m2 / length;
}

// a_k = gamma / sqrt(var + eps) and b = sum of beta - a_k * mean; absent branches give 0.
extern "C" __global__ void branch_coefficients(
    const real* moments, const real* gamma3, const real* gamma1, const real* gamma0,
    const real* beta3, const real* beta1, const real* beta0, real* forward, real* inv_std,
    double eps, int C) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= C) return;
  const real* gammas[3] = {gamma3, gamma1, gamma0};
  const real* betas[3] = {beta3, beta1, beta0};
  real shift = 0;
#pragma unroll
  for (int k = 0; k < 3; k++) {
    real scale = 0, inverse = 0;
    if (gammas[k]) {
      inverse = 1 / sqrt(moments[(2 * k + 1) * C + c] + real(eps));
      scale = gammas[k][c] * inverse;
      shift += betas[k][c] - scale * moments[2 * k * C + c];
    }
    forward[k * C + c] = scale;
    inv_std[k * C + c] = inverse;
  }
  forward[3 * C + c] = shift;
}

template <int V>
__device__ __forceinline__ void add_scaled(real (&sum)[V], const real (&a)[V],
                                           const Pack<V, io>& pack) {
  real value[V];
  widened(value, pack);
#pragma unroll
  for (int i = 0; i < V; i++) sum[i] += a[i] * value[i];
}

template <int V>
__device__ void forward_chunk(const io* __restrict__ y3, const io* __restrict__ y1,
                              const io* __restrict__ x, const real* __restrict__ coefficients,
                              io* __restrict__ y, int relu, i64 length, int C,
                              i64 rows_per_chunk) {
  const int c = first_channel<V>();
  if (c >= C) return;
  real a3[V], a1[V], a0[V], b[V];
  load_vector(a3, coefficients, c);
  load_vector(a1, coefficients + C, c);
  load_vector(a0, coefficients + 2 * C, c);
  load_vector(b, coefficients + 3 * C, c);
  const Chunk rows = chunk_of_rows(length, rows_per_chunk);
  for (i64 row = rows.first + threadIdx.y; row < rows.last; row += blockDim.y) {
    const i64 at = row * C + c;
    const auto of3 = fetch<V>(y3, at), of1 = fetch<V>(y1, at), of0 = fetch<V>(x, at);
    real sum[V];
#pragma unroll
    for (int i = 0; i < V; i++) sum[i] = b[i];
    add_scaled(sum, a0, of0);
    add_scaled(sum, a1, of1);
    add_scaled(sum, a3, of3);
#pragma unroll
    for (int i = 0; i < V; i++) sum[i] = relu ? rectified(sum[i]) : sum[i];
    store(y + at, sum);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
branches_forward(const io* y3, const io* y1, const io* x, const real* coefficients, io* y,
                 int relu, i64 length, int C, i64 rows_per_chunk, int width) {
  if (width == WIDTH)
    forward_chunk<WIDTH>(y3, y1, x, coefficients, y, relu, length, C, rows_per_chunk);
  else
    forward_chunk<1>(y3, y1, x, coefficients, y, relu, length, C, rows_per_chunk);
}

template <int V>
__device__ __forceinline__ void add_centred(real (&sum)[V], const real (&grad)[V],
                                            const Pack<V, io>& pack, const real (&mean)[V]) {
  real value[V];
  widened(value, pack);
#pragma unroll
  for (int i = 0; i < V; i++) sum[i] += grad[i] * (value[i] - mean[i]);
}

template <int V>
__device__ void write_sum(real (&sum)[V], real* partial, int c, int C) {
  add_over_thread_rows(sum);
  if (threadIdx.y == 0 && c < C)
#pragma unroll
    for (int i = 0; i < V; i++) partial[c + i] = sum[i];
}

template <int V>
__device__ void sums_of_chunk(const io* __restrict__ grad_y, const io* __restrict__ y,
                              const io* __restrict__ y3, const io* __restrict__ y1,
                              const io* __restrict__ x, const real* __restrict__ moments,
                              real* __restrict__ partial, i64 length, int C,
                              i64 rows_per_chunk) {
  const int c = first_channel<V>();
  real total[V] = {}, total3[V] = {}, total1[V] = {}, total0[V] = {};
  if (c < C) {
    real mean3[V], mean1[V], mean0[V];
    load_vector(mean3, moments, c);
    load_vector(mean1, moments + 2 * C, c);
    load_vector(mean0, moments + 4 * C, c);
    const Chunk rows = chunk_of_rows(length, rows_per_chunk);
    for (i64 row = rows.first + threadIdx.y; row < rows.last; row += blockDim.y) {
      const i64 at = row * C + c;
      const auto of_grad = fetch<V>(grad_y, at), of_y = fetch<V>(y, at);
      const auto of3 = fetch<V>(y3, at), of1 = fetch<V>(y1, at), of0 = fetch<V>(x, at);
      real grad[V];
      widened(grad, of_grad);
      if (y) close_gate(grad, of_y);
#pragma unroll
      for (int i = 0; i < V; i++) total[i] += grad[i];
      add_centred(total3, grad, of3, mean3);
      if (y1) add_centred(total1, grad, of1, mean1);
      if (x) add_centred(total0, grad, of0, mean0);
    }
  }
  write_sum(total, partial, c, C);
  write_sum(total3, partial + C, c, C);
  write_sum(total1, partial + 2 * C, c, C);
  write_sum(total0, partial + 3 * C, c, C);
}

extern "C" __global__ void __launch_bounds__(THREADS)
branches_backward_sums(const io* grad_y, const io* y, const io* y3, const io* y1, const io* x,
                       const real* moments, real* partial, i64 length, int C, i64 rows_per_chunk,
                       int width) {
  partial += (i64)blockIdx.x * 4 * C;
  if (width == WIDTH)
    sums_of_chunk<WIDTH>(grad_y, y, y3, y1, x, moments, partial, length, C, rows_per_chunk);
  else
    sums_of_chunk<1>(grad_y, y, y3, y1, x, moments, partial, length, C, rows_per_chunk);
}

// (chunks, columns) -> (columns); each of 8 thread rows adds every 8th chunk, then a tree.
extern "C" __global__ void __launch_bounds__(THREADS)
merge_sums(const real* partial, real* sums, int columns, i64 chunks) {
  const int column = blockIdx.x * 32 + threadIdx.x;
  real total[1] = {};
  if (column < columns)
    for (i64 chunk = threadIdx.y; chunk < chunks; chunk += 8)
      total[0] += partial[chunk * columns + column];
  add_over_thread_rows(total);
  if (threadIdx.y == 0 && column < columns) sums[column] = total[0];
}

// grad_y_k = p g + q y_k + r, see branches.py; absent branches give 0.
extern "C" __global__ void branch_grad_coefficients(
    const real* sums, const real* moments, const real* inv_std, const real* gamma3,
    const real* gamma1, const real* gamma0, real* backward, real* grad_gamma, i64 count, int C) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= C) return;
  const real* gammas[3] = {gamma3, gamma1, gamma0};
  const real mean_grad = sums[c] / count;
#pragma unroll
  for (int k = 0; k < 3; k++) {
    real p = 0, q = 0, r = 0, grad = 0;
    if (gammas[k]) {
      const real inverse = inv_std[k * C + c];
      grad = inverse * sums[(k + 1) * C + c];
      p = gammas[k][c] * inverse;
      q = -p * inverse * (grad / count);
      r = -p * mean_grad - q * moments[2 * k * C + c];
    }
    grad_gamma[k * C + c] = grad;
    backward[3 * k * C + c] = p;
    backward[(3 * k + 1) * C + c] = q;
    backward[(3 * k + 2) * C + c] = r;
  }
}

template <int V>
struct Line {
  real p[V], q[V], r[V];
};

template <int V>
__device__ __forceinline__ Line<V> load_line(const real* coefficients, int c, int C) {
  Line<V> line;
  load_vector(line.p, coefficients, c);
  load_vector(line.q, coefficients + C, c);
  load_vector(line.r, coefficients + 2 * C, c);
  return line;
}

template <int V>
__device__ __forceinline__ void write_grad(io* to, const Pack<V, io>& pack,
                                           const real (&grad)[V], const Line<V>& line) {
  real value[V];
  widened(value, pack);
#pragma unroll
  for (int i = 0; i < V; i++)
    value[i] = line.p[i] * grad[i] + (line.q[i] * value[i] + line.r[i]);
  store(to, value);
}

template <int V>
__device__ void backward_chunk(const io* __restrict__ grad_y, const io* __restrict__ y,
                               const io* __restrict__ y3, const io* __restrict__ y1,
                               const io* __restrict__ x, const real* __restrict__ coefficients,
                               io* __restrict__ grad_y3, io* __restrict__ grad_y1,
                               io* __restrict__ grad_x, i64 length, int C, i64 rows_per_chunk) {
  const int c = first_channel<V>();
  if (c >= C) return;
  const Line<V> line3 = load_line<V>(coefficients, c, C);
  const Line<V> line1 = load_line<V>(coefficients + 3 * C, c, C);
  const Line<V> line0 = load_line<V>(coefficients + 6 * C, c, C);
  const Chunk rows = chunk_of_rows(length, rows_per_chunk);
  for (i64 row = rows.first + threadIdx.y; row < rows.last; row += blockDim.y) {
    const i64 at = row * C + c;
    const auto of_grad = fetch<V>(grad_y, at), of_y = fetch<V>(y, at);
    const auto of3 = fetch<V>(y3, at), of1 = fetch<V>(y1, at), of0 = fetch<V>(x, at);
    real grad[V];
    widened(grad, of_grad);
    if (y) close_gate(grad, of_y);
    write_grad(grad_y3 + at, of3, grad, line3);
    if (y1) write_grad(grad_y1 + at, of1, grad, line1);
    if (x) write_grad(grad_x + at, of0, grad, line0);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
branches_backward(const io* grad_y, const io* y, const io* y3, const io* y1, const io* x,
                  const real* coefficients, io* grad_y3, io* grad_y1, io* grad_x, i64 length,
                  int C, i64 rows_per_chunk, int width) {
  if (width == WIDTH)
    backward_chunk<WIDTH>(grad_y, y, y3, y1, x, coefficients, grad_y3, grad_y1, grad_x, length, C,
                          rows_per_chunk);
  else
    backward_chunk<1>(grad_y, y, y3, y1, x, coefficients, grad_y3, grad_y1, grad_x, length, C,
                      rows_per_chunk);
}
