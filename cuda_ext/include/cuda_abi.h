// The C interface of the CUDA library. Every pointer is to device memory but for the structs.
#pragma once

#include "abi.h"

#ifdef __cplusplus
extern "C" {
#endif

// Buffers have a fixed capacity, because their need is only known on the device: what does not fit
// is dropped and flagged in `status`, which the caller reads when it pleases, then grows and repeats
// the step. Nothing here waits for the device, so a step can be captured in a graph.
typedef struct {
  gsa_raster scene;       // `cover`, `tile_counts`, `visible` and `pairs` are not used; the structs
                          // of `parts` are read before the call returns
  int64_t capacity;       // E: (Gaussian, tile) pairs that fit
  int32_t* status;        // [4]: pairs wanted, code of the first malformed input, 0, 0
  int32_t* pair_count;    // [N]
  uint32_t* keys;         // [2, max(N, E)]
  uint32_t* values;       // [2, max(N, E)]
  int32_t* owner;         // [E], Gaussian of each slot
  void* temporary;        // gsa_cuda_temporary_bytes
  int64_t temporary_bytes;
  void* stream;           // of the caller
} gsa_cuda_raster;

GSA_API int64_t gsa_cuda_temporary_bytes(int32_t count, int64_t capacity, int32_t tiles);
GSA_API int32_t gsa_cuda_forward(const gsa_cuda_raster* call);
// The parts of the two that serve channels beside colour; those call them.
GSA_API int32_t gsa_cuda_channels(const gsa_cuda_raster* call);
GSA_API int32_t gsa_cuda_channels_bwd(const gsa_cuda_raster* call, const gsa_raster_grad* grad);
// The gradient of the background is (1 - alpha) v_rgb and left to the caller.
GSA_API int32_t gsa_cuda_backward(const gsa_cuda_raster* call, const gsa_raster_grad* grad);

// As the functions of abi.h without `cuda`; they return a cudaError_t.
GSA_API int32_t gsa_cuda_blend(const gsa_motion* motion, void* stream);
GSA_API int32_t gsa_cuda_blend_bwd(const gsa_motion* motion, const gsa_motion_grad* grad,
                                   void* stream);
GSA_API int32_t gsa_cuda_pose(const gsa_pose_args* pose, void* stream);
GSA_API int32_t gsa_cuda_pose_bwd(const gsa_pose_args* pose, const gsa_pose_grad* grad, void* stream);
GSA_API int32_t gsa_cuda_sh(const gsa_sh_args* arguments, void* stream);
GSA_API int32_t gsa_cuda_sh_bwd(const gsa_sh_args* arguments, const gsa_sh_grad* grad, void* stream);
// `scratch` is [3, H, W, 3] here, not used without v_a, and `sums` [T + 1, 2] for T tiles.
GSA_API int32_t gsa_cuda_ssim(const gsa_ssim_args* arguments, void* stream);

#ifdef __cplusplus
}
#endif
