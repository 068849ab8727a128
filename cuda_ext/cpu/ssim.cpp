// Mean SSIM of two interleaved pictures and its gradient, in one pass over the rows.
//
// A row of [W, 3] is 3 W floats in which the taps of a channel lie 3 apart, so nothing is separated.
// Rows are blurred horizontally into rings of 11, vertically out of them; the derivative's three
// planes go through rings of their own (a symmetric window is its own adjoint, zeros outside).
#include <string.h>

#include "simd.h"
// simd.h first: see scalar.h
#include "abi.h"
#include "parallel.h"
#include "ssim.h"

namespace gsa {
namespace {

constexpr int kTaps = 2 * kSsimRadius + 1;
constexpr int kPad = 16;  // floats before a row, at least 3 * kSsimRadius; zeros

int padded(int width) { return (3 * width + 2 * kPad + 15) / 16 * 16; }

// Rows in flight, each with kPad zeros around it.
struct Rows {
  float* data;
  int stride;
  float* at(int plane, int row) const {
    return data + ((int64_t)plane * kTaps + (row + kTaps) % kTaps) * stride + kPad;
  }
};

void blur_across(const float* in, float* out, int length) {
  for (int i = 0; i < length; i += GSA_LANES) {
    vf sum = load(in + i) * kSsimWindow[kSsimRadius];
    for (int k = 1; k <= kSsimRadius; ++k)
      sum = sum + (load(in + i - 3 * k) + load(in + i + 3 * k)) * kSsimWindow[kSsimRadius + k];
    store(out + i, sum);
  }
}

// The vertical blur of one plane around `row` at float i.
inline vf blur_down(const float* const* rows, int i) {
  vf sum = load(rows[kSsimRadius] + i) * kSsimWindow[kSsimRadius];
  for (int k = 1; k <= kSsimRadius; ++k)
    sum = sum + (load(rows[kSsimRadius - k] + i) + load(rows[kSsimRadius + k] + i)) *
                    kSsimWindow[kSsimRadius + k];
  return sum;
}

inline void find_rows(const Rows& ring, int plane, int row, const float** rows) {
  for (int k = 0; k < kTaps; ++k) rows[k] = ring.at(plane, row + k - kSsimRadius);
}

struct Part {
  const gsa_ssim_args& s;
  int length, stride;
  Rows moments;   // 4 planes: a, b, a^2 + b^2, a b, blurred across
  Rows slopes;    // 3 planes: weighted derivatives, blurred across
  float* line;    // 4 rows before the blur
  float* weight;  // the mask of a row, three times each
};

// Blurs the products of input row y across, into the ring; zeros outside the picture.
void read_row(const Part& p, int y) {
  if (y < 0 || y >= p.s.height) {
    for (int plane = 0; plane < 4; ++plane)
      memset(p.moments.at(plane, y), 0, sizeof(float) * (size_t)(p.stride - 2 * kPad));
    return;
  }
  float *a = p.line + kPad, *b = a + p.stride, *squares = b + p.stride, *product = squares + p.stride;
  memcpy(a, p.s.a + (int64_t)y * p.length, sizeof(float) * (size_t)p.length);
  memcpy(b, p.s.b + (int64_t)y * p.length, sizeof(float) * (size_t)p.length);
  for (int i = 0; i < p.length; i += GSA_LANES) {
    const vf u = load(a + i), v = load(b + i);
    store(squares + i, u * u + v * v);
    store(product + i, u * v);
  }
  for (int plane = 0; plane < 4; ++plane)
    blur_across(p.line + plane * p.stride + kPad, p.moments.at(plane, y), p.length);
}

// The similarities of row y: their weighted sum, and their derivatives into the second ring.
double compare_row(const Part& p, int y, float scale) {
  const float* rows[4][kTaps];
  for (int plane = 0; plane < 4; ++plane) find_rows(p.moments, plane, y, rows[plane]);
  if (p.s.mask)
    for (int i = 0; i < p.length; ++i) p.weight[i] = p.s.mask[(int64_t)y * p.s.width + i / 3];
  vf sum = broadcast(0.0f);
  for (int i = 0; i < p.length; i += GSA_LANES) {
    const Similarity<vf> s = similarity(blur_down(rows[0], i), blur_down(rows[1], i),
                                        blur_down(rows[2], i), blur_down(rows[3], i));
    const vf w = load(p.weight + i);  // zero past the end of the row
    sum = sum + s.value * w;
    store(p.line + kPad + i, s.by_mean * (w * scale));
    store(p.line + p.stride + kPad + i, s.by_square * (w * scale));
    store(p.line + 2 * p.stride + kPad + i, s.by_product * (w * scale));
  }
  float lane[GSA_LANES];
  store(lane, sum);
  double total = 0.0;
  for (int l = 0; l < GSA_LANES; ++l) total += lane[l];
  if (p.s.v_a)
    for (int plane = 0; plane < 3; ++plane)
      blur_across(p.line + plane * p.stride + kPad, p.slopes.at(plane, y), p.length);
  return total;
}

void skip_row(const Part& p, int y) {
  for (int plane = 0; plane < 3; ++plane)
    memset(p.slopes.at(plane, y), 0, sizeof(float) * (size_t)(p.stride - 2 * kPad));
}

// v_a = G * v_mean + 2 a (G * v_square) + b (G * v_product)
void write_row(const Part& p, int y) {
  const float* rows[3][kTaps];
  for (int plane = 0; plane < 3; ++plane) find_rows(p.slopes, plane, y, rows[plane]);
  const float *a = p.s.a + (int64_t)y * p.length, *b = p.s.b + (int64_t)y * p.length;
  float* out = p.s.v_a + (int64_t)y * p.length;
  int i = 0;
  for (; i + GSA_LANES <= p.length; i += GSA_LANES)
    store(out + i, blur_down(rows[0], i) + 2.0f * load(a + i) * blur_down(rows[1], i) +
                       load(b + i) * blur_down(rows[2], i));
  if (i == p.length) return;
  float blurred[3][GSA_LANES];
  for (int plane = 0; plane < 3; ++plane) store(blurred[plane], blur_down(rows[plane], i));
  for (int l = 0; i + l < p.length; ++l)
    out[i + l] = blurred[0][l] + 2.0f * a[i + l] * blurred[1][l] + b[i + l] * blurred[2][l];
}

void run_part(const gsa_ssim_args& s, int part, float scale) {
  const int stride = padded(s.width);
  float* at = s.scratch + (int64_t)part * stride * GSA_SSIM_ROWS;
  memset(at, 0, sizeof(float) * (size_t)stride * GSA_SSIM_ROWS);
  const Part p = {s, 3 * s.width, stride, {at, stride}, {at + 4 * kTaps * stride, stride},
                  at + 7 * kTaps * stride, at + (7 * kTaps + 4) * stride + kPad};
  if (!s.mask)
    for (int i = 0; i < p.length; ++i) p.weight[i] = 1.0f;
  const int first = (int)((int64_t)s.height * part / s.threads);
  const int last = (int)((int64_t)s.height * (part + 1) / s.threads);
  const int margin = s.v_a ? kSsimRadius : 0;  // rows whose derivative reaches ours
  for (int y = first - margin - kSsimRadius; y < first - margin + kSsimRadius; ++y) read_row(p, y);
  for (int y = first - margin; y < last + margin; ++y) {
    read_row(p, y + kSsimRadius);
    if (y < 0 || y >= s.height) {
      skip_row(p, y);
    } else {
      const double sum = compare_row(p, y, scale);
      if (y >= first && y < last) s.row_sums[y] = sum;
    }
    if (s.v_a && y - margin >= first) write_row(p, y - margin);
  }
}

}  // namespace
}  // namespace gsa

extern "C" int32_t gsa_ssim(const gsa_ssim_args* arguments) {
  using namespace gsa;
  const gsa_ssim_args& s = *arguments;
  double weight = (double)s.width * s.height;
  if (s.mask) {
    weight = 0.0;
    for (int64_t i = 0; i < (int64_t)s.width * s.height; ++i) weight += s.mask[i];
  }
  const double scale = 1.0 / (3.0 * (weight > 1e-12 ? weight : 1e-12));
  Crew crew(s.threads);
  crew.run(s.threads, [&](int part) { run_part(s, part, (float)scale); });
  double sum = 0.0;
  for (int y = 0; y < s.height; ++y) sum += s.row_sums[y];
  *s.value = (float)(sum * scale);
  return GSA_OK;
}
