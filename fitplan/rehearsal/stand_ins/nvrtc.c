/* NVRTC: PyTorch compiles some kernels while it runs ("jiterator"), and the real one crashes without a GPU. */
#include "gpu.h"

#include <string.h>

extern int fitplan_cuda_version;

int nvrtcVersion(int *major, int *minor) {
  *major = fitplan_cuda_version / 1000;
  *minor = fitplan_cuda_version % 1000 / 10;
  return 0;
}

int nvrtcCreateProgram(void **program, const char *source, const char *name, int count, const char *const *headers,
                       const char *const *names) {
  (void)source, (void)name, (void)count, (void)headers, (void)names;
  *program = (void *)fitplan_new_handle();
  return 0;
}

int nvrtcCompileProgram(void *program, int count, const char *const *options) {
  (void)program, (void)count, (void)options;
  return 0;
}

int nvrtcDestroyProgram(void **program) {
  *program = NULL;
  return 0;
}

int nvrtcAddNameExpression(void *program, const char *expression) { (void)program, (void)expression; return 0; }

int nvrtcGetLoweredName(void *program, const char *expression, const char **name) {
  (void)program, (void)expression;
  *name = "kernel";
  return 0;
}

enum { CODE_BYTES = 16 };

static int size(size_t *bytes) { *bytes = CODE_BYTES; return 0; }
static int code(char *bytes) { memset(bytes, 0, CODE_BYTES); return 0; }

int nvrtcGetCUBINSize(void *program, size_t *bytes) { (void)program; return size(bytes); }
int nvrtcGetPTXSize(void *program, size_t *bytes) { (void)program; return size(bytes); }
int nvrtcGetCUBIN(void *program, char *bytes) { (void)program; return code(bytes); }
int nvrtcGetPTX(void *program, char *bytes) { (void)program; return code(bytes); }
int nvrtcGetProgramLogSize(void *program, size_t *bytes) { (void)program; *bytes = 1; return 0; }
int nvrtcGetProgramLog(void *program, char *text) { (void)program; *text = 0; return 0; }
const char *nvrtcGetErrorString(int error) { return error ? "failed" : "no error"; }
