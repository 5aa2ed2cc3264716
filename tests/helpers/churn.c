// Threads that take and give memory without Python, until stop(). Built and driven by test_kept_memory.py.
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

enum { most = 8 };

static void* (*take)(void*, size_t);
static void (*give)(void*, void*, size_t);
static pthread_t threads[most];
static int count;
static atomic_int stopped;

static void* churn(void* unused) {
  while (!stopped) give(NULL, take(NULL, 100000), 0);
  return unused;
}

int start(int number, void* (*malloc)(void*, size_t), void (*free)(void*, void*, size_t)) {
  take = malloc;
  give = free;
  for (count = 0; count < number && count < most; ++count) {
    if (pthread_create(&threads[count], NULL, churn, NULL) != 0) break;
  }
  return count;
}

void stop(void) {
  stopped = 1;
  for (int k = 0; k < count; ++k) pthread_join(threads[k], NULL);
}
