/* The bodies for any machine. */
#define BODIES k_isa_v1
#define BODIES_ISA "v1"
#include "kernels/bodies.h"
