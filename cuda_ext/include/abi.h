// The C interface of the native libraries. Python mirrors these structs in gsavatar/ops/native.py;
// raise GSA_ABI with every change there and here.
//
// All arrays are contiguous float32 or int32 in row-major order and belong to the caller, scratch
// included. No function keeps state, so calls may run at once from several threads.
#pragma once

#include <stdint.h>

#define GSA_ABI 9
#define GSA_RECORD 16  // floats of a projected Gaussian, see cpu/rasterize.cpp
#define GSA_COVER 4    // int32 of the tiles a Gaussian meets, see cpu/record.h
#define GSA_MOMENTS 10 // floats of a gradient slot
#define GSA_TILE 16    // pixels on a side
#define GSA_CHANNELS 8 // composited together, beside colour

#define GSA_OK 0
#define GSA_NOT_FINITE 1  // + index of the argument in the order of the struct; the names are in
                          // gsavatar/ops/check.py
#define GSA_BAD_BRANCH 32
#define GSA_TOO_MANY 33   // more than 2^31 - 1 (Gaussian, tile) pairs

#define GSA_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// Linear motion: offsets of N Gaussians as a weighted sum over K basis rows.
typedef struct {
  const float* means;         // [N, 3]
  const float* quats;         // [N, 4]
  const float* scales;        // [N, 3]
  const float* basis;         // [K, N, 9]: displacement in mean_unit, rotation vector, log stretch
  const float* coefficients;  // [K]
  int32_t count, coefficient_count, threads;
  float mean_unit;
  float* out_means;           // as the inputs
  float* out_quats;
  float* out_scales;
} gsa_motion;

typedef struct {
  const float* out_means;   // gradients with respect to the outputs
  const float* out_quats;
  const float* out_scales;
  float* partial;           // [N / 256 + 1, K], scratch
  float* means;             // [N, 3]
  float* quats;             // [N, 4]
  float* scales;            // [N, 3]
  float* basis;             // [K, N, 9] or null
  float* coefficients;      // [K] or null
} gsa_motion_grad;

// A rigid motion of which every Gaussian takes its share.
typedef struct {
  const float* means;   // [N, 3]
  const float* quats;   // [N, 4]
  const float* turn;    // [4] wxyz, any length; its sign does not matter
  const float* shift;   // [3]
  const float* share;   // [N], or null for all of it
  int32_t count, threads;
  float* out_means;     // as the inputs
  float* out_quats;
} gsa_pose_args;

typedef struct {
  const float* out_means;  // gradients with respect to the outputs
  const float* out_quats;
  float* partial;          // [N / 256 + 1, 16], scratch
  float* means;            // [N, 3]
  float* quats;            // [N, 4]
  float* turn;             // [4]
  float* shift;            // [3]
  float* share;            // [N] or null
} gsa_pose_grad;

// Gaussians in a row that move together when a cloud is drawn: offsets, then limits of the scales,
// then the share of a rigid motion.
typedef struct {
  gsa_motion motion;   // the cloud and `threads` are not read
  gsa_pose_args pose;  // likewise; `turn` null for none
  float scale_min, scale_max;
  int32_t turns_sh;    // whether the harmonics turn with the pose
} gsa_part;

// One cloud seen by one camera. N Gaussians, W x H pixels, E (Gaussian, tile) pairs, T tiles.
typedef struct {
  const float* means;         // [N, 3]
  const float* quats;         // [N, 4] wxyz, any length
  const float* scales;        // [N, 3]
  const float* opacities;     // [N]
  const float* colors;        // [N, 3]; not read where there are harmonics
  const float* world_to_cam;  // [4, 4]
  const float* K;             // [3, 3]
  const float* background;    // [3] or [H, W, 3]
  const float* screen_probe;  // [N, 2] or null
  const int32_t* branch;      // [N], 0..2
  int32_t count, width, height;
  int32_t background_is_image;
  int32_t threads;
  const gsa_part* parts;  // move the cloud first, without writing it; their counts add up to N
  const float* sh;        // [N, S, 3], of a cloud of parts; or null
  int32_t part_count;     // 0 for a cloud that is drawn as it is
  int32_t terms;          // S = 1, 4, 9 or 16
  // written by gsa_project, read by the others
  float* records;       // [N, GSA_RECORD]
  int32_t* cover;       // [N, GSA_COVER]
  int32_t* order;       // [N], visible Gaussians from near to far
  int32_t visible;      // how many
  int64_t pairs;        // E
  int32_t* pair_start;  // [N + 1], first gradient slot of each Gaussian
  uint32_t* scratch;    // [4 N], of gsa_project
  // written by gsa_composite
  int32_t* tile_start;  // [T + 2], first pair of each tile, E, and of which vectors `blocks` speaks
  int32_t* tile_counts; // [threads, T], scratch
  int32_t* list;        // [E, 2], Gaussian and gradient slot
  uint64_t* blocks;     // [E], what a pair reaches of its tile, for the backward pass; or null
  float* rgb;           // [H, W, 3]
  float* alpha;         // [H, W]
  float* branch_alpha;  // [H, W, 3]
  float* depth;         // [H, W]
  // channels beside colour, composited over zero by gsa_channels
  const float* channels;  // [N, C]
  float* extras;          // [H, W, C]
  int32_t channel_count;  // C, 0 for none
} gsa_raster;

