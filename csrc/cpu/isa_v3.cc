// x86-64-v3: AVX2 and FMA; compiled with that instruction set, called only where the processor has it.
#include <immintrin.h>

#define FASTRNN_VEC 256
#define FASTRNN_NAMESPACE v3
#define FASTRNN_ISA_NAME "v3"
#define FASTRNN_ISA_TABLE instruction_set_v3
#include "isa.inl"
