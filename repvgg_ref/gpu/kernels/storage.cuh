// Before every .cu file: how numbers are stored (`io`) and computed with (`real`).
//
// 16-bit numbers are their bits; one instruction turns them into float and back, so no header of
// CUDA is needed, and the same text compiles for a CPU (tests/gpu/emulator).
#if defined(IO_FLOAT64)
typedef double io;
typedef double real;
#elif defined(IO_FLOAT32)
typedef float io;
typedef float real;
#elif defined(IO_FLOAT16) || defined(IO_BFLOAT16)
typedef unsigned short io;
typedef float real;
#else
#error "define IO_FLOAT64, IO_FLOAT32, IO_FLOAT16 or IO_BFLOAT16"
#endif

typedef long long i64;

[[maybe_unused]] constexpr int THREADS = 256;            // of a block, at most
[[maybe_unused]] constexpr int WIDTH = 16 / sizeof(io);  // elements of a 16-byte access

#if defined(__CUDA_ARCH__)
__device__ __forceinline__ float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
__device__ __forceinline__ unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#endif

__device__ __forceinline__ unsigned bits_of(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}

// Round to nearest even; NaN stays NaN (cvt.rn.bf16 would need sm_80).
__device__ __forceinline__ unsigned short float_to_bfloat(float value) {
  const unsigned bits = bits_of(value);
  if (value != value) return (bits >> 16) | 0x40;
  return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

__device__ __forceinline__ float bfloat_to_float(unsigned short bits) {
  const unsigned wide = (unsigned)bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

__device__ __forceinline__ real widen(io stored) {
#if defined(IO_FLOAT16)
  return half_to_float(stored);
#elif defined(IO_BFLOAT16)
  return bfloat_to_float(stored);
#else
  return stored;
#endif
}

__device__ __forceinline__ io narrow(real value) {
#if defined(IO_FLOAT16)
  return float_to_half(value);
#elif defined(IO_BFLOAT16)
  return float_to_bfloat(value);
#else
  return value;
#endif
}

// V neighbouring elements, moved by one access.
template <int V, class T>
struct alignas(V * sizeof(T)) Pack {
  T element[V];
};

// Separate from `widened`, so that all loads of a row are under way before the first is waited for.
template <int V>
__device__ __forceinline__ Pack<V, io> fetch(const io* array, i64 at) {
  return array ? *reinterpret_cast<const Pack<V, io>*>(array + at) : Pack<V, io>{};
}

template <int V>
__device__ __forceinline__ void widened(real (&to)[V], const Pack<V, io>& pack) {
#pragma unroll
  for (int i = 0; i < V; i++) to[i] = widen(pack.element[i]);
}

template <int V>
__device__ __forceinline__ void load(real (&to)[V], const io* from) {
  widened(to, *reinterpret_cast<const Pack<V, io>*>(from));
}

template <int V>
__device__ __forceinline__ void store(io* to, const real (&from)[V]) {
  Pack<V, io> pack;
#pragma unroll
  for (int i = 0; i < V; i++) pack.element[i] = narrow(from[i]);
  *reinterpret_cast<Pack<V, io>*>(to) = pack;
}

// NaN passes, as in the reference.
__device__ __forceinline__ real rectified(real value) { return value < 0 ? 0 : value; }
