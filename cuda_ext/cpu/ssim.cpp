// Mean SSIM of two interleaved pictures and its gradient, in one sweep over the rows.
//
// A row of [W, 3] is 3 W floats in which the taps of a channel lie 3 apart, so nothing is separated.
// kBand rows are blurred downwards at a time, straight out of the pictures: an input row then serves
// all of them from registers. Across, they are blurred from lines that fit the first cache, compared,
// and the derivative's three planes go the way back through a ring of rows (a symmetric window is its
// own adjoint, zeros outside). Every row takes the same steps wherever its band begins, so the
// number of threads does not change a bit.
#include <string.h>

#include "simd.h"
// simd.h first: see scalar.h
#include "abi.h"
#include "parallel.h"
#include "ssim.h"

namespace gsa {
namespace {

constexpr int kTaps = kSsimTaps;
constexpr int kPad = 16;   // floats around a line, at least 3 * kSsimRadius and GSA_LANES; zeros
constexpr int kRing = 16;  // rows of the ring, at least kBand + 2 * kSsimRadius
#if GSA_LANES == 16
constexpr int kBand = 4;  // 16 sums of four planes stay in 32 registers
#else
constexpr int kBand = 2;
#endif
static_assert(kRing >= kBand + 2 * kSsimRadius, "the ring holds what a band looks at");
static_assert(4 * kBand + 3 + 3 * kRing + 2 <= GSA_SSIM_ROWS, "abi.h states the rows of scratch");

int padded(int width) { return (3 * width + 2 * kPad + 15) / 16 * 16; }

struct Part {
  const gsa_ssim_args& s;
  int length, stride;
  float scale;
  float* moments;     // [4 planes, kBand]: a, b, a^2 + b^2, a b, blurred downwards
  float* slope;       // [3 planes]: weighted derivatives of one row
  float* ring;        // [3 planes, kRing]: those blurred across
  float* weight;      // the mask of a row, three times each; 0 past its end
  const float* zero;  // a row of them

