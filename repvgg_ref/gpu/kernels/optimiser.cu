// Many tensors in one launch, see optimiser.py: block y is a tensor, block x a share of it. Floors,
// bytes an element in float32: sgd_update reads 12 and writes 8 (gradients of 16 bits: 10; copies:
// 2 more written); ema_update reads 8, writes 4; find_nonfinite reads 4 or 2.
//
// Accesses are of one element: 20 bytes each way at full width already keep the memory busy, and
// views of one flat vector start anywhere.

struct Tensor {
  void* arrays[4];
  i64 size;
  i64 narrow;  // the gradient is stored as `io`, not as `real`
  double factors[2];
};

struct Table {
  Tensor tensors[56];
};

__device__ __forceinline__ i64 first_element() {
  return blockIdx.x * (i64)blockDim.x + threadIdx.x;
}

__device__ __forceinline__ real either(const void* array, i64 narrow, i64 at) {
  return narrow ? widen(static_cast<const io*>(array)[at]) : static_cast<const real*>(array)[at];
}

// arrays: param, gradient, velocity, copy or nullptr; factors: lr, weight decay.
extern "C" __global__ void __launch_bounds__(THREADS)
sgd_update(const Table table, double momentum, int nesterov, double grad_factor,
           const real* grad_factor_on_device, const int* skip) {
  if (skip && *skip) return;
  const Tensor& tensor = table.tensors[blockIdx.y];
  real* param = static_cast<real*>(tensor.arrays[0]);
  real* velocity = static_cast<real*>(tensor.arrays[2]);
  io* copy = static_cast<io*>(tensor.arrays[3]);
  const real lr = tensor.factors[0], decay = tensor.factors[1], inertia = momentum;
  const real factor = grad_factor_on_device ? *grad_factor_on_device : real(grad_factor);
#pragma unroll 4
  for (i64 i = first_element(); i < tensor.size; i += (i64)gridDim.x * blockDim.x) {
    const real old = param[i];
    const real direction = factor * either(tensor.arrays[1], tensor.narrow, i) + decay * old;
    const real moved = inertia * velocity[i] + direction;
    const real updated = old - lr * (nesterov ? direction + inertia * moved : moved);
    velocity[i] = moved;
    param[i] = updated;
    if (copy) copy[i] = narrow(updated);
  }
}

// arrays: average, value.
extern "C" __global__ void __launch_bounds__(THREADS)
ema_update(const Table table, double decay) {
  const Tensor& tensor = table.tensors[blockIdx.y];
  real* average = static_cast<real*>(tensor.arrays[0]);
  const real* value = static_cast<const real*>(tensor.arrays[1]);
#pragma unroll 4
  for (i64 i = first_element(); i < tensor.size; i += (i64)gridDim.x * blockDim.x)
    average[i] = real(decay) * average[i] + real(1 - decay) * value[i];
}

// arrays: any. All who write the flag write the same.
extern "C" __global__ void __launch_bounds__(THREADS)
find_nonfinite(const Table table, int* flag) {
  const Tensor& tensor = table.tensors[blockIdx.y];
  bool finite = true;
#pragma unroll 4
  for (i64 i = first_element(); i < tensor.size; i += (i64)gridDim.x * blockDim.x) {
    const real value = either(tensor.arrays[0], tensor.narrow, i);
    finite &= value - value == 0;
  }
  if (!finite) *flag = 1;
}
