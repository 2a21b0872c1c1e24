/* The CUDA driver: contexts, modules (Triton's kernels), and virtual memory (expandable segments).
 *
 * It lies in a library of its own, since programs open it by name; the GPU is that of the other library.
 */
#define _GNU_SOURCE
#include "gpu.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };

extern int cudaDeviceGetAttribute(int *, int, int);
extern int cudaMemGetInfo(size_t *, size_t *);
extern int cudaMalloc(void **, size_t);
extern int cudaFree(void *);
extern int cudaMallocManaged(void **, size_t, unsigned);
extern int cudaHostAlloc(void **, size_t, unsigned);
extern int cudaFreeHost(void *);
extern int cudaDriverGetVersion(int *);
extern int fitplan_cuda_version;

static void *const CONTEXT = (void *)0x10;

int cuInit(unsigned flags) { (void)flags; return SUCCESS; }
int cuDriverGetVersion(int *version) { return cudaDriverGetVersion(version); }

/* Functions by name: the caller takes what the driver of this name has. */
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found) {
  extern int cudaGetDriverEntryPoint(const char *, void **, unsigned long long, int *);
  (void)version;
  return cudaGetDriverEntryPoint(name, function, flags, found);
}

int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, NULL);
}

/* Undocumented tables, which copies of the runtime inside other libraries ask for. */
int cuGetExportTable(const void **table, const void *id) {
  (void)id;
  *table = NULL;
  return NOT_FOUND;
}

/* --- devices and contexts ------------------------------------------------------------------------------------- */

int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = fitplan_gpu()->count; return SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { return cudaDeviceGetAttribute(value, attribute, device); }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = fitplan_gpu()->usable_bytes; return SUCCESS; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { return cudaMemGetInfo(free, total); }

int cuDeviceGetName(char *name, int length, int device) {
  (void)device;
  strncpy(name, fitplan_gpu()->name, length);
  return SUCCESS;
}

int cuDeviceGetUuid_v2(char *uuid, int device) {
  memset(uuid, 0, 16);
  uuid[15] = (char)(device + 1);
  return SUCCESS;
}

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  (void)device;
  *flags = 0;
  *active = 1;
  return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = CONTEXT; return SUCCESS; }
int cuCtxGetCurrent(void **context) { *context = CONTEXT; return SUCCESS; }
int cuCtxSetCurrent(void *context) { (void)context; return SUCCESS; }
int cuCtxGetDevice(int *device) { *device = *fitplan_current_device(); return SUCCESS; }
int cuCtxPushCurrent_v2(void *context) { (void)context; return SUCCESS; }
int cuCtxPopCurrent_v2(void **context) { *context = CONTEXT; return SUCCESS; }
int cuCtxSynchronize(void) { return SUCCESS; }

int cuGetErrorString(int error, const char **text) {
  *text = error == OUT_OF_MEMORY ? "out of memory" : error ? "invalid argument" : "no error";
  return SUCCESS;
}

int cuGetErrorName(int error, const char **text) {
  *text = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : error ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_SUCCESS";
  return SUCCESS;
}

/* --- kernels -------------------------------------------------------------------------------------------------- */

static int new_handle(void **handle) { *handle = (void *)fitplan_new_handle(); return SUCCESS; }

int cuModuleLoadData(void **module, const void *image) { (void)image; return new_handle(module); }
int cuModuleLoad(void **module, const char *path) { (void)path; return new_handle(module); }
int cuModuleLoadDataEx(void **module, const void *image) { (void)image; return new_handle(module); }
int cuLibraryLoadData(void **library, const void *code) { (void)code; return new_handle(library); }
int cuLibraryGetKernel(void **kernel, void *library, const char *name) { (void)library, (void)name; return new_handle(kernel); }
int cuKernelGetFunction(void **function, void *kernel) { *function = kernel; return SUCCESS; }
int cuModuleUnload(void *module) { (void)module; return SUCCESS; }
int cuModuleGetFunction(void **function, void *module, const char *name) { (void)module, (void)name; return new_handle(function); }

int cuFuncGetAttribute(int *value, int attribute, void *function) {
  (void)function;
  *value = attribute == 0 ? 1024 : attribute == 4 ? 32 : 0; /* threads per block, registers */
  return SUCCESS;
}

