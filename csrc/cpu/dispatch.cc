#include "dispatch.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if FASTRNN_X86 && defined(_MSC_VER)
#include <intrin.h>
#elif FASTRNN_X86
#include <cpuid.h>
#endif

namespace fastrnn {

extern const InstructionSet instruction_set_generic;
#if FASTRNN_X86
extern const InstructionSet instruction_set_v2;
extern const InstructionSet instruction_set_v3;
extern const InstructionSet instruction_set_v4;
#endif

namespace {

#if FASTRNN_X86 && defined(_MSC_VER)
struct Cpu {
  bool v2, v3, v4;
};
Cpu cpu() {
  int a[4] = {}, b[4] = {};
  __cpuid(a, 1);
  __cpuidex(b, 7, 0);
  const bool sse42 = a[2] & (1 << 20), osxsave = a[2] & (1 << 27);
  const unsigned long long state = osxsave ? _xgetbv(0) : 0;
  const bool avx2 = (state & 6) == 6 && (b[1] & (1 << 5)) && (a[2] & (1 << 12));
  const int wanted = (1 << 16) | (1 << 17) | (1 << 28) | (1 << 30) | (1 << 31);  // F, DQ, CD, BW, VL
  return Cpu{sse42, avx2, avx2 && (state & 0xe0) == 0xe0 && (b[1] & wanted) == wanted};
}
#elif FASTRNN_X86
struct Cpu {
  bool v2, v3, v4;
};
Cpu cpu() {
  __builtin_cpu_init();
  const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
  unsigned a = 0, b = 0, basic = 0, extended = 0, d = 0;
  __get_cpuid(1, &a, &b, &basic, &d);
  __get_cpuid(0x80000001u, &a, &b, &extended, &d);
  const bool movbe_f16c_lzcnt =
      (basic >> 22 & 1) && (basic >> 29 & 1) && (extended >> 5 & 1);  // the compiler may use them
  const bool v3 = v2 && movbe_f16c_lzcnt && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl");
#if FASTRNN_EMULATE_V4
  return Cpu{v2, v3, v3 || v4};  // software AVX-512 needs AVX2 alone; test builds only
#else
  return Cpu{v2, v3, v4};
#endif
}
#endif

std::vector<InstructionSetState> find() {
#if FASTRNN_X86
  const Cpu has = cpu();
  return {{"v4", &instruction_set_v4, has.v4},
          {"v3", &instruction_set_v3, has.v3},
          {"v2", &instruction_set_v2, has.v2},
          {"generic", &instruction_set_generic, true}};
#else
  return {{"v4", nullptr, false},
          {"v3", nullptr, false},
          {"v2", nullptr, false},
          {"generic", &instruction_set_generic, true}};
#endif
}

}  // namespace

const std::vector<InstructionSetState>& instruction_sets() {
  static const std::vector<InstructionSetState> sets = find();
  return sets;
}

const InstructionSet& choose_instruction_set(const char* name) {
  static const char* const from_environment = std::getenv("FASTRNN_ISA");
  const char* const source = name ? "isa" : "FASTRNN_ISA";
  if (!name && from_environment && *from_environment) name = from_environment;
  for (const InstructionSetState& state : instruction_sets()) {
    const bool named = name && std::strcmp(name, state.name) == 0;
    if (state.set && state.supported && (!name || named)) return *state.set;
    if (named) {
      throw std::runtime_error(std::string(source) + ": instruction set '" + name + "' cannot run here: " +
                               (state.set ? "this processor lacks it" : "it was not compiled into this build"));
    }
  }
  throw std::runtime_error(std::string(source) + ": expected one of v4, v3, v2, generic, got '" + name + "'");
}

}  // namespace fastrnn
