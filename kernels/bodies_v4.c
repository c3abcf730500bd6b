/* The bodies for x86-64-v4 (AVX-512). */
#define BODIES k_isa_v4
#define BODIES_ISA "v4"
#include "kernels/bodies.h"