  float* moment(int plane, int row) const { return moments + (plane * kBand + row) * stride; }
  float* ringed(int plane, int y) const {
    return ring + (int64_t)(plane * kRing + (y & (kRing - 1))) * stride;
  }
};

// The first `used` floats, then zeros.
vf load_some(const float* at, int used) {
  float lane[GSA_LANES] = {};
  memcpy(lane, at, sizeof(float) * (size_t)used);
  return load(lane);
}

// The window's weight of tap k - b, where input row k is seen from output row b.
GSA_SIMD float tap(int k) { return k >= 0 && k < kTaps ? kSsimWindow.tap[k] : 0.0f; }

// Blurs one vector of columns downwards: `read(k)` gives two planes of input row k, from which
// `Planes` sums are made for each of the band's rows.
template <int Planes, class Read>
GSA_SIMD void blur_down(const Read& read, vf (*sum)[kBand]) {
  for (int p = 0; p < Planes; ++p)
    for (int b = 0; b < kBand; ++b) sum[p][b] = broadcast(0.0f);
#pragma GCC unroll 16
  for (int k = 0; k < kTaps + kBand - 1; ++k) {
    vf value[Planes];
    read(k, value);
#pragma GCC unroll 4
    for (int b = 0; b < kBand; ++b) {
      if (k < b || k - b >= kTaps) continue;
#pragma GCC unroll 4
      for (int p = 0; p < Planes; ++p) sum[p][b] = sum[p][b] + value[p] * tap(k - b);
    }
  }
}

#if GSA_LANES == 16
// The vector `Shift` floats further on, out of its neighbours: loads across two cache lines take four
// times as long.
template <int Shift>
GSA_SIMD vf beside(vf before, vf here, vf after) {
  const vf low = Shift < 0 ? before : here, high = Shift < 0 ? here : after;
  return (vf)_mm512_alignr_epi32((vi)high, (vi)low, (Shift + GSA_LANES) % GSA_LANES);
}
GSA_SIMD vf blur_across(const float* in) {
  const vf before = load(in - GSA_LANES), here = load(in), after = load(in + GSA_LANES);
  const float* w = kSsimWindow.tap + kSsimRadius;
  vf sum = here * w[0];
  sum = sum + (beside<-3>(before, here, after) + beside<3>(before, here, after)) * w[1];
  sum = sum + (beside<-6>(before, here, after) + beside<6>(before, here, after)) * w[2];
  sum = sum + (beside<-9>(before, here, after) + beside<9>(before, here, after)) * w[3];
  sum = sum + (beside<-12>(before, here, after) + beside<12>(before, here, after)) * w[4];
  return sum + (beside<-15>(before, here, after) + beside<15>(before, here, after)) * w[5];
}
#else
GSA_SIMD vf blur_across(const float* in) {
  vf sum = load(in) * kSsimWindow.tap[kSsimRadius];
#pragma GCC unroll 5
  for (int k = 1; k <= kSsimRadius; ++k)
    sum = sum + (load(in - 3 * k) + load(in + 3 * k)) * kSsimWindow.tap[kSsimRadius + k];
  return sum;
}
#endif

template <class Load>
GSA_SIMD void moments_at(const Part& p, const float* const* a, const float* const* b, int i,
                         const Load& read) {
  vf sum[4][kBand];
  blur_down<4>(
      [&](int k, vf (&value)[4]) {
        moments(read(a[k] + i), read(b[k] + i), value);
      },
      sum);
  for (int plane = 0; plane < 4; ++plane)
    for (int row = 0; row < kBand; ++row) store(p.moment(plane, row) + i, sum[plane][row]);
}

// The four planes around rows y … y + kBand - 1.
__attribute__((noinline)) void find_moments(const Part& p, int y) {
  const float *a[kTaps + kBand - 1], *b[kTaps + kBand - 1];
  for (int k = 0; k < kTaps + kBand - 1; ++k) {
    const int row = y + k - kSsimRadius;
    const bool inside = row >= 0 && row < p.s.height;
    a[k] = inside ? p.s.a + (int64_t)row * p.length : p.zero;
    b[k] = inside ? p.s.b + (int64_t)row * p.length : p.zero;
  }
  int i = 0;
  for (; i + GSA_LANES <= p.length; i += GSA_LANES)
    moments_at(p, a, b, i, [](const float* at) { return load(at); });
  const int rest = p.length - i;
  if (rest) moments_at(p, a, b, i, [rest](const float* at) { return load_some(at, rest); });
}

// The similarities of row y, the band's `row`: their weighted sum, and their derivatives blurred
// across into the ring.
__attribute__((noinline)) double compare_row(const Part& p, int row, int y) {
  const float *m_a = p.moment(0, row), *m_b = p.moment(1, row);
  const float *squares = p.moment(2, row), *product = p.moment(3, row);
  if (p.s.mask) {
    const float* mask = p.s.mask + (int64_t)y * p.s.width;
    for (int x = 0; x < p.s.width; ++x)
      p.weight[3 * x] = p.weight[3 * x + 1] = p.weight[3 * x + 2] = mask[x];
  }
  float *by_mean = p.slope, *by_square = by_mean + p.stride, *by_product = by_square + p.stride;
  vf sum = broadcast(0.0f);
  for (int i = 0; i < p.length; i += GSA_LANES) {
    const Similarity<vf> s = similarity(blur_across(m_a + i), blur_across(m_b + i),
                                        blur_across(squares + i), blur_across(product + i));
    const vf w = load(p.weight + i), scaled = w * p.scale;
    sum = sum + s.value * w;
    store(by_mean + i, s.by_mean * scaled);
    store(by_square + i, s.by_square * scaled);
    store(by_product + i, s.by_product * scaled);
  }
  if (p.s.v_a) {
    for (int plane = 0; plane < 3; ++plane) {
      const float* in = p.slope + plane * p.stride;
      float* out = p.ringed(plane, y);
      for (int i = 0; i < p.length; i += GSA_LANES) store(out + i, blur_across(in + i));
    }
  }
  float lane[GSA_LANES];
  store(lane, sum);
  double total = 0.0;
  for (int l = 0; l < GSA_LANES; ++l) total += lane[l];
  return total;
}

void skip_row(const Part& p, int y) {
  for (int plane = 0; plane < 3; ++plane)
    memset(p.ringed(plane, y), 0, sizeof(float) * (size_t)p.length);
}

// The gradient of `count` rows from y on.
__attribute__((noinline)) void write_rows(const Part& p, int y, int count) {
  const float* in[3][kTaps + kBand - 1];
  for (int plane = 0; plane < 3; ++plane)
    for (int k = 0; k < kTaps + kBand - 1; ++k) in[plane][k] = p.ringed(plane, y + k - kSsimRadius);
  for (int i = 0; i < p.length; i += GSA_LANES) {
    vf sum[3][kBand];
    blur_down<3>(
        [&](int k, vf* value) {
          for (int plane = 0; plane < 3; ++plane) value[plane] = load(in[plane][k] + i);
        },
        sum);
    const int used = p.length - i < GSA_LANES ? p.length - i : GSA_LANES;
    for (int row = 0; row < count; ++row) {
      const int64_t at = (int64_t)(y + row) * p.length + i;
      if (used == GSA_LANES) {
        store(p.s.v_a + at, similarity_bwd(load(p.s.a + at), load(p.s.b + at), sum[0][row],
                                           sum[1][row], sum[2][row]));
        continue;
      }
      float lane[GSA_LANES];
      store(lane, similarity_bwd(load_some(p.s.a + at, used), load_some(p.s.b + at, used),
                                 sum[0][row], sum[1][row], sum[2][row]));
      memcpy(p.s.v_a + at, lane, sizeof(float) * (size_t)used);
    }
  }
}

// Scratch of one part; only what is read before it is written is cleared.
Part make_part(const gsa_ssim_args& s, int part, float scale) {
  const int stride = padded(s.width);
  float* at = s.scratch + (int64_t)part * stride * GSA_SSIM_ROWS;
  const auto take = [&](int rows) {
    float* here = at + kPad;
    at += (int64_t)rows * stride;
    return here;
  };
  memset(at, 0, sizeof(float) * (size_t)stride * (4 * kBand + 3));
  float *moments = take(4 * kBand), *slope = take(3);
  memset(at, 0, sizeof(float) * (size_t)stride * 2);
  float *weight = take(1), *zero = take(1);
  Part p = {s, 3 * s.width, stride, scale, moments, slope, take(3 * kRing), weight, zero};
  if (!s.mask)
    for (int i = 0; i < p.length; ++i) p.weight[i] = 1.0f;
  return p;
}

void run_part(const gsa_ssim_args& s, int part, float scale) {
  const Part p = make_part(s, part, scale);
  const int first = (int)((int64_t)s.height * part / s.threads);
  const int last = (int)((int64_t)s.height * (part + 1) / s.threads);
  const int margin = s.v_a ? kSsimRadius : 0;  // rows whose derivative reaches ours
  int written = first;
  for (int y = first - margin; y < last + margin; y += kBand) {
    find_moments(p, y);
    for (int row = 0; row < kBand; ++row) {
      const int here = y + row;
      if (here < 0 || here >= s.height) {
        if (s.v_a) skip_row(p, here);
        continue;
      }
      if (here >= last + margin) continue;
      const double sum = compare_row(p, row, here);
      if (here >= first && here < last) s.sums[here] = sum;
    }
    for (; s.v_a && written < last && written + kBand + margin <= y + kBand; written += kBand)
      write_rows(p, written, last - written < kBand ? last - written : kBand);
  }
  if (s.v_a && written < last) write_rows(p, written, last - written);
}

double sum_of(const float* values, int64_t count) {
  double part[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int k = 0; k < 8; ++k) part[k] += values[i + k];
  double total = 0.0;
  for (; i < count; ++i) total += values[i];
  for (const double value : part) total += value;
  return total;
}

}  // namespace
}  // namespace gsa

