// LD_PRELOAD: refuses the n-th allocation of the calling thread after fail_after(n), and counts live blocks. glibc.
// Starting a thread counts as an allocation. Built and driven by test_allocation_failures.py.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void __libc_free(void*);

static _Thread_local long countdown __attribute__((tls_model("initial-exec")));
static atomic_long live;

void fail_after(long n) { countdown = n; }
long until_failure(void) { return countdown; }
long live_blocks(void) { return live; }

static int refused(void) {
  if (countdown <= 0 || --countdown > 0) return 0;
  errno = ENOMEM;
  return 1;
}

void* malloc(size_t size) {
  void* const block = refused() ? NULL : __libc_malloc(size);
  live += block != NULL;
  return block;
}

void* calloc(size_t count, size_t size) {
  void* const block = refused() ? NULL : __libc_calloc(count, size);
  live += block != NULL;
  return block;
}

void* realloc(void* old, size_t size) {
  void* const block = refused() ? NULL : __libc_realloc(old, size);
  live += (block && !old) - (old && !block && size == 0);
  return block;
}

void free(void* block) {
  live -= block != NULL;
  __libc_free(block);
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* context) {
  static int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  if (!real) *(void**)&real = dlsym(RTLD_NEXT, "pthread_create");
  return refused() ? EAGAIN : real(thread, attributes, run, context);
}
