// Channels beside colour: features, labels, normals. They are composited with the records and the tile
// lists that colour has, eight at a time.
#pragma once

#include "simd.h"
// simd.h first: see scalar.h
#include "abi.h"
#include "parallel.h"

namespace gsa {

// Gradients of the channels, and what they add to the slots, which hold those of the pictures.
void channels_bwd(const gsa_raster& s, const gsa_raster_grad& v, Crew& crew);

// out[k] = sum over lanes of m[k], k < GSA_MOMENTS.
void sum_moments(const vf* m, float* out);

}  // namespace gsa
