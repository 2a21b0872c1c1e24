/* The CUDA runtime. Declarations are our own: the headers in the pip wheels are not complete.
 *
 * Values of enumerations and the layouts of structures: CUDA Runtime API reference, "Data types used by CUDA Runtime"
 * (12.x and 13.x). What has no rule here answers success, and is told once (see build.py).
 */
#define _GNU_SOURCE
#include "gpu.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

typedef int Error;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101 };
typedef void *Stream;
typedef void *Event;

static __thread Error last_error;

static Error failed(Error error) {
  if (error) last_error = error;
  return error;
}

/* --- errors --------------------------------------------------------------------------------------------------- */

Error cudaGetLastError(void) {
  Error error = last_error;
  last_error = SUCCESS;
  return error;
}

Error cudaPeekAtLastError(void) { return last_error; }

const char *cudaGetErrorString(Error error) {
  switch (error) {
    case SUCCESS: return "no error";
    case OUT_OF_MEMORY: return "out of memory";
    case INVALID_DEVICE: return "invalid device ordinal";
    default: return "invalid argument";
  }
}

const char *cudaGetErrorName(Error error) {
  switch (error) {
    case SUCCESS: return "cudaSuccess";
    case OUT_OF_MEMORY: return "cudaErrorMemoryAllocation";
    case INVALID_DEVICE: return "cudaErrorInvalidDevice";
    default: return "cudaErrorInvalidValue";
  }
}

/* --- devices -------------------------------------------------------------------------------------------------- */

Error cudaGetDeviceCount(int *count) {
  *count = fitplan_gpu()->count;
  return *count ? SUCCESS : failed(100); /* cudaErrorNoDevice */
}

Error cudaGetDevice(int *device) {
  *device = *fitplan_current_device();
  return SUCCESS;
}

Error cudaSetDevice(int device) {
  if (device < 0 || device >= fitplan_gpu()->count) return failed(INVALID_DEVICE);
  *fitplan_current_device() = device;
  return SUCCESS;
}

static int cuda_version(void) {
  /* of the runtime that this process was built for, as the real one says it */
  extern int fitplan_cuda_version;
  return fitplan_cuda_version;
}

Error cudaDriverGetVersion(int *version) {
  *version = cuda_version();
  return SUCCESS;
}

Error cudaRuntimeGetVersion(int *version) {
  *version = cuda_version();
  return SUCCESS;
}

Error cudaDeviceGetPCIBusId(char *text, int length, int device) {
  snprintf(text, length, "0000:%02x:00.0", device + 1);
  return SUCCESS;
}

Error cudaDeviceCanAccessPeer(int *can, int one, int other) {
  *can = one != other;
  return SUCCESS;
}

/* CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", for what is the same on all. */
enum { THREADS_PER_BLOCK = 1024, WARP = 32, REGISTERS = 65536, SHARED_PER_BLOCK = 49152, L2_BYTES = 40 << 20 };

Error cudaDeviceGetAttribute(int *value, int attribute, int device) {
  const Gpu *gpu = fitplan_gpu();
  switch (attribute) { /* cudaDeviceAttr */
    case 1: case 2: case 3: *value = THREADS_PER_BLOCK; break;
    case 4: *value = 64; break;
    case 5: *value = 2147483647; break;
    case 6: case 7: *value = 65535; break;
    case 8: *value = SHARED_PER_BLOCK; break;
    case 9: *value = 65536; break; /* constant memory */
    case 10: *value = WARP; break;
    case 12: *value = REGISTERS; break;
    case 13: *value = 1500000; break; /* kHz */
    case 14: *value = 512; break;     /* texture alignment */
    case 16: *value = gpu->multiprocessors; break;
    case 19: case 31: *value = 1; break; /* maps host memory, runs kernels side by side */
    case 33: *value = device + 1; break;
    case 36: *value = 1500000; break;
    case 37: *value = 5120; break;
    case 38: *value = L2_BYTES; break;
    case 39: *value = gpu->threads_per_multiprocessor; break;
    case 40: *value = 3; break;
    case 41: *value = 1; break; /* unified addresses */
    case 75: *value = gpu->major; break;
    case 76: *value = gpu->minor; break;
    case 78: *value = 1; break;
    case 81: *value = gpu->shared_bytes_per_multiprocessor; break;
    case 82: *value = REGISTERS; break;
    case 83: case 89: case 95: *value = 1; break; /* managed memory, also while a kernel runs; cooperative launches */
    case 97: *value = gpu->shared_bytes_per_block; break;
    case 99: *value = 1; break;
    case 102: *value = 1; break; /* virtual memory management (CUdevice_attribute) */
    case 106: *value = gpu->blocks_per_multiprocessor; break;
    case 111: *value = 1024; break;
    case 115: *value = 1; break;
    case 120: *value = gpu->major >= 9; break; /* clusters */
    default: *value = 0;
  }
  return SUCCESS;
}

