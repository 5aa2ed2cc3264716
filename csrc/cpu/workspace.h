// All memory of one call in one aligned block: take every part first, allocate once, then use the parts.
#pragma once

#include <cstddef>
#include <new>
#include <string>

#include "../rnn.h"

namespace fastrnn {

// A size that does not fit, or memory that is not there; says how many bytes were needed.
class OutOfMemory : public std::bad_alloc {
public:
  explicit OutOfMemory(const std::string& bytes);
  const char* what() const noexcept override { return text_.c_str(); }

private:
  std::string text_;
};

// a * b for sizes; throws OutOfMemory when the product does not fit
index checked_product(index a, index b);

class Workspace {
public:
  template <class T>
  struct Part {
    index offset = -1;
  };

  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

  template <class T>
  Part<T> take(index count) {
    return Part<T>{reserve(checked_product(count, static_cast<index>(sizeof(T))))};
  }
  void allocate();

  template <class T>
  T* operator[](Part<T> part) const {
    return part.offset < 0 ? nullptr : reinterpret_cast<T*>(base_ + part.offset);
  }

private:
  static constexpr index alignment = 64;
  index reserve(index bytes);

  index size_ = 0;
  unsigned char* base_ = nullptr;
};

}  // namespace fastrnn
