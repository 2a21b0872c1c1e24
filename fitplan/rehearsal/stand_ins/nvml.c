/* NVML: what nvidia-smi and pynvml would tell of the GPU. Fields and structures: NVML API reference. */
#define _GNU_SOURCE
#include "gpu.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long Bytes;
enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7 };

extern int fitplan_cuda_version;
static const char *const DRIVER = "0.0 (rehearsed)";

/* A handle is the number of the GPU, from 1. */
static int index_of(const void *handle) { return (int)((uintptr_t)handle - 1); }

static int handle_of(int index, void **handle) {
  if (index < 0 || index >= fitplan_gpu()->count) return NOT_FOUND;
  *handle = (void *)(uintptr_t)(index + 1);
  return SUCCESS;
}

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int error) {
  return error == NOT_SUPPORTED ? "Not Supported" : error == NOT_FOUND ? "Not Found" : error ? "Failed" : "Success";
}

int nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "%s", DRIVER); return SUCCESS; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = fitplan_cuda_version; return SUCCESS; }
int nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

int nvmlSystemGetProcessName(unsigned process, char *text, unsigned length) {
  (void)process;
  snprintf(text, length, "python");
  return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) { *count = fitplan_gpu()->count; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { return handle_of(index, handle); }

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
  unsigned last = 0;
  const char *dash = strrchr(uuid, '-');
  if (dash) sscanf(dash + 1, "%x", &last);
  return handle_of((int)last - 1, handle);
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **handle) {
  unsigned domain = 0, number = 0;
  if (sscanf(bus, "%x:%x", &domain, &number) != 2) return INVALID_ARGUMENT;
  return handle_of((int)number - 1, handle);
}

int nvmlDeviceGetIndex(void *handle, unsigned *index) { *index = index_of(handle); return SUCCESS; }
int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
  (void)handle;
  snprintf(name, length, "%s", fitplan_gpu()->name);
  return SUCCESS;
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) { /* as cudart.c says it */
  snprintf(uuid, length, "GPU-00000000-0000-0000-0000-%012x", index_of(handle) + 1);
  return SUCCESS;
}

typedef struct {
  Bytes total, free, used;
} Memory;

typedef struct {
  unsigned version;
  Bytes total, reserved, free, used;
} Memory2;

int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
  const Gpu *gpu = fitplan_gpu();
  memory->used = gpu->total_bytes - gpu->usable_bytes + fitplan_used(index_of(handle));
  memory->total = gpu->total_bytes;
  memory->free = memory->total - memory->used;
  return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(void *handle, Memory2 *memory) {
  const Gpu *gpu = fitplan_gpu();
  memory->total = gpu->total_bytes;
  memory->reserved = gpu->total_bytes - gpu->usable_bytes;
  memory->used = fitplan_used(index_of(handle));
  memory->free = memory->total - memory->reserved - memory->used;
  return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
  (void)handle;
  *major = fitplan_gpu()->major;
  *minor = fitplan_gpu()->minor;
  return SUCCESS;
}

typedef struct {
  unsigned process;
  Bytes bytes;
  unsigned instance, compute_instance;
} Process;

/* Of the processes this one is known, once it has a context. */
static int processes(void *handle, unsigned *room, Process *found) {
  size_t bytes = fitplan_used(index_of(handle));
  unsigned had = *room;
  *room = bytes > 0;
  if (!bytes) return SUCCESS;
  if (had < 1 || !found) return TOO_SMALL;
  *found = (Process){(unsigned)getpid(), bytes, ~0u, ~0u};
  return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *room, Process *found) { return processes(handle, room, found); }
int nvmlDeviceGetComputeRunningProcesses(void *handle, unsigned *room, Process *found) { return processes(handle, room, found); }
int nvmlDeviceGetComputeRunningProcesses_v2(void *handle, unsigned *room, Process *found) { return processes(handle, room, found); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, void *found) { (void)handle, (void)found; *count = 0; return SUCCESS; }
int nvmlDeviceGetGraphicsRunningProcesses_v2(void *handle, unsigned *count, void *found) { (void)handle, (void)found; *count = 0; return SUCCESS; }
int nvmlDeviceGetDisplayActive(void *handle, unsigned *active) { (void)handle; *active = 0; return SUCCESS; }
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) { (void)handle; *count = 0; return SUCCESS; }
int nvmlDeviceGetMigMode(void) { return NOT_SUPPORTED; }
int nvmlDeviceGetEccMode(void) { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemoteDeviceType(void) { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkState(void) { return NOT_SUPPORTED; }
int nvmlDeviceGetGpuFabricInfoV(void) { return NOT_SUPPORTED; }
