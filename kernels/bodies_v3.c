/* The bodies for x86-64-v3 (AVX2). */
#define BODIES k_isa_v3
#define BODIES_ISA "v3"
#include "kernels/bodies.h"
