// Softmax cross-entropy, one block a row, see loss.py. Floors, R = N * classes elements: forward
// reads the logits (three times, twice from the caches) and soft targets, writes 4 R bytes of
// probabilities; backward reads those and soft targets, writes the gradient.

constexpr int ROW_THREADS = 128;
constexpr unsigned ALL_LANES = 0xFFFFFFFFu;

__device__ __forceinline__ real larger(real a, real b) { return b > a ? b : a; }

// Sum (or largest) of `value` over the block, for every thread, in a fixed order.
template <bool LARGEST>
__device__ real over_block(real value) {
  __shared__ real of_warp[ROW_THREADS / 32];
  for (int bits = 16; bits > 0; bits /= 2) {
    const real other = __shfl_xor_sync(ALL_LANES, value, bits);
    value = LARGEST ? larger(value, other) : value + other;
  }
  __syncthreads();  // the last call has been read
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  real all = of_warp[0];
  for (int warp = 1; warp < ROW_THREADS / 32; warp++)
    all = LARGEST ? larger(all, of_warp[warp]) : all + of_warp[warp];
  return all;
}

// The smoothed targets q of one row; those of a label that is no class are NaN.
struct Targets {
  i64 label;
  const real* soft;  // nullptr: `label` counts
  real keep, spread;
};

__device__ __forceinline__ Targets targets_of_row(const i64* labels, const real* soft,
                                                  double smoothing, int classes) {
  Targets row = {0, soft ? soft + (i64)blockIdx.x * classes : nullptr, real(1 - smoothing),
                 real(smoothing / classes)};
  if (soft) return row;
  row.label = labels[blockIdx.x];
  if (row.label < 0 || row.label >= classes) row.spread = nan("");
  return row;
}

__device__ __forceinline__ real target(const Targets& row, int k) {
  const real hard = row.soft ? row.soft[k] : real(row.label == k);
  return row.keep * hard + row.spread;
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
softmax_cross_entropy_forward(const io* logits, const i64* labels, const real* soft,
                              double smoothing, real* losses, real* probabilities,
                              int* bad_label, int classes) {
  logits += (i64)blockIdx.x * classes;
  probabilities += (i64)blockIdx.x * classes;
  real largest = widen(logits[0]);
  for (int k = threadIdx.x; k < classes; k += ROW_THREADS)
    largest = larger(largest, widen(logits[k]));
  largest = over_block<true>(largest);
  real mass = 0;
  for (int k = threadIdx.x; k < classes; k += ROW_THREADS)
    mass += exp(widen(logits[k]) - largest);  // at most 1: no overflow
  const real log_mass = log(over_block<false>(mass));
  const Targets row = targets_of_row(labels, soft, smoothing, classes);
  real loss = 0;
  for (int k = threadIdx.x; k < classes; k += ROW_THREADS) {
    const real log_probability = widen(logits[k]) - largest - log_mass;
    probabilities[k] = exp(log_probability);
    loss -= target(row, k) * log_probability;
  }
  loss = over_block<false>(loss);
  if (threadIdx.x != 0) return;
  losses[blockIdx.x] = loss;
  if (!soft && row.spread != row.spread) *bad_label = 1;  // all who write, write the same
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
softmax_cross_entropy_backward(const real* probabilities, const i64* labels, const real* soft,
                               double smoothing, double scale, io* grad_logits, int classes) {
  probabilities += (i64)blockIdx.x * classes;
  grad_logits += (i64)blockIdx.x * classes;
  const Targets row = targets_of_row(labels, soft, smoothing, classes);
  real mass = 0;
  for (int k = threadIdx.x; k < classes; k += ROW_THREADS) mass += target(row, k);
  mass = over_block<false>(mass);
  for (int k = threadIdx.x; k < classes; k += ROW_THREADS)
    grad_logits[k] = narrow(real(scale) * (mass * probabilities[k] - target(row, k)));
}