#define FROM_NAME_TO_GRID                                                                                              \
  char name[256];                                                                                                      \
  char uuid[16];                                                                                                       \
  char luid[8];                                                                                                        \
  unsigned luidDeviceNodeMask;                                                                                         \
  size_t totalGlobalMem, sharedMemPerBlock;                                                                            \
  int regsPerBlock, warpSize;                                                                                          \
  size_t memPitch;                                                                                                     \
  int maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3];

#define FROM_SURFACE_TO_ASYNC                                                                                          \
  size_t surfaceAlignment;                                                                                             \
  int concurrentKernels, ECCEnabled, pciBusID, pciDeviceID, pciDomainID, tccDriver, asyncEngineCount, unifiedAddressing;

#define FROM_BUS_WIDTH_TO_ATOMICS                                                                                      \
  int memoryBusWidth, l2CacheSize, persistingL2CacheMaxSize, maxThreadsPerMultiProcessor, streamPrioritiesSupported,   \
      globalL1CacheSupported, localL1CacheSupported;                                                                   \
  size_t sharedMemPerMultiprocessor;                                                                                   \
  int regsPerMultiprocessor, managedMemory, isMultiGpuBoard, multiGpuBoardGroupID, hostNativeAtomicSupported;

#define TO_THE_END                                                                                                     \
  size_t sharedMemPerBlockOptin;                                                                                       \
  int pageableMemoryAccessUsesHostPageTables, directManagedMemAccessFromHost, maxBlocksPerMultiProcessor,              \
      accessPolicyMaxWindowSize;                                                                                       \
  size_t reservedSharedMemPerBlock;                                                                                    \
  int rest[76];

typedef struct { /* cudaDeviceProp of CUDA 12 */
  FROM_NAME_TO_GRID
  int clockRate;
  size_t totalConstMem;
  int major, minor;
  size_t textureAlignment, texturePitchAlignment;
  int deviceOverlap, multiProcessorCount, kernelExecTimeoutEnabled, integrated, canMapHostMemory, computeMode;
  int textures[26], surfaces[14];
  FROM_SURFACE_TO_ASYNC
  int memoryClockRate;
  FROM_BUS_WIDTH_TO_ATOMICS
  int singleToDoublePrecisionPerfRatio, pageableMemoryAccess, concurrentManagedAccess, computePreemptionSupported,
      canUseHostPointerForRegisteredMem, cooperativeLaunch, cooperativeMultiDeviceLaunch;
  TO_THE_END
} Properties12;

typedef struct { /* cudaDeviceProp of CUDA 13 */
  FROM_NAME_TO_GRID
  size_t totalConstMem;
  int major, minor;
  size_t textureAlignment, texturePitchAlignment;
  int multiProcessorCount, integrated, canMapHostMemory;
  int textures[25], surfaces[14];
  FROM_SURFACE_TO_ASYNC
  FROM_BUS_WIDTH_TO_ATOMICS
  int pageableMemoryAccess, concurrentManagedAccess, computePreemptionSupported, canUseHostPointerForRegisteredMem,
      cooperativeLaunch;
  TO_THE_END
} Properties13;

_Static_assert(sizeof(Properties12) == 1032, "the size of cudaDeviceProp in CUDA 12");
_Static_assert(sizeof(Properties13) == 1008, "the size of cudaDeviceProp in CUDA 13");

