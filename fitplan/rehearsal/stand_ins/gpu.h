/* What the stand-ins share: the GPU that is told of, its memory, and a list of what was called without a rule.
 *
 * A stand-in answers as the library of its name would on a GPU of the given kind, as far as memory and the choice of
 * kernels depend on it. Memory is counted, and mapped without being reserved: pages that nobody touches cost nothing.
 * Kernels are accepted and do nothing.
 */
#ifndef FITPLAN_GPU_H
#define FITPLAN_GPU_H

#include <stddef.h>
#include <stdint.h>

#define MIB ((size_t)1 << 20)
#define MAX_GPUS 64

/* The physical page of a GPU: what cudaMalloc rounds to (CUDA C++ Programming Guide, "Virtual Memory Management":
 * cuMemGetAllocationGranularity, 2 MiB on all GPUs so far). */
#define GRANULE (2 * MIB)

typedef struct {
  char name[256];
  size_t usable_bytes;  /* what a process can have; cudaMemGetInfo calls it the total */
  size_t total_bytes;   /* what NVML calls the total */
  size_t context_bytes; /* taken by the CUDA context as soon as there is one */
  int major, minor;
  int multiprocessors;
  int shared_bytes_per_block;          /* at most, if a kernel asks for it */
  int shared_bytes_per_multiprocessor;
  int threads_per_multiprocessor;
  int blocks_per_multiprocessor;
  int count;
} Gpu;

const Gpu *fitplan_gpu(void);

/* Device memory. All return 0, or -1 where the GPU has no room. */
int fitplan_take(int device, size_t bytes);
void fitplan_give(int device, size_t bytes);
size_t fitplan_used(int device); /* with the context, if there is one */
size_t fitplan_most(int device); /* the highest that fitplan_used has been */

/* Ranges of addresses. */
typedef enum { NOWHERE, ON_HOST, ON_DEVICE, MANAGED } Kind;
void *fitplan_map(size_t bytes, Kind kind, int device);
size_t fitplan_unmap(void *address); /* its bytes; 0 if it was never mapped */
void fitplan_enter_range(void *address, size_t bytes, Kind kind, int device);
void fitplan_leave_range(void *address);
Kind fitplan_kind(const void *address, int *device);

int *fitplan_current_device(void); /* of this thread */
uintptr_t fitplan_new_handle(void);
void fitplan_told_once(const char *function);
const char *fitplan_folder(void); /* of this rehearsal; "" for none */

#endif
