#include "kept_memory.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "faults.h"

#if defined(__SANITIZE_ADDRESS__)
#define FASTRNN_WATCHED_BLOCKS 1
#elif defined(__has_feature)
#define FASTRNN_WATCHED_BLOCKS __has_feature(address_sanitizer)
#else
#define FASTRNN_WATCHED_BLOCKS 0
#endif

namespace fastrnn {
namespace {

constexpr std::size_t line = 64;

// Before each block
struct alignas(line) Header {
  void* allocated;       // what malloc gave
  std::size_t capacity;  // bytes of the block
};

Header* header_of(void* block) { return static_cast<Header*>(block) - 1; }

void release(void* block) { std::free(header_of(block)->allocated); }

#if defined(__linux__)
// Pages of 2 MiB, as NumPy asks for: the system clears one of them faster than 512 small ones
void ask_for_large_pages(void* block, std::size_t bytes) {
  constexpr std::size_t least = std::size_t{4} << 20, page = 4096;
  if (bytes < least) return;
  const auto start = (reinterpret_cast<std::uintptr_t>(block) + page - 1) / page * page;
  const auto end = (reinterpret_cast<std::uintptr_t>(block) + bytes) / page * page;
  madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);  // may be refused: a wish
}
#else
void ask_for_large_pages(void*, std::size_t) {}
#endif

void* allocate(std::size_t bytes) {
  constexpr std::size_t more = sizeof(Header) + line;
  if (bytes > std::numeric_limits<std::size_t>::max() - more) return nullptr;
  void* const allocated = std::malloc(bytes + more);
  if (!allocated) return nullptr;
  const auto after_header = reinterpret_cast<std::uintptr_t>(allocated) + sizeof(Header);
  void* const block = reinterpret_cast<void*>((after_header + line - 1) / line * line);
  new (header_of(block)) Header{allocated, bytes};
  ask_for_large_pages(block, bytes);
  return block;
}

// The blocks, oldest first. One thread at a time; the others do without instead of waiting.
class Shelf {
public:
  void* take(std::size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    const std::size_t largest = bytes + bytes / 4;  // more would be wasted on results that stay
    int found = -1;
    for (int k = count_ - 1; k >= 0; --k) {  // the last one given may still be in the caches
      const std::size_t capacity = capacity_of(k);
      if (capacity >= bytes && capacity <= largest && (found < 0 || capacity < capacity_of(found))) found = k;
    }
    if (found >= 0 && fault(Fault::kept_memory_taken_twice)) return blocks_[static_cast<std::size_t>(found)];
    if (found >= 0) return remove(found);
    for (std::size_t freed = 0; count_ > 0 && freed < bytes;) {  // sizes have changed: no more memory than before
      freed += capacity_of(0);
      release(remove(0));
    }
    return nullptr;
  }

  bool give(void* block, std::size_t limit) noexcept {
    const std::size_t capacity = header_of(block)->capacity;
    if (fault(Fault::kept_memory_without_end)) limit = std::numeric_limits<std::size_t>::max();
    if (capacity > limit) return false;
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return false;
    while (count_ == most || bytes_ > limit - capacity) release(remove(0));
    blocks_[static_cast<std::size_t>(count_++)] = block;
    bytes_ += capacity;
    return true;
  }

  // Whether there was anything
  bool clear() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || count_ == 0) return false;
    while (count_ > 0) release(remove(0));
    return true;
  }

  std::size_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return bytes_;
  }

  // In a child of fork() no other thread is left to finish what it was at
  void forked() {
    if (mutex_.try_lock()) {
      mutex_.unlock();
      return;
    }
    new (&mutex_) std::mutex;
    count_ = 0;
    bytes_ = 0;
  }

private:
  static constexpr int most = 32;

  std::size_t capacity_of(int k) const { return header_of(blocks_[static_cast<std::size_t>(k)])->capacity; }

  void* remove(int k) {
    const auto at = blocks_.begin() + k;
    void* const block = *at;
    std::copy(at + 1, blocks_.begin() + count_, at);
    --count_;
    bytes_ -= header_of(block)->capacity;
    return block;
  }

  std::mutex mutex_;
  std::array<void*, most> blocks_{};
  int count_ = 0;
  std::size_t bytes_ = 0;
};

// Never destroyed: arrays are freed until the process ends
Shelf& shelf() {
  alignas(Shelf) static unsigned char memory[sizeof(Shelf)];
  static Shelf* const made = [] {
    auto* const fresh = new (memory) Shelf;
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, [] { shelf().forked(); });
#endif
    return fresh;
  }();
  return *made;
}

std::size_t limit_of_environment() {
#if FASTRNN_WATCHED_BLOCKS
  return 0;  // AddressSanitizer watches the ends of blocks that malloc knows
#else
  constexpr unsigned long long mib = 1 << 20, most = 1 << 20;
  const char* const text = std::getenv("FASTRNN_KEPT_MIB");
  if (!text) return 128 * mib;
  const std::string given(text);
  const bool digits = !given.empty() && given.size() <= 7 && given.find_first_not_of("0123456789") == given.npos;
  const unsigned long long number = digits ? std::stoull(given) : most + 1;
  if (number > most) {
    throw std::invalid_argument("FASTRNN_KEPT_MIB: expected an integer from 0 to 1048576, got '" + given + "'");
  }
  return static_cast<std::size_t>(std::min<unsigned long long>(number * mib, std::numeric_limits<std::size_t>::max()));
#endif
}

}  // namespace

std::size_t kept_bytes_limit() {
  static const std::size_t limit = limit_of_environment();
  return limit;
}

void* take_memory(std::size_t bytes) {
  if (bytes < least_kept_bytes || kept_bytes_limit() == 0) return allocate(bytes);
  if (void* const kept = shelf().take(bytes)) return kept;
  void* const fresh = allocate(bytes);
  return fresh || !shelf().clear() ? fresh : allocate(bytes);
}

void give_memory(void* block) noexcept {
  if (!block) return;
  if (header_of(block)->capacity >= least_kept_bytes && shelf().give(block, kept_bytes_limit())) return;
  release(block);
}

std::size_t capacity_of_memory(const void* block) noexcept { return (static_cast<const Header*>(block) - 1)->capacity; }

std::size_t kept_bytes() noexcept { return shelf().bytes(); }

}  // namespace fastrnn