#define DESCRIBE(p, type, device)                                                                                      \
  do {                                                                                                                 \
    const Gpu *gpu = fitplan_gpu();                                                                                    \
    memset(p, 0, sizeof(type));                                                                                  \
    snprintf((p)->name, sizeof(p)->name, "%s", gpu->name);                                                             \
    (p)->uuid[15] = (char)((device) + 1);                                                                              \
    (p)->totalGlobalMem = gpu->usable_bytes;                                                                           \
    (p)->sharedMemPerBlock = SHARED_PER_BLOCK;                                                                         \
    (p)->regsPerBlock = (p)->regsPerMultiprocessor = REGISTERS;                                                        \
    (p)->warpSize = WARP;                                                                                              \
    (p)->memPitch = 2147483647;                                                                                        \
    (p)->maxThreadsPerBlock = THREADS_PER_BLOCK;                                                                       \
    (p)->maxThreadsDim[0] = (p)->maxThreadsDim[1] = THREADS_PER_BLOCK;                                                 \
    (p)->maxThreadsDim[2] = 64;                                                                                        \
    (p)->maxGridSize[0] = 2147483647;                                                                                  \
    (p)->maxGridSize[1] = (p)->maxGridSize[2] = 65535;                                                                 \
    (p)->totalConstMem = 65536;                                                                                        \
    (p)->major = gpu->major;                                                                                           \
    (p)->minor = gpu->minor;                                                                                           \
    (p)->textureAlignment = (p)->surfaceAlignment = 512;                                                               \
    (p)->texturePitchAlignment = 32;                                                                                   \
    (p)->multiProcessorCount = gpu->multiprocessors;                                                                   \
    (p)->canMapHostMemory = (p)->concurrentKernels = (p)->unifiedAddressing = (p)->managedMemory = 1;                  \
    (p)->pciBusID = (device) + 1;                                                                                      \
    (p)->asyncEngineCount = 3;                                                                                         \
    (p)->memoryBusWidth = 5120;                                                                                        \
    (p)->l2CacheSize = L2_BYTES;                                                                                       \
    (p)->maxThreadsPerMultiProcessor = gpu->threads_per_multiprocessor;                                                \
    (p)->streamPrioritiesSupported = (p)->concurrentManagedAccess = (p)->cooperativeLaunch = 1;                        \
    (p)->sharedMemPerMultiprocessor = gpu->shared_bytes_per_multiprocessor;                                            \
    (p)->sharedMemPerBlockOptin = gpu->shared_bytes_per_block;                                                         \
    (p)->maxBlocksPerMultiProcessor = gpu->blocks_per_multiprocessor;                                                  \
    (p)->reservedSharedMemPerBlock = 1024;                                                                             \
  } while (0)

Error cudaGetDeviceProperties_v2(Properties12 *properties, int device) { /* the name since CUDA 12.0 */
  DESCRIBE(properties, Properties12, device);
  return SUCCESS;
}

Error cudaGetDeviceProperties(Properties13 *properties, int device) { /* the name since CUDA 13.0 */
  DESCRIBE(properties, Properties13, device);
  return SUCCESS;
}

Error cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return SUCCESS;
}

/* --- memory --------------------------------------------------------------------------------------------------- */

static size_t whole_pages(size_t bytes) { return (bytes + GRANULE - 1) & ~(GRANULE - 1); }

Error cudaMalloc(void **address, size_t bytes) {
  int device = *fitplan_current_device();
  size_t pages = whole_pages(bytes);
  *address = NULL;
  if (!bytes) return SUCCESS;
  if (fitplan_take(device, pages)) return failed(OUT_OF_MEMORY);
  *address = fitplan_map(pages, ON_DEVICE, device);
  if (*address) return SUCCESS;
  fitplan_give(device, pages);
  return failed(OUT_OF_MEMORY);
}

Error cudaFree(void *address) {
  int device = 0;
  if (!address || fitplan_kind(address, &device) == NOWHERE) return SUCCESS;
  Kind kind = fitplan_kind(address, &device);
  size_t bytes = fitplan_unmap(address);
  if (kind == ON_DEVICE) fitplan_give(device, bytes);
  return SUCCESS;
}

Error cudaMallocAsync(void **address, size_t bytes, Stream stream) {
  (void)stream;
  return cudaMalloc(address, bytes);
}

Error cudaMallocFromPoolAsync(void **address, size_t bytes, void *pool, Stream stream) {
  (void)pool, (void)stream;
  return cudaMalloc(address, bytes);
}

Error cudaFreeAsync(void *address, Stream stream) {
  (void)stream;
  return cudaFree(address);
}

/* Managed memory may be more than the GPU has, and is not in what NVML reports of a process (seen on an H100). */
Error cudaMallocManaged(void **address, size_t bytes, unsigned flags) {
  (void)flags;
  *address = fitplan_map(bytes ? bytes : 1, MANAGED, *fitplan_current_device());
  return *address ? SUCCESS : failed(OUT_OF_MEMORY);
}

Error cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
  (void)flags;
  *address = fitplan_map(bytes ? bytes : 1, ON_HOST, *fitplan_current_device());
  return *address ? SUCCESS : failed(OUT_OF_MEMORY);
}

