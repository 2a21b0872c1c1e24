/* NCCL: collectives between ranks that all do the same.
 *
 * What is small is done as if every rank had sent what this one sends, so that programs that compare what they hold
 * with the others go on; only a broadcast differs between ranks, and goes through a file. What is large is left out.
 * NCCL's own buffers on the device are not counted.
 */
#define _GNU_SOURCE
#include "gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define DONE MIB /* up to here a collective is done */

extern int fitplan_nccl_version;
enum { SUCCESS = 0, SYSTEM_ERROR = 2 };

typedef struct {
  char bytes[128];
} UniqueId;

typedef struct {
  int rank, size, splits, broadcasts;
  uint64_t id;
} Communicator;

int ncclGetVersion(int *version) {
  *version = fitplan_nccl_version;
  return SUCCESS;
}

int ncclGetUniqueId(UniqueId *id) {
  return getrandom(id, sizeof *id, 0) == sizeof *id ? SUCCESS : SYSTEM_ERROR;
}

static Communicator *made(int rank, int size, uint64_t id) {
  Communicator *one = calloc(1, sizeof *one);
  *one = (Communicator){.rank = rank, .size = size, .id = id};
  return one;
}

int ncclCommInitRank(Communicator **communicator, int size, UniqueId id, int rank) {
  uint64_t first;
  memcpy(&first, &id, sizeof first);
  *communicator = made(rank, size, first);
  return SUCCESS;
}

int ncclCommInitRankConfig(Communicator **communicator, int size, UniqueId id, int rank, void *config) {
  (void)config;
  return ncclCommInitRank(communicator, size, id, rank);
}

int ncclCommInitRankScalable(Communicator **communicator, int size, int rank, int ids, UniqueId *id, void *config) {
  (void)ids;
  return ncclCommInitRankConfig(communicator, size, *id, rank, config);
}

int ncclCommInitAll(Communicator **communicators, int count, const int *devices) {
  (void)devices;
  for (int rank = 0; rank < count; rank++) communicators[rank] = made(rank, count, 0);
  return SUCCESS;
}

int ncclCommSplit(Communicator *parent, int color, int key, Communicator **communicator, void *config) {
  (void)config;
  parent->splits++;
  *communicator = made(key, parent->size, parent->id * 1000003 + (uint64_t)parent->splits * 7919 + color);
  return SUCCESS;
}

int ncclCommDestroy(Communicator *communicator) { (void)communicator; return SUCCESS; }
int ncclCommAbort(Communicator *communicator) { (void)communicator; return SUCCESS; }
int ncclCommFinalize(Communicator *communicator) { (void)communicator; return SUCCESS; }

int ncclCommGetAsyncError(Communicator *communicator, int *error) {
  (void)communicator;
  *error = SUCCESS;
  return SUCCESS;
}

int ncclCommCount(Communicator *communicator, int *count) {
  *count = communicator->size;
  return SUCCESS;
}

int ncclCommUserRank(Communicator *communicator, int *rank) {
  *rank = communicator->rank;
  return SUCCESS;
}

int ncclCommCuDevice(Communicator *communicator, int *device) {
  (void)communicator;
  *device = *fitplan_current_device();
  return SUCCESS;
}

const char *ncclGetErrorString(int error) { return error ? "failed" : "no error"; }
const char *ncclGetLastError(Communicator *communicator) { (void)communicator; return ""; }

int ncclGroupStart(void) { return SUCCESS; }
int ncclGroupEnd(void) { return SUCCESS; }
int ncclSend(void) { return SUCCESS; }
int ncclRecv(void) { return SUCCESS; } /* what is received stays as it was */

int ncclMemAlloc(void **address, size_t bytes) {
  extern int cudaMalloc(void **, size_t);
  return cudaMalloc(address, bytes) ? SYSTEM_ERROR : SUCCESS;
}

int ncclMemFree(void *address) {
  extern int cudaFree(void *);
  return cudaFree(address);
}

/* --- collectives ---------------------------------------------------------------------------------------------- */

enum { INT8, UINT8, INT32, UINT32, INT64, UINT64, FLOAT16, FLOAT32, FLOAT64, BFLOAT16 }; /* ncclDataType_t */

