// What the native module offers to code that is compiled later, by another compiler: plain C, in the capsule
// fastrnn._fastrnn_cpu.torch_calls. One direction of one layer without options but relu and reverse.
//
// Arrays hold float or double (wide), one type in a call; those without strides are C-contiguous. Sizes are the
// caller's to check. The caller holds the GIL, which a long call releases; -1: a Python exception is set.
#pragma once

#include <stddef.h>

#define FASTRNN_TORCH_CALLS "fastrnn._fastrnn_cpu.torch_calls"
#define FASTRNN_TORCH_CALLS_VERSION 2

extern "C" {

struct FastrnnProblem {
  ptrdiff_t T, B, I, H;
  int wide, relu, reverse, threads;
};

struct FastrnnForward {
  FastrnnProblem problem;
  const void *x, *h_0, *w_ih, *w_hh, *b_ih, *b_hh;  // null: h_0 is zeros, there is no bias
  void *output, *h_n;
};

struct FastrnnBackward {
  FastrnnProblem problem;
  const void* d_output;  // null: zeros; strides of T, B, H in elements
  ptrdiff_t d_output_strides[3];
  const void* d_h_n;  // null: zeros; strides of B, H
  ptrdiff_t d_h_n_strides[2];
  const void *output, *x, *h_0, *w_ih, *w_hh;
  void *d_x, *d_h_0, *d_w_ih, *d_w_hh, *d_b;  // null: not needed
};

struct FastrnnTorchCalls {
  int version;
  int (*forward)(const struct FastrnnForward*);
  int (*backward)(const struct FastrnnBackward*);
  // Memory for a large result, aligned to a cache line (csrc/cpu/kept_memory.h). The GIL is held if `explain`: null
  // then means that a Python exception is set.
  void* (*take)(size_t bytes, int explain);
  void (*give)(void* memory);
};

}  // extern "C"
