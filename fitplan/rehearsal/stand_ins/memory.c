/* The memory of the GPU that is told of, and where addresses lie. */
#define _GNU_SOURCE
#include "gpu.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t used[MAX_GPUS], most[MAX_GPUS];
static int has_context[MAX_GPUS];

typedef struct {
  char *from;
  size_t bytes;
  Kind kind;
  int device;
} Range;

static Range *ranges; /* sorted by address */
static size_t range_count, range_room;

static size_t number(const char *name, size_t otherwise) {
  const char *text = getenv(name);
  return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

/* CUDA C++ Programming Guide, "CUDA Environment Variables": an empty list hides all GPUs. */
static int visible(int count) {
  const char *list = getenv("CUDA_VISIBLE_DEVICES");
  if (!list) return count;
  int shown = 0;
  for (const char *at = list; *at; at++) shown += at == list || at[-1] == ',';
  if (list[0] == '-') return 0;
  return shown < count ? shown : count;
}

static void read_gpu(void);
static Gpu gpu;

const Gpu *fitplan_gpu(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, read_gpu);
  return &gpu;
}

static void read_gpu(void) {
  const char *name = getenv("FITPLAN_GPU_NAME"), *capability = getenv("FITPLAN_GPU_CAPABILITY");
  snprintf(gpu.name, sizeof gpu.name, "%s", name ? name : "a GPU that is not there");
  gpu.usable_bytes = number("FITPLAN_GPU_USABLE_BYTES", 0);
  gpu.total_bytes = number("FITPLAN_GPU_TOTAL_BYTES", gpu.usable_bytes);
  gpu.context_bytes = number("FITPLAN_GPU_CONTEXT_BYTES", 0);
  if (!capability || sscanf(capability, "%d.%d", &gpu.major, &gpu.minor) != 2) gpu.major = 8;
  gpu.multiprocessors = number("FITPLAN_GPU_MULTIPROCESSORS", 108);
  gpu.shared_bytes_per_block = number("FITPLAN_GPU_SHARED_BYTES_PER_BLOCK", 49152);
  gpu.shared_bytes_per_multiprocessor = number("FITPLAN_GPU_SHARED_BYTES_PER_MULTIPROCESSOR", 65536);
  gpu.threads_per_multiprocessor = number("FITPLAN_GPU_THREADS_PER_MULTIPROCESSOR", 2048);
  gpu.blocks_per_multiprocessor = number("FITPLAN_GPU_BLOCKS_PER_MULTIPROCESSOR", 32);
  gpu.count = number("FITPLAN_GPU_COUNT", 1);
  if (gpu.count > MAX_GPUS) gpu.count = MAX_GPUS;
  gpu.count = visible(gpu.count);
}

const char *fitplan_folder(void) {
  const char *folder = getenv("FITPLAN_REHEARSAL_FOLDER");
  return folder ? folder : "";
}

/* --- counting ------------------------------------------------------------------------------------------------- */

int fitplan_take(int device, size_t bytes) {
  const Gpu *it = fitplan_gpu();
  int refused = 0;
  pthread_mutex_lock(&lock);
  if (!has_context[device]) {
    has_context[device] = 1;
    used[device] += it->context_bytes;
  }
  if (used[device] + bytes > it->usable_bytes) {
    refused = -1;
  } else {
    used[device] += bytes;
    if (used[device] > most[device]) most[device] = used[device];
  }
  pthread_mutex_unlock(&lock);
  return refused;
}

void fitplan_give(int device, size_t bytes) {
  pthread_mutex_lock(&lock);
  used[device] -= bytes;
  pthread_mutex_unlock(&lock);
}

size_t fitplan_used(int device) { return used[device]; }
size_t fitplan_most(int device) { return most[device]; }

/* --- addresses ------------------------------------------------------------------------------------------------ */

/* The number of ranges that begin at or before the address. */
static size_t place_of(const char *address) {
  size_t low = 0, high = range_count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (ranges[middle].from <= address) low = middle + 1;
    else high = middle;
  }
  return low;
}

void fitplan_enter_range(void *address, size_t bytes, Kind kind, int device) {
  pthread_mutex_lock(&lock);
  if (range_count == range_room) {
    range_room = range_room ? 2 * range_room : 1024;
    ranges = realloc(ranges, range_room * sizeof *ranges);
  }
  size_t place = place_of(address);
  memmove(ranges + place + 1, ranges + place, (range_count - place) * sizeof *ranges);
  ranges[place] = (Range){address, bytes, kind, device};
  range_count++;
  pthread_mutex_unlock(&lock);
}

static size_t forget(void *address) {
  size_t place = place_of(address), bytes = 0;
  if (place && ranges[place - 1].from == (char *)address) {
    bytes = ranges[place - 1].bytes;
    memmove(ranges + place - 1, ranges + place, (range_count - place) * sizeof *ranges);
    range_count--;
  }
  return bytes;
}

void fitplan_leave_range(void *address) {
  pthread_mutex_lock(&lock);
  forget(address);
  pthread_mutex_unlock(&lock);
}

Kind fitplan_kind(const void *address, int *device) {
  Kind kind = NOWHERE;
  pthread_mutex_lock(&lock);
  size_t place = place_of(address);
  if (place && (const char *)address < ranges[place - 1].from + ranges[place - 1].bytes) {
    kind = ranges[place - 1].kind;
    if (device) *device = ranges[place - 1].device;
  }
  pthread_mutex_unlock(&lock);
  return kind;
}

/* Addresses fall, as on a GPU (fitplan/allocator/caching.py has how that was found): of free blocks of one size PyTorch's
 * allocator takes the one at the lowest address (c10/cuda/CUDACachingAllocator.cpp, BlockComparatorSize). From here on
 * nothing is mapped by anybody else; what is taken nevertheless is passed over. */
static uintptr_t next_address = 0x6f0000000000;
static const uintptr_t last_address = 0x600000000000;

static void *map_at(char *address, size_t bytes) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
  void *mapped = mmap(address, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (mapped == MAP_FAILED) return NULL;
  if (mapped == address) return mapped;
  munmap(mapped, bytes); /* a kernel that does not know the flag takes it for a wish */
  return NULL;
}

void *fitplan_map(size_t bytes, Kind kind, int device) {
  size_t whole = (bytes + GRANULE - 1) & ~(GRANULE - 1);
  void *mapped = NULL;
  while (!mapped) {
    uintptr_t address = __sync_sub_and_fetch(&next_address, whole);
    if (address < last_address) return NULL;
    mapped = map_at((char *)address, bytes);
  }
  fitplan_enter_range(mapped, bytes, kind, device);
  return mapped;
}

size_t fitplan_unmap(void *address) {
  pthread_mutex_lock(&lock);
  size_t bytes = forget(address);
  pthread_mutex_unlock(&lock);
  if (bytes) munmap(address, bytes);
  return bytes;
}

/* --- the rest ------------------------------------------------------------------------------------------------- */

int *fitplan_current_device(void) {
  static __thread int device;
  return &device;
}

uintptr_t fitplan_new_handle(void) {
  static uintptr_t last = 0x10000;
  return __sync_add_and_fetch(&last, 16);
}

/* Each name goes into the file once a process; whoever asks for a rehearsal is shown them. */
void fitplan_told_once(const char *function) {
  const char *folder = fitplan_folder();
  if (!*folder) return;
  char path[4096], line[512];
  snprintf(path, sizeof path, "%s/without-rule", folder);
  int length = snprintf(line, sizeof line, "%s\n", function);
  int file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0600);
  if (file < 0) return;
  ssize_t ignored = write(file, line, length);
  (void)ignored;
  close(file);
}
