// x86-64-v4: AVX-512; compiled with that instruction set, called only where the processor has it.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the compiler's own AVX-512 header
#endif
#if FASTRNN_EMULATE_V4
#include "avx512_emulated.h"
#else
#include <immintrin.h>
#endif

#define FASTRNN_VEC 512
#define FASTRNN_NAMESPACE v4
#define FASTRNN_ISA_NAME "v4"
#define FASTRNN_ISA_TABLE instruction_set_v4
#include "isa.inl"