extern "C" int32_t gsa_scaled(const float* in, const float* factor, float* out, int64_t count,
                              int32_t threads) {
  using namespace gsa;
  constexpr int64_t kPart = 1 << 16;
  const float scale = *factor;
  Crew crew(count < 4 * kPart ? 1 : threads);
  crew.run((int32_t)((count + kPart - 1) / kPart), [&](int part) {
    const int64_t end = (part + 1) * kPart < count ? (part + 1) * kPart : count;
    for (int64_t i = part * kPart; i < end; ++i) out[i] = scale * in[i];
  });
  return GSA_OK;
}

extern "C" int32_t gsa_ssim(const gsa_ssim_args* arguments) {
  using namespace gsa;
  const gsa_ssim_args& s = *arguments;
  const int64_t pixels = (int64_t)s.width * s.height;
  const double weight = s.mask ? sum_of(s.mask, pixels) : (double)pixels;
  const double scale = mean_scale(weight);
  Crew crew(s.threads);
  crew.run(s.threads, [&](int part) { run_part(s, part, (float)scale); });
  double sum = 0.0;
  for (int y = 0; y < s.height; ++y) sum += s.sums[y];
  *s.value = (float)(sum * scale);
  const double nothing = *s.value * 0.0;  // every pixel adds to the sum, one outside the mask as well
  return nothing == 0.0 ? GSA_OK : GSA_NOT_FINITE;
}
