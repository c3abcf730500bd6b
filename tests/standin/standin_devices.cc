/* Devices and the names of errors. */
#include "standin_gpu.h"
#include "standin_state.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorNotSupported: return "operation not supported";
    }
    return "unknown error";
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    const char *const text = getenv("TD_STANDIN_DEVICES");
    *n = text == nullptr ? 1 : atoi(text);
    return *n > 0 ? cudaSuccess : standin_fail(cudaErrorNoDevice);
}

static thread_local int current;

static bool there(int device)
{
    int n = 0;
    return cudaGetDeviceCount(&n) == cudaSuccess && device >= 0 && device < n;
}

cudaError_t cudaSetDevice(int device)
{
    if (!there(device)) return standin_fail(cudaErrorInvalidDevice);
    current = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = current;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int device)
{
    if (!there(device)) return standin_fail(cudaErrorInvalidDevice);
    (void)snprintf(id, (size_t)size, "0000:%02x:00.0", device);
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device)
{
    size_t available = 0;
    if (!there(device)) return standin_fail(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    (void)snprintf(p->name, sizeof p->name, "stand-in on the host");
    p->major = 9;
    const char *const units = getenv("TD_STANDIN_UNITS");
    p->multiProcessorCount = units == nullptr ? 16 : atoi(units);
    p->concurrentManagedAccess = 1;
    p->maxThreadsPerBlock = STANDIN_THREADS_MAX;
    p->sharedMemPerBlock = STANDIN_SHARED_STATIC_MAX;
    p->sharedMemPerBlockOptin = STANDIN_SHARED_MAX;
    p->l2CacheSize = 1 << 20;
    return cudaMemGetInfo(&available, &p->totalGlobalMem);
}
