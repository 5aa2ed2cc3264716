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
  void* allocated;       // by malloc, or a mapping
  std::size_t mapped;    // its bytes; 0: by malloc
  std::size_t capacity;  // bytes of the block
  std::uint64_t given;   // how many blocks had been asked for when this one was kept
};

Header* header_of(void* block) { return static_cast<Header*>(block) - 1; }

void* block_in(void* allocated, std::size_t mapped, std::size_t bytes) {
  const auto after_header = reinterpret_cast<std::uintptr_t>(allocated) + sizeof(Header);
  void* const block = reinterpret_cast<void*>((after_header + line - 1) / line * line);
  new (header_of(block)) Header{allocated, mapped, bytes, 0};
  return block;
}

#if defined(_WIN32) || FASTRNN_WATCHED_BLOCKS
constexpr std::size_t least_mapped = std::numeric_limits<std::size_t>::max();  // never
void* map(std::size_t) { return nullptr; }
void unmap(void*, std::size_t) {}
#else
// Large blocks are of the system: one at the top of malloc's heap would hold whatever is free below it
constexpr std::size_t least_mapped = std::size_t{1} << 20;

void* map(std::size_t bytes) {
  constexpr std::size_t page = 4096, more = sizeof(Header) + page;
  if (bytes > std::numeric_limits<std::size_t>::max() - more) return nullptr;
  const std::size_t length = (bytes + more - 1) / page * page;
  void* const mapped = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
#if defined(__linux__)
  // Pages of 2 MiB, as NumPy asks for: the system clears one of them faster than 512 small ones. A wish.
  if (bytes >= std::size_t{4} << 20) madvise(mapped, length, MADV_HUGEPAGE);
#endif
  return block_in(mapped, length, bytes);
}

void unmap(void* mapped, std::size_t length) { munmap(mapped, length); }
#endif

void* by_malloc(std::size_t bytes) {
  constexpr std::size_t more = sizeof(Header) + line;
  void* const allocated = bytes <= std::numeric_limits<std::size_t>::max() - more ? std::malloc(bytes + more) : nullptr;
  return allocated ? block_in(allocated, 0, bytes) : nullptr;
}

void release(void* block) {
  const Header header = *header_of(block);
  header.mapped ? unmap(header.allocated, header.mapped) : std::free(header.allocated);
}

// The blocks, oldest first. One thread at a time; the others do without instead of waiting.
class Shelf {
public:
  void* take(std::size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    ++asked_;
    const std::size_t largest = bytes + bytes / 4;  // more would be wasted on results that stay
    int found = -1;
    for (int k = count_ - 1; k >= 0; --k) {  // the last one given may still be in the caches
      const std::size_t capacity = capacity_of(k);
      if (capacity >= bytes && capacity <= largest && (found < 0 || capacity < capacity_of(found))) found = k;
    }
    if (found >= 0 && fault(Fault::kept_memory_taken_twice)) return blocks_[static_cast<std::size_t>(found)];
    if (found >= 0) return remove(found);
    while (count_ > 0 && asked_ - header_of(blocks_[0])->given > stale) release(remove(0));  // sizes have changed
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
    header_of(block)->given = asked_;
    return true;
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    while (count_ > 0) release(remove(0));
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
  static constexpr std::uint64_t stale = 64;  // more blocks than a training step of many layers asks for

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
  std::uint64_t asked_ = 0;
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
  if (bytes < least_kept_bytes || kept_bytes_limit() == 0) return by_malloc(bytes);
  if (void* const kept = shelf().take(bytes)) return kept;
  const auto allocate = bytes < least_mapped ? by_malloc : map;
  if (void* const fresh = allocate(bytes)) return fresh;
  shelf().clear();
  return allocate(bytes);
}

void give_memory(void* block) noexcept {
  if (!block) return;
  if (header_of(block)->capacity >= least_kept_bytes && shelf().give(block, kept_bytes_limit())) return;
  release(block);
}

std::size_t capacity_of_memory(const void* block) noexcept { return (static_cast<const Header*>(block) - 1)->capacity; }

std::size_t kept_bytes() noexcept { return shelf().bytes(); }

}  // namespace fastrnn
