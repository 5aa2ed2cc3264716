// x86-64-v2: SSE4.2, no FMA; compiled with that instruction set, called only where the processor has it.
#include <immintrin.h>

#define FASTRNN_VEC 128
#define FASTRNN_NAMESPACE v2
#define FASTRNN_ISA_NAME "v2"
#define FASTRNN_ISA_TABLE instruction_set_v2
#include "isa.inl"
