/* cuBLAS and cuBLASLt: handles and descriptors; one algorithm for every product, which needs no workspace.
 *
 * The workspaces themselves are PyTorch's: it allocates them and hands them over (ATen/cuda/CublasHandlePool.cpp).
 */
#include "gpu.h"

#include <string.h>

extern int fitplan_cublas_version;

static int new_handle(void **handle) {
  *handle = (void *)fitplan_new_handle();
  return 0;
}

int cublasCreate_v2(void **handle) { return new_handle(handle); }

int cublasGetStream_v2(void *handle, void **stream) {
  (void)handle;
  *stream = NULL;
  return 0;
}

int cublasGetMathMode(void *handle, int *mode) {
  (void)handle;
  *mode = 0;
  return 0;
}

int cublasGetPointerMode_v2(void *handle, int *mode) {
  (void)handle;
  *mode = 0;
  return 0;
}

int cublasGetVersion_v2(void *handle, int *version) {
  (void)handle;
  *version = fitplan_cublas_version;
  return 0;
}

size_t cublasLtGetVersion(void) { return fitplan_cublas_version; }

const char *cublasGetStatusString(int status) { return status ? "failed" : "success"; }
const char *cublasLtGetStatusString(int status) { return cublasGetStatusString(status); }

int cublasLtCreate(void **handle) { return new_handle(handle); }
int cublasLtMatmulDescCreate(void **descriptor) { return new_handle(descriptor); }
int cublasLtMatrixLayoutCreate(void **layout) { return new_handle(layout); }
int cublasLtMatmulPreferenceCreate(void **preference) { return new_handle(preference); }
int cublasLtMatrixTransformDescCreate(void **descriptor) { return new_handle(descriptor); }

/* cublasLtMatmulHeuristicResult_t (cuBLAS documentation): the algorithm, its workspace, whether it can be used. */
typedef struct {
  uint64_t algorithm[8];
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
} HeuristicResult;

int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                   int wanted, HeuristicResult *results, int *found) {
  (void)handle, (void)operation, (void)a, (void)b, (void)c, (void)d, (void)preference;
  *found = wanted > 0;
  if (*found) memset(results, 0, sizeof *results);
  return 0;
}

/* What every step calls, and nothing depends on. */
int cublasDestroy_v2(void) { return 0; }
int cublasSetStream_v2(void) { return 0; }
int cublasSetWorkspace_v2(void) { return 0; }
int cublasSetMathMode(void) { return 0; }
int cublasSetPointerMode_v2(void) { return 0; }
int cublasGemmEx(void) { return 0; }
int cublasGemmStridedBatchedEx(void) { return 0; }
int cublasGemmBatchedEx(void) { return 0; }
int cublasSgemm_v2(void) { return 0; }
int cublasSgemmStridedBatched(void) { return 0; }
int cublasDgemm_v2(void) { return 0; }
int cublasLtDestroy(void) { return 0; }
int cublasLtMatmul(void) { return 0; }
int cublasLtMatmulDescSetAttribute(void) { return 0; }
int cublasLtMatmulDescDestroy(void) { return 0; }
int cublasLtMatrixLayoutSetAttribute(void) { return 0; }
int cublasLtMatrixLayoutDestroy(void) { return 0; }
int cublasLtMatmulPreferenceSetAttribute(void) { return 0; }
int cublasLtMatmulPreferenceDestroy(void) { return 0; }
