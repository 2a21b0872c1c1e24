/* cuDNN: its backend API, in which PyTorch asks for convolutions and attention, and the older API for norms.
 *
 * A descriptor keeps what it is told and gives it back. Of an operation graph there is one engine. What attention
 * needs beside its engine, PyTorch's copy of cudnn-frontend works out on the host (the accumulators of the backward
 * pass in ``node/scaled_dot_product_flash_attention.h``), and that code runs as it is. The engine itself keeps the
 * gradients of keys and values for every query head before it sums them over the groups (measured on an H100 with
 * cuDNN 9.19: 64 MiB for 32 query and 8 key heads of 4096 x 128 in bfloat16), and has 256 bytes for itself. Its workspace for a convolution is not
 * known here, and none is taken.
 *
 * Names and numbers: cuDNN documentation, "cudnn_graph library"; ``cudnn_graph.h``.
 */
#include "gpu.h"

#include <stdlib.h>
#include <string.h>

extern int fitplan_cudnn_version;
enum { SUCCESS = 0, BAD_PARAM = 2000 };

size_t cudnnGetVersion(void) { return fitplan_cudnn_version; }
const char *cudnnGetErrorString(int status) { return status ? "failed" : "success"; }

size_t cudnnGetCudartVersion(void) {
  extern int fitplan_cuda_version;
  return fitplan_cuda_version;
}

void cudnnGetLastErrorString(char *text, size_t length) {
  if (length) *text = 0;
}

int cudnnGetProperty(int property, int *value) { /* major, minor, patch */
  int version = fitplan_cudnn_version;
  *value = property == 0 ? version / 10000 : property == 1 ? version / 100 % 100 : version % 100;
  return SUCCESS;
}

static int new_handle(void **handle) {
  *handle = (void *)fitplan_new_handle();
  return SUCCESS;
}

int cudnnCreate(void **handle) { return new_handle(handle); }
int cudnnDestroy(void *handle) { (void)handle; return SUCCESS; }

int cudnnSetStream(void *handle, void *stream) {
  (void)handle, (void)stream;
  return SUCCESS;
}

int cudnnGetStream(void *handle, void **stream) {
  (void)handle;
  *stream = NULL;
  return SUCCESS;
}

/* --- the backend API ------------------------------------------------------------------------------------------ */

typedef struct Attribute {
  struct Attribute *next;
  int name, type;
  int64_t count;
  char *values;
} Attribute;

typedef struct Descriptor {
  int kind;
  Attribute *attributes;
  int64_t workspace_bytes; /* of the graph that it is about */
} Descriptor;

enum {
  ENGINE = 2,
  ENGINE_CONFIGURATION = 3,
  HEURISTICS_RESULTS = 202,
  HEURISTICS_GRAPH = 201,
  CONFIGURATION_ENGINE = 300,
  CONFIGURATION_KNOBS = 302,
  CONFIGURATION_WORKSPACE = 303,
  CONFIGURATION_SHARED_MEMORY = 304,
  PLAN_CONFIGURATION = 401,
  PLAN_WORKSPACE = 402,
  PLAN_AS_JSON = 405,
  GRAPH_OPERATIONS = 801,
  GRAPH_ENGINES = 802,
  TENSOR_DATA_TYPE = 901,
  TENSOR_DIMENSIONS = 902,
  TENSOR_IS_VIRTUAL = 907,
  ENGINE_INDEX = 1301,
  ENGINE_KNOBS = 1302,
  ENGINE_NUMERICAL_NOTES = 1303,
  ENGINE_LAYOUTS = 1304,
  ENGINE_BEHAVIOUR_NOTES = 1305,
  REDUCTION_FROM = 1610,
  REDUCTION_TO = 1611,
};

enum { TYPE_DESCRIPTOR = 15 };

/* CUDNN_TYPE_*: bytes of one value. */
static size_t bytes_of(int type) {
  switch (type) {
    case 0: case 3: case 5: case 6: case TYPE_DESCRIPTOR: return 8;
    case 2: case 24: return 1;
    case 25: return 16; /* a fraction of two int64 */
    default: return 4;
  }
}