Error cudaMallocHost(void **address, size_t bytes) { return cudaHostAlloc(address, bytes, 0); }

Error cudaFreeHost(void *address) {
  fitplan_unmap(address);
  return SUCCESS;
}

Error cudaHostRegister(void *address, size_t bytes, unsigned flags) {
  (void)flags;
  fitplan_enter_range(address, bytes, ON_HOST, *fitplan_current_device());
  return SUCCESS;
}

Error cudaHostUnregister(void *address) {
  fitplan_leave_range(address);
  return SUCCESS;
}

Error cudaHostGetDevicePointer(void **there, void *here, unsigned flags) {
  (void)flags;
  *there = here;
  return SUCCESS;
}

Error cudaMemGetInfo(size_t *free, size_t *total) {
  const Gpu *gpu = fitplan_gpu();
  int device = *fitplan_current_device();
  fitplan_take(device, 0); /* who asks has a context */
  *total = gpu->usable_bytes;
  *free = gpu->usable_bytes - fitplan_used(device);
  return SUCCESS;
}

typedef struct {
  int type; /* cudaMemoryType: unregistered, host, device, managed */
  int device;
  void *devicePointer, *hostPointer;
} PointerAttributes;

Error cudaPointerGetAttributes(PointerAttributes *attributes, const void *address) {
  int device = *fitplan_current_device();
  Kind kind = fitplan_kind(address, &device);
  attributes->type = (int)kind;
  attributes->device = device;
  attributes->devicePointer = kind == NOWHERE ? NULL : (void *)address;
  attributes->hostPointer = kind == ON_DEVICE ? NULL : (void *)address;
  return SUCCESS;
}

/* Copies of up to COPIED bytes are done, so that what a program sends and reads back is true; larger ones are not:
 * their pages are never touched. What is read from the device beyond that is zero, as far as it may have been written
 * before (the C library gives larger pieces back to the system, which clears them). */
#define COPIED MIB
#define CLEARED (64 * MIB)

/* A number that the next read of a single integer gives, whatever lies there: what a kernel would have counted. */
static __thread int64_t answer;
static __thread int is_answered;

void fitplan_answer(int64_t number) {
  answer = number;
  is_answered = 1;
}

int fitplan_was_asked(void) {
  int asked = !is_answered;
  is_answered = 0;
  return asked;
}

static Error copy(void *to, const void *from, size_t bytes) {
  if (is_answered && (bytes == 4 || bytes == 8) && fitplan_kind(from, NULL) == ON_DEVICE) {
    memcpy(to, &answer, bytes);
    is_answered = 0;
    return SUCCESS;
  }
  int from_device = fitplan_kind(from, NULL) == ON_DEVICE, to_device = fitplan_kind(to, NULL) == ON_DEVICE;
  if (bytes <= COPIED || (!from_device && !to_device)) memmove(to, from, bytes);
  else if (!to_device && bytes <= CLEARED) memset(to, 0, bytes);
  return SUCCESS;
}

Error cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
  (void)kind;
  return copy(to, from, bytes);
}

Error cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, Stream stream) {
  (void)kind, (void)stream;
  return copy(to, from, bytes);
}

Error cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t bytes, Stream stream) {
  (void)to_device, (void)from_device, (void)stream;
  return copy(to, from, bytes);
}