// Gradients with respect to the outputs (null = zero) and to the inputs.
typedef struct {
  const float* rgb;           // [H, W, 3] or null
  const float* alpha;         // [H, W] or null
  const float* branch_alpha;  // [H, W, 3] or null
  const float* depth;         // [H, W] or null
  float* slots;         // [E, GSA_MOMENTS], scratch
  float* partial;       // [N / 256 + 1, 16] and [T, 3], scratch
  float* means;         // [N, 3]
  float* quats;         // [N, 4]
  float* scales;        // [N, 3]
  float* opacities;     // [N]
  float* colors;        // [N, 3]
  float* world_to_cam;  // [4, 4]
  float* K;             // [3, 3]
  float* background;    // as the input, or null
  float* screen_probe;  // [N, 2] or null
  const float* extras;  // gradient with respect to the output [H, W, C], or null
  float* channel_slots; // [E, GSA_CHANNELS], scratch where there are extras
  float* channels;      // [N, C], likewise
} gsa_raster_grad;

// View-dependent colours of N Gaussians, S = 1, 4, 9 or 16 harmonics each.
typedef struct {
  const float* means;   // [N, 3]
  const float* sh;      // [N, S, 3]
  const float* centre;  // [3], of the camera
  int32_t count, terms, threads;
  float* colors;        // [N, 3]; unused by gsa_sh_bwd
} gsa_sh_args;

typedef struct {
  const float* colors;  // [N, 3], gradient
  float* partial;       // [N / 256 + 1, 3], scratch
  float* means;         // [N, 3]
  float* sh;            // [N, S, 3]
  float* centre;        // [3]
} gsa_sh_grad;

#define GSA_SSIM_ROWS 69  // scratch rows of a thread: 4 x 4 blurred down, 3 x 17 derivatives, mask, 0

// Mean SSIM over pixels weighted by mask, and its gradient by a.
typedef struct {
  const float* a;     // [H, W, 3]
  const float* b;     // [H, W, 3]
  const float* mask;  // [H, W] or null
  int32_t height, width, threads;
  float* scratch;     // [threads, GSA_SSIM_ROWS, 3 W + 32 rounded up to 16]; see cuda_abi.h
  double* sums;       // [H], scratch; see cuda_abi.h
  float* value;       // [1]
  float* v_a;         // [H, W, 3] or null
} gsa_ssim_args;

GSA_API int32_t gsa_abi(void);
GSA_API int32_t gsa_lanes(void);        // floats per vector of this library
GSA_API int32_t gsa_has_threads(void);  // 0 if built without threads
GSA_API int32_t gsa_cpu_level(void);    // 2 AVX-512, 1 AVX2 with FMA, 0 neither: of this machine

GSA_API int32_t gsa_project(gsa_raster* scene);
GSA_API int32_t gsa_composite(gsa_raster* scene);
// After gsa_composite, with its records and lists.
GSA_API int32_t gsa_channels(const gsa_raster* scene);
GSA_API int32_t gsa_raster_bwd(const gsa_raster* scene, const gsa_raster_grad* grad);

GSA_API int32_t gsa_blend(const gsa_motion* motion);
GSA_API int32_t gsa_blend_bwd(const gsa_motion* motion, const gsa_motion_grad* grad);
GSA_API int32_t gsa_pose(const gsa_pose_args* pose);
GSA_API int32_t gsa_pose_bwd(const gsa_pose_args* pose, const gsa_pose_grad* grad);
GSA_API int32_t gsa_sh(const gsa_sh_args* arguments);
GSA_API int32_t gsa_sh_bwd(const gsa_sh_args* arguments, const gsa_sh_grad* grad);
GSA_API int32_t gsa_ssim(const gsa_ssim_args* arguments);
// out = factor in, with as many threads as pay.
GSA_API int32_t gsa_scaled(const float* in, const float* factor, float* out, int64_t count,
                           int32_t threads);

// For benchmarks: `rounds` multiply-adds of each of gsa_fma_chains() vectors that wait for nothing but
// themselves. The result only keeps the compiler from leaving them out.
GSA_API float gsa_fma(int64_t rounds);
GSA_API int32_t gsa_fma_chains(void);

// Contributions of the scene (alpha >= 1/255 where T >= 1e-4), after gsa_composite: for benchmarks.
GSA_API int64_t gsa_count_contributions(const gsa_raster* scene);

#ifdef __cplusplus
}
#endif
