/* A driver without a device, under the name by which cuDNN opens the real one: enough of it to let
 * cuDNN compile plans for a device that is not there, nothing that could run them. */

enum { FAKE_OK = 0, FAKE_STUB_LIBRARY = 34, FAKE_VERSION = 13000 };

#define REFUSES(name)                                                                              \
    int name(void);                                                                                \
    int name(void) { return FAKE_STUB_LIBRARY; }
#define AGREES(name)                                                                               \
    int name(void);                                                                                \
    int name(void) { return FAKE_OK; }

REFUSES(cuCtxGetCurrent)
REFUSES(cuCtxGetLimit)
REFUSES(cuCtxPopCurrent)
REFUSES(cuCtxPushCurrent)
REFUSES(cuDeviceGet)
REFUSES(cuGetErrorName)
REFUSES(cuGetErrorString)
REFUSES(cuKernelGetAttribute)
REFUSES(cuKernelSetAttribute)
REFUSES(cuLaunchCooperativeKernel)
REFUSES(cuLaunchKernel)
REFUSES(cuLaunchKernelEx)
REFUSES(cuLibraryLoadFromFile)
REFUSES(cuLibraryUnload)
REFUSES(cuLinkAddData)
REFUSES(cuLinkComplete)
REFUSES(cuLinkCreate)
REFUSES(cuLinkDestroy)
REFUSES(cuOccupancyMaxPotentialClusterSize)
REFUSES(cuStreamGetCtx)
/* what compiled is loaded, so that a plan becomes whole */
AGREES(cuLibraryGetKernel)
AGREES(cuLibraryLoadData)

int cuDriverGetVersion(int *version);
int cuDriverGetVersion(int *version)
{
    *version = FAKE_VERSION;
    return FAKE_OK;
}

int cuDeviceGetCount(int *n);
int cuDeviceGetCount(int *n)
{
    *n = 0;
    return FAKE_STUB_LIBRARY;
}