int cuFuncSetAttribute(void *function, int attribute, int value) { (void)function, (void)attribute, (void)value; return SUCCESS; }
int cuFuncSetCacheConfig(void *function, int config) { (void)function, (void)config; return SUCCESS; }
int cuLaunchKernel(void) { return SUCCESS; }
int cuLaunchKernelEx(void) { return SUCCESS; }
int cuLaunchCooperativeKernel(void) { return SUCCESS; }
int cuTensorMapEncodeTiled(void) { return SUCCESS; }

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared) {
  extern int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *, const void *, int, size_t);
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}

int cuOccupancyMaxActiveClusters(int *clusters, void *function, const void *config) {
  (void)function, (void)config;
  *clusters = fitplan_gpu()->multiprocessors;
  return SUCCESS;
}

int cuStreamSynchronize(void *stream) { (void)stream; return SUCCESS; }
int cuStreamCreate(void **stream, unsigned flags) { (void)flags; return new_handle(stream); }
int cuStreamGetCtx(void *stream, void **context) { (void)stream; *context = CONTEXT; return SUCCESS; }
int cuEventCreate(void **event, unsigned flags) { (void)flags; return new_handle(event); }
int cuEventRecord(void *event, void *stream) { (void)event, (void)stream; return SUCCESS; }
int cuEventSynchronize(void *event) { (void)event; return SUCCESS; }

/* --- memory --------------------------------------------------------------------------------------------------- */

int cuMemAlloc_v2(void **address, size_t bytes) { return cudaMalloc(address, bytes); }
int cuMemFree_v2(void *address) { return cudaFree(address); }
int cuMemAllocManaged(void **address, size_t bytes, unsigned flags) { return cudaMallocManaged(address, bytes, flags); }
int cuMemHostAlloc(void **address, size_t bytes, unsigned flags) { return cudaHostAlloc(address, bytes, flags); }
int cuMemFreeHost(void *address) { return cudaFreeHost(address); }

/* CUpointer_attribute: context, kind of memory, address on the device and on the host, and others. */
int cuPointerGetAttribute(void *value, int attribute, void *address) {
  int device = 0;
  Kind kind = fitplan_kind(address, &device);
  switch (attribute) {
    case 1: *(void **)value = CONTEXT; break;
    case 2: *(unsigned *)value = kind == ON_HOST ? 1 : 2; break;
    case 3: case 4: *(void **)value = address; break;
    case 8: *(unsigned *)value = kind == MANAGED; break;
    case 9: *(int *)value = device; break;
    default: *(int *)value = 0;
  }
  return kind == NOWHERE ? 1 : SUCCESS;
}

/* CUDA Driver API, "Virtual Memory Management": physical memory is created and released, addresses are reserved. */
typedef struct {
  size_t bytes;
  int device;
} Physical;

typedef struct { /* CUmemAllocationProp */
  int type, handle_types;
  struct { int type, id; } location;
} Properties;

int cuMemGetAllocationGranularity(size_t *bytes, const Properties *properties, int option) {
  (void)properties, (void)option;
  *bytes = GRANULE;
  return SUCCESS;
}

int cuMemAddressReserve(void **address, size_t bytes, size_t alignment, void *wanted, unsigned long long flags) {
  (void)alignment, (void)wanted, (void)flags;
  *address = fitplan_map(bytes, ON_DEVICE, *fitplan_current_device());
  return *address ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemAddressFree(void *address, size_t bytes) {
  (void)bytes;
  fitplan_unmap(address);
  return SUCCESS;
}

int cuMemCreate(Physical **handle, size_t bytes, const Properties *properties, unsigned long long flags) {
  (void)flags;
  int device = properties->location.id;
  if (fitplan_take(device, bytes)) return OUT_OF_MEMORY;
  *handle = malloc(sizeof **handle);
  **handle = (Physical){bytes, device};
  return SUCCESS;
}

int cuMemRelease(Physical *handle) {
  fitplan_give(handle->device, handle->bytes);
  free(handle);
  return SUCCESS;
}

int cuMemMap(void *address, size_t bytes, size_t offset, Physical *handle, unsigned long long flags) {
  (void)address, (void)bytes, (void)offset, (void)handle, (void)flags;
  return SUCCESS;
}

int cuMemUnmap(void *address, size_t bytes) {
  madvise(address, bytes, MADV_DONTNEED); /* what is mapped there next reads as zero */
  return SUCCESS;
}

int cuMemSetAccess(void *address, size_t bytes, const void *description, size_t count) {
  (void)address, (void)bytes, (void)description, (void)count;
  return SUCCESS;
}
