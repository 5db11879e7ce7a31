// After the kernels: where their shared memory lies.
extern "C" char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));

static void emulated::poison_shared() {
#if !defined(__SANITIZE_ADDRESS__)  // there, guard bytes lie between the arrays
  if (__start_emulated_shared)
    memset(__start_emulated_shared, 0xFF, __stop_emulated_shared - __start_emulated_shared);
#endif
}
