// Plain C++ for any processor; on arm64 the compiler makes NEON of it.
#include <cstring>

#define FASTRNN_VEC 0
#define FASTRNN_NAMESPACE generic
#define FASTRNN_ISA_NAME "generic"
#define FASTRNN_ISA_TABLE instruction_set_generic
#include "isa.inl"