Error cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                        int kind, Stream stream) {
  (void)kind, (void)stream;
  for (size_t row = 0; row < height && width * height <= COPIED; row++)
    copy((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
  return SUCCESS;
}

Error cudaMemset(void *address, int value, size_t bytes) {
  if (bytes <= COPIED || fitplan_kind(address, NULL) != ON_DEVICE) memset(address, value, bytes);
  return SUCCESS;
}

Error cudaMemsetAsync(void *address, int value, size_t bytes, Stream stream) {
  (void)stream;
  return cudaMemset(address, value, bytes);
}

/* --- streams, events, graphs ---------------------------------------------------------------------------------- */

Error cudaStreamCreate(Stream *stream) {
  *stream = (Stream)fitplan_new_handle();
  return SUCCESS;
}

Error cudaStreamCreateWithFlags(Stream *stream, unsigned flags) {
  (void)flags;
  return cudaStreamCreate(stream);
}

Error cudaStreamCreateWithPriority(Stream *stream, unsigned flags, int priority) {
  (void)flags, (void)priority;
  return cudaStreamCreate(stream);
}

Error cudaStreamGetPriority(Stream stream, int *priority) {
  (void)stream;
  *priority = 0;
  return SUCCESS;
}

Error cudaStreamGetFlags(Stream stream, unsigned *flags) {
  (void)stream;
  *flags = 0;
  return SUCCESS;
}

Error cudaStreamGetId(Stream stream, unsigned long long *id) {
  *id = (uintptr_t)stream;
  return SUCCESS;
}

Error cudaStreamGetDevice(Stream stream, int *device) {
  (void)stream;
  return cudaGetDevice(device);
}

Error cudaEventCreate(Event *event) {
  *event = (Event)fitplan_new_handle();
  return SUCCESS;
}

Error cudaEventCreateWithFlags(Event *event, unsigned flags) {
  (void)flags;
  return cudaEventCreate(event);
}

Error cudaEventElapsedTime(float *milliseconds, Event from, Event to) {
  (void)from, (void)to;
  *milliseconds = 0;
  return SUCCESS;
}

Error cudaEventElapsedTime_v2(float *milliseconds, Event from, Event to) {
  return cudaEventElapsedTime(milliseconds, from, to);
}

/* A stream that is captured into a graph. One capture at a time a process, as PyTorch does it. */
static Stream captured;
static unsigned long long capture;

Error cudaStreamBeginCapture(Stream stream, int mode) {
  (void)mode;
  captured = stream;
  capture++;
  return SUCCESS;
}

Error cudaStreamEndCapture(Stream stream, void **graph) {
  (void)stream;
  captured = NULL;
  *graph = (void *)fitplan_new_handle();
  return SUCCESS;
}

Error cudaStreamIsCapturing(Stream stream, int *status) {
  *status = captured && stream == captured;
  return SUCCESS;
}

static Error capture_info(Stream stream, int *status, unsigned long long *id) {
  cudaStreamIsCapturing(stream, status);
  if (id) *id = capture;
  return SUCCESS;
}

Error cudaStreamGetCaptureInfo_v2(Stream stream, int *status, unsigned long long *id, void **graph,
                                  const void ***dependencies, size_t *count) {
  if (graph) *graph = NULL;
  if (dependencies) *dependencies = NULL;
  if (count) *count = 0;
  return capture_info(stream, status, id);
}

Error cudaStreamGetCaptureInfo_v3(Stream stream, int *status, unsigned long long *id, void **graph,
                                  const void ***dependencies, const void ***edges, size_t *count) {
  if (edges) *edges = NULL;
  return cudaStreamGetCaptureInfo_v2(stream, status, id, graph, dependencies, count);
}

Error cudaStreamGetCaptureInfo(Stream stream, int *status, unsigned long long *id, void **graph,
                               const void ***dependencies, const void ***edges, size_t *count) { /* of CUDA 13 */
  return cudaStreamGetCaptureInfo_v3(stream, status, id, graph, dependencies, edges, count);
}

Error cudaGraphGetNodes(void *graph, void **nodes, size_t *count) {
  (void)graph, (void)nodes;
  *count = 1;
  return SUCCESS;
}

Error cudaGraphInstantiate(void **instance, void *graph, unsigned long long flags) {
  (void)graph, (void)flags;
  *instance = (void *)fitplan_new_handle();
  return SUCCESS;
}

Error cudaGraphInstantiateWithFlags(void **instance, void *graph, unsigned long long flags) {
  return cudaGraphInstantiate(instance, graph, flags);
}

/* --- kernels -------------------------------------------------------------------------------------------------- */

/* Architectures that PyTorch's wheels are built for. A kernel says which one it is of, and CUB refuses others. */
static int built_for(void) {
  static const int architectures[] = {50, 60, 70, 75, 80, 86, 90, 100, 120};
  const Gpu *gpu = fitplan_gpu();
  int best = architectures[0];
  for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++)
    if (architectures[i] <= 10 * gpu->major + gpu->minor) best = architectures[i];
  return best;
}

typedef struct {
  size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
  int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, cacheModeCA, maxDynamicSharedSizeBytes;
} FunctionAttributes;

Error cudaFuncGetAttributes(FunctionAttributes *attributes, const void *function) {
  (void)function;
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = THREADS_PER_BLOCK;
  attributes->numRegs = 32;
  attributes->ptxVersion = attributes->binaryVersion = built_for();
  attributes->maxDynamicSharedSizeBytes = SHARED_PER_BLOCK;
  return SUCCESS;
}

/* With 32 registers a thread, and no shared memory, threads and blocks are what limits. */
Error cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads, size_t shared) {
  (void)function, (void)shared;
  const Gpu *gpu = fitplan_gpu();
  *blocks = gpu->threads_per_multiprocessor / (threads > 0 ? threads : 1);
  if (*blocks > gpu->blocks_per_multiprocessor) *blocks = gpu->blocks_per_multiprocessor;
  return SUCCESS;
}