int cudnnBackendCreateDescriptor(int kind, Descriptor **descriptor) {
  *descriptor = calloc(1, sizeof **descriptor);
  (*descriptor)->kind = kind;
  return SUCCESS;
}

int cudnnBackendDestroyDescriptor(Descriptor *descriptor) {
  while (descriptor && descriptor->attributes) {
    Attribute *first = descriptor->attributes;
    descriptor->attributes = first->next;
    free(first->values);
    free(first);
  }
  free(descriptor);
  return SUCCESS;
}

int cudnnBackendInitialize(Descriptor *descriptor) { (void)descriptor; return SUCCESS; }

static Attribute *find(Descriptor *descriptor, int name) {
  for (Attribute *one = descriptor->attributes; one; one = one->next)
    if (one->name == name) return one;
  return NULL;
}

static Descriptor *descriptor_in(Descriptor *holder, int name, int64_t place) {
  Attribute *attribute = holder ? find(holder, name) : NULL;
  return attribute && place < attribute->count ? ((Descriptor **)attribute->values)[place] : NULL;
}

static const int64_t *dimensions(Descriptor *tensor) { /* of four; NULL for another number */
  Attribute *found = tensor ? find(tensor, TENSOR_DIMENSIONS) : NULL;
  return found && found->count == 4 ? (int64_t *)found->values : NULL;
}

static int64_t element_bytes(Descriptor *tensor) { /* cudnnDataType_t */
  Attribute *found = find(tensor, TENSOR_DATA_TYPE);
  switch (found ? *(int *)found->values : 0) {
    case 1: case 6: case 8: return 8; /* double, and 64-bit integers */
    case 2: case 9: return 2;         /* half, bfloat16 */
    default: return 4;
  }
}

/* A sum over groups of heads, [batch, heads, length, width] to fewer heads, is of a tensor that the engine keeps. */
static int64_t bytes_before_the_sum(Descriptor *operation) {
  Descriptor *from = descriptor_in(operation, REDUCTION_FROM, 0), *to = descriptor_in(operation, REDUCTION_TO, 0);
  const int64_t *all = dimensions(from), *grouped = dimensions(to);
  if (!all || !grouped || all[0] != grouped[0] || all[1] <= grouped[1] || all[2] != grouped[2] || all[3] != grouped[3])
    return 0;
  return all[0] * all[1] * all[2] * all[3] * element_bytes(to);
}

/* The backward pass of attention has five products, the forward pass two. */
enum { PRODUCT = 19, PRODUCTS_OF_BACKWARD = 5, OWN_BYTES_OF_BACKWARD = 256 };

int cudnnBackendFinalize(Descriptor *descriptor) {
  Descriptor *operation;
  int products = 0;
  for (int64_t place = 0; (operation = descriptor_in(descriptor, GRAPH_OPERATIONS, place)); place++) {
    descriptor->workspace_bytes += bytes_before_the_sum(operation);
    products += operation->kind == PRODUCT;
  }
  if (products >= PRODUCTS_OF_BACKWARD) descriptor->workspace_bytes += OWN_BYTES_OF_BACKWARD;
  return SUCCESS;
}

int cudnnBackendSetAttribute(Descriptor *descriptor, int name, int type, int64_t count, const void *values) {
  Attribute *attribute = find(descriptor, name);
  if (!attribute) {
    attribute = calloc(1, sizeof *attribute);
    attribute->next = descriptor->attributes;
    attribute->name = name;
    descriptor->attributes = attribute;
  }
  free(attribute->values);
  attribute->type = type;
  attribute->count = count;
  attribute->values = malloc(count * bytes_of(type) + 1);
  if (count) memcpy(attribute->values, values, count * bytes_of(type));
  if (name == HEURISTICS_GRAPH || name == PLAN_CONFIGURATION)
    descriptor->workspace_bytes = (*(Descriptor **)attribute->values)->workspace_bytes;
  return SUCCESS;
}