static size_t bytes_of(int type) {
  switch (type) {
    case INT8: case UINT8: case 10: case 11: return 1;
    case INT32: case UINT32: case FLOAT32: return 4;
    case INT64: case UINT64: case FLOAT64: return 8;
    default: return 2;
  }
}

int ncclAllGather(const void *from, void *to, size_t count, int type, Communicator *communicator, void *stream) {
  (void)stream;
  size_t bytes = count * bytes_of(type);
  if (bytes * communicator->size > DONE) return SUCCESS;
  for (int rank = 0; rank < communicator->size; rank++) {
    char *place = (char *)to + rank * bytes;
    if (place != from) memmove(place, from, bytes);
  }
  return SUCCESS;
}

/* A sum of equal parts; other reductions of equal parts are the part. */
static void times(void *values, size_t count, int type, int factor) {
  for (size_t i = 0; i < count; i++) {
    if (type == INT64 || type == UINT64) ((int64_t *)values)[i] *= factor;
    else if (type == INT32 || type == UINT32) ((int32_t *)values)[i] *= factor;
    else if (type == FLOAT32) ((float *)values)[i] *= factor;
    else if (type == FLOAT64) ((double *)values)[i] *= factor;
  }
}

int ncclAllReduce(const void *from, void *to, size_t count, int type, int operation, Communicator *communicator,
                  void *stream) {
  (void)stream;
  size_t bytes = count * bytes_of(type);
  if (bytes > DONE) return SUCCESS;
  if (from != to) memmove(to, from, bytes);
  if (operation == 0) times(to, count, type, communicator->size);
  return SUCCESS;
}

int ncclReduce(const void *from, void *to, size_t count, int type, int operation, int root, Communicator *communicator,
               void *stream) {
  (void)root;
  return to ? ncclAllReduce(from, to, count, type, operation, communicator, stream) : SUCCESS;
}

int ncclReduceScatter(const void *from, void *to, size_t count, int type, int operation, Communicator *communicator,
                      void *stream) {
  (void)stream;
  size_t bytes = count * bytes_of(type);
  if (bytes > DONE) return SUCCESS;
  memmove(to, (const char *)from + communicator->rank * bytes, bytes);
  if (operation == 0) times(to, count, type, communicator->size);
  return SUCCESS;
}

#define WAIT_MICROSECONDS 200
#define MOST_WAITS 600000 /* two minutes */

static int send_all(const char *path, const void *values, size_t bytes) {
  char draft[4200];
  snprintf(draft, sizeof draft, "%s.draft", path);
  FILE *file = fopen(draft, "w");
  if (!file) return SYSTEM_ERROR;
  size_t written = fwrite(values, 1, bytes, file);
  return fclose(file) || written != bytes || rename(draft, path) ? SYSTEM_ERROR : SUCCESS;
}

static int receive(const char *path, void *values, size_t bytes) {
  for (int wait = 0; wait < MOST_WAITS; wait++, usleep(WAIT_MICROSECONDS)) {
    FILE *file = fopen(path, "r");
    if (!file) continue;
    size_t got = fread(values, 1, bytes, file);
    fclose(file);
    return got == bytes ? SUCCESS : SYSTEM_ERROR;
  }
  fprintf(stderr, "fitplan: a broadcast from another rank did not come\n");
  return SYSTEM_ERROR;
}

int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, Communicator *communicator,
                  void *stream) {
  (void)stream;
  size_t bytes = count * bytes_of(type);
  if (bytes > DONE) return SUCCESS;
  if (communicator->rank == root && from != to) memmove(to, from, bytes);
  if (communicator->size < 2 || !*fitplan_folder()) return SUCCESS;
  char path[4160];
  snprintf(path, sizeof path, "%s/broadcast-%016llx-%d", fitplan_folder(), (unsigned long long)communicator->id,
           communicator->broadcasts++);
  return communicator->rank == root ? send_all(path, to, bytes) : receive(path, to, bytes);
}

int ncclBcast(void *values, size_t count, int type, int root, Communicator *communicator, void *stream) {
  return ncclBroadcast(values, values, count, type, root, communicator, stream);
}