Error cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int threads,
                                                             size_t shared, unsigned flags) {
  (void)flags;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}

Error cudaOccupancyMaxActiveClusters(int *clusters, const void *function, const void *config) {
  (void)function, (void)config;
  *clusters = fitplan_gpu()->multiprocessors;
  return SUCCESS;
}

typedef struct {
  unsigned x, y, z;
} Dim;

typedef struct {
  Dim grid, block;
  size_t shared;
  void *stream;
} Launch;

static __thread Launch launches[64];
static __thread int launch_count;

unsigned __cudaPushCallConfiguration(Dim grid, Dim block, size_t shared, void *stream) {
  launches[launch_count++ & 63] = (Launch){grid, block, shared, stream};
  return 0;
}

Error __cudaPopCallConfiguration(Dim *grid, Dim *block, size_t *shared, void *stream) {
  Launch launch = launches[--launch_count & 63];
  *grid = launch.grid;
  *block = launch.block;
  *shared = launch.shared;
  *(void **)stream = launch.stream;
  return SUCCESS;
}

void **__cudaRegisterFatBinary(void *binary) {
  static void *handle[2];
  (void)binary;
  return handle;
}

/* These are called for each kernel of each library as it is loaded. */
void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
void __cudaRegisterFunction(void) {}
void __cudaRegisterVar(void) {}
void __cudaRegisterManagedVar(void) {}
char __cudaInitModule(void **handle) { (void)handle; return 1; }
Error __cudaGetKernel(void **kernel, const void *function) { *kernel = (void *)function; return SUCCESS; }
Error __cudaLaunchKernel(void) { return SUCCESS; }
Error cudaLaunchKernel(void) { return SUCCESS; }
Error cudaLaunchKernelExC(void) { return SUCCESS; }
Error cudaLaunchCooperativeKernel(void) { return SUCCESS; }
Error cudaFuncSetAttribute(void) { return SUCCESS; }
Error cudaStreamSynchronize(void) { return SUCCESS; }
Error cudaStreamWaitEvent(void) { return SUCCESS; }
Error cudaStreamQuery(void) { return SUCCESS; }
Error cudaStreamDestroy(void) { return SUCCESS; }
Error cudaDeviceSynchronize(void) { return SUCCESS; }
Error cudaEventRecord(void) { return SUCCESS; }
Error cudaEventRecordWithFlags(void) { return SUCCESS; }
Error cudaEventQuery(void) { return SUCCESS; } /* everything is over as soon as it is asked for */
Error cudaEventSynchronize(void) { return SUCCESS; }
Error cudaEventDestroy(void) { return SUCCESS; }
Error cudaThreadExchangeStreamCaptureMode(void) { return SUCCESS; }
Error cudaGraphLaunch(void) { return SUCCESS; }
Error cudaGraphDestroy(void) { return SUCCESS; }
Error cudaGraphExecDestroy(void) { return SUCCESS; }
Error cudaMemPrefetchAsync(void) { return SUCCESS; }
Error cudaMemAdvise(void) { return SUCCESS; }
Error cudaProfilerStart(void) { return SUCCESS; }
Error cudaProfilerStop(void) { return SUCCESS; }
Error cudaDeviceEnablePeerAccess(void) { return SUCCESS; }

Error cudaDeviceGetDefaultMemPool(void **pool, int device) {
  (void)device;
  *pool = (void *)fitplan_new_handle();
  return SUCCESS;
}

Error cudaGetSymbolAddress(void **address, const void *symbol) {
  *address = (void *)symbol;
  return SUCCESS;
}

/* --- the driver, for those who ask the runtime for it --------------------------------------------------------- */

static int has_no_rule(void) { return SUCCESS; }

static void *of_the_driver(const char *name) {
  static void *library;
  if (!library) library = dlopen("libcuda.so.1", RTLD_NOW);
  void *function = library ? dlsym(library, name) : NULL;
  if (function) return function;
  fitplan_told_once(name);
  return (void *)has_no_rule;
}

Error cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long flags, int *result) {
  (void)flags;
  *function = of_the_driver(name);
  if (result) *result = 0;
  return SUCCESS;
}

Error cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags,
                                       int *result) {
  (void)version;
  return cudaGetDriverEntryPoint(name, function, flags, result);
}