/* What was never set: nothing of what there could be many of, one engine, and zero. */
static int not_set(int name, int type, int64_t room, int64_t *count, void *values) {
  int64_t found = 1;
  switch (name) {
    case CONFIGURATION_KNOBS: case ENGINE_KNOBS: case ENGINE_NUMERICAL_NOTES: case ENGINE_LAYOUTS:
    case ENGINE_BEHAVIOUR_NOTES: case PLAN_AS_JSON:
      found = 0;
      break;
    case GRAPH_ENGINES:
      if (room > 0 && values) *(int64_t *)values = 1;
      break;
    case HEURISTICS_RESULTS: case CONFIGURATION_ENGINE: /* descriptors that the caller made beforehand */
      break;
    default:
      if (room > 0 && values && type != TYPE_DESCRIPTOR) memset(values, 0, bytes_of(type));
  }
  if (count) *count = found;
  return SUCCESS;
}

int cudnnBackendGetAttribute(Descriptor *descriptor, int name, int type, int64_t room, int64_t *count, void *values) {
  Attribute *attribute = find(descriptor, name);
  if (name == HEURISTICS_RESULTS && room > 0 && values)
    (*(Descriptor **)values)->workspace_bytes = descriptor->workspace_bytes;
  if (name == PLAN_WORKSPACE && room > 0 && values) {
    *(int64_t *)values = descriptor->workspace_bytes;
    if (count) *count = 1;
    return SUCCESS;
  }
  if (!attribute) return not_set(name, type, room, count, values);
  int64_t given = attribute->count < room ? attribute->count : room;
  if (count) *count = attribute->count;
  if (given > 0 && values && type != TYPE_DESCRIPTOR) memcpy(values, attribute->values, given * bytes_of(type));
  return SUCCESS;
}

int cudnnBackendExecute(void *handle, Descriptor *plan, Descriptor *pack) {
  (void)handle, (void)plan, (void)pack;
  return SUCCESS;
}

/* --- descriptors and sizes of the older API ------------------------------------------------------------------- */

int cudnnCreateTensorDescriptor(void **descriptor) { return new_handle(descriptor); }
int cudnnCreateFilterDescriptor(void **descriptor) { return new_handle(descriptor); }
int cudnnCreateConvolutionDescriptor(void **descriptor) { return new_handle(descriptor); }
int cudnnCreateActivationDescriptor(void **descriptor) { return new_handle(descriptor); }
int cudnnCreateDropoutDescriptor(void **descriptor) { return new_handle(descriptor); }
int cudnnCreateRNNDescriptor(void **descriptor) { return new_handle(descriptor); }
int cudnnCreateRNNDataDescriptor(void **descriptor) { return new_handle(descriptor); }
int cudnnCreateCTCLossDescriptor(void **descriptor) { return new_handle(descriptor); }
int cudnnCreatePoolingDescriptor(void **descriptor) { return new_handle(descriptor); }
int cudnnCreateSpatialTransformerDescriptor(void **descriptor) { return new_handle(descriptor); }

static int none(size_t *bytes) {
  *bytes = 0;
  return SUCCESS;
}

int cudnnDropoutGetStatesSize(void *handle, size_t *bytes) { (void)handle; return none(bytes); }

int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *handle, int mode, int operations, void *x, void *z,
                                                             void *y, void *scale, void *activation, size_t *bytes) {
  (void)handle, (void)mode, (void)operations, (void)x, (void)z, (void)y, (void)scale, (void)activation;
  return none(bytes);
}

int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *handle, int mode, int operations, void *activation,
                                                         void *x, size_t *bytes) {
  (void)handle, (void)mode, (void)operations, (void)activation, (void)x;
  return none(bytes);
}

int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *handle, int mode, int operations, void *x, void *y,
                                                      void *dy, void *dz, void *dx, void *scale, void *activation,
                                                      size_t *bytes) {
  (void)handle, (void)mode, (void)operations, (void)x, (void)y, (void)dy, (void)dz, (void)dx, (void)scale;
  (void)activation;
  return none(bytes);
}
