// Memory of results and workspaces, kept between calls. What is freed at the top of glibc's heap goes back to the
// system, which clears new pages for the next call: as much as a third of a training step.
#pragma once

#include <cstddef>

namespace fastrnn {

// Below this malloc is as good: glibc's heap keeps as much on its own
inline constexpr std::size_t least_kept_bytes = std::size_t{64} << 10;

// How many bytes are kept at most, of the whole process: FASTRNN_KEPT_MIB, else 128 MiB; 0 in builds with
// AddressSanitizer. Throws std::invalid_argument where the variable is not a number of MiB.
std::size_t kept_bytes_limit();

// `bytes` of memory, aligned to a cache line, their content undefined; null where there is no memory. Throws as
// kept_bytes_limit.
void* take_memory(std::size_t bytes);

// Keeps a block of take_memory for a later one of about its size, or frees it. Null is allowed.
void give_memory(void* block) noexcept;

// The bytes that a block has at least
std::size_t capacity_of_memory(const void* block) noexcept;

// How many bytes are kept now
std::size_t kept_bytes() noexcept;

}  // namespace fastrnn
