"""Every measure against an answer that is known without it."""

from __future__ import annotations

import numpy as np
import pytest

from gsavatar import metrics, metrics_motion, metrics_mouth
from gsavatar.landmarks import LIPS_40
from gsavatar.types import Region

FPS = 25.0


def noise(seed: int = 0, size: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def smooth(dx: float = 0.0, dy: float = 0.0, size: int = 200) -> np.ndarray:
    """A picture known at every real position, moved by (dx, dy) pixels."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    x, y = x - dx, y - dy
    value = 120 + 40 * np.sin(x / 5) * np.cos(y / 7) + 30 * np.sin((x + 2 * y) / 11)
    return np.repeat(np.round(value)[..., None], 3, -1).astype(np.uint8)


# Pictures


def test_psnr_of_a_known_difference() -> None:
    real = np.full((20, 20, 3), 100, np.uint8)
    rendered = real + np.uint8(16)
    assert metrics.psnr(rendered, real) == pytest.approx(20 * np.log10(255 / 16))
    mask = np.zeros((20, 20), bool)
    mask[:10] = True
    rendered[10:] = 0  # outside the mask: must not count
    assert metrics.psnr(rendered, real, mask) == pytest.approx(20 * np.log10(255 / 16))


def test_psnr_is_capped_and_an_empty_mask_has_none() -> None:
    picture = noise()
    assert metrics.psnr(picture, picture) == metrics.PSNR_CAP == 60.0
    nearly = picture.copy()
    nearly[0, 0, 0] ^= 1  # one level in one of 12288 values is 89 dB
    assert metrics.psnr(nearly, picture) == 60.0
    assert np.isnan(metrics.psnr(picture, picture, np.zeros((64, 64), bool)))


def slow_ssim(a: np.ndarray, b: np.ndarray, y: int, x: int) -> float:
    """SSIM of one 11 x 11 window by its definition, mean of the channels."""
    offsets = np.arange(-5, 6)
    w = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    w /= w.sum()
    values = []
    for c in range(3):
        p = a[y - 5 : y + 6, x - 5 : x + 6, c] / 255.0
        q = b[y - 5 : y + 6, x - 5 : x + 6, c] / 255.0
        mp, mq = (w * p).sum(), (w * q).sum()
        vp, vq = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum()
        cov = (w * (p - mp) * (q - mq)).sum()
        values.append(
            (2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
        )
    return float(np.mean(values))


def test_ssim_is_its_definition() -> None:
    real = smooth(size=48)
    noisy = real + np.random.default_rng(1).normal(0, 12, real.shape)
    rendered = np.clip(noisy, 0, 255).astype(np.uint8)
    found = metrics.SsimTarget(real).map(rendered)
    assert found.shape == (38, 38)
    for y, x in ((5, 5), (20, 31), (42, 42)):
        assert found[y - 5, x - 5] == pytest.approx(slow_ssim(rendered, real, y, x), abs=2e-5)
    mask = np.zeros((48, 48), bool)
    mask[20, 31] = True
    expected = slow_ssim(rendered, real, 20, 31)
    assert metrics.ssim(rendered, real, mask) == pytest.approx(expected, abs=2e-5)
    assert 0.1 < expected < 0.99


def test_ssim_of_equal_and_of_unrelated_pictures() -> None:
    assert metrics.ssim(noise(), noise()) == pytest.approx(1.0, abs=1e-6)
    assert abs(metrics.ssim(noise(0), noise(1))) < 0.1
    assert np.isnan(metrics.ssim(noise(), noise(), np.zeros((64, 64), bool)))
    with pytest.raises(ValueError, match="11 pixels"):
        metrics.ssim(noise(size=8), noise(size=8))


def test_head_is_everything_but_neck_torso_and_background() -> None:
    regions = np.array([[int(r) for r in Region]], np.uint8)
    inside = [r for r, on in zip(Region, metrics.head_mask(regions)[0], strict=True) if on]
    assert inside == [Region.SKIN, Region.HAIR, Region.LIPS, Region.INNER_MOUTH, Region.EYES]


def test_boxes_grow_and_become_square() -> None:
    assert metrics.square_box((40, 20, 60, 60), 0.25, (100, 100)) == (25, 15, 75, 65)
    assert metrics.square_box((0, 0, 40, 40), 0.25, (100, 100)) == (0, 0, 45, 45)
    assert metrics.square_box((np.nan, 0, 1, 1), 0.25, (100, 100)) is None
    assert metrics.square_box((200, 200, 240, 240), 0.25, (100, 100)) is None


def test_pasting_keeps_real_pixels_outside_the_head() -> None:
    head = np.zeros((64, 64), bool)
    head[:32] = True
    mixed = metrics.pasted(noise(0), noise(1), head)
    assert (mixed[:32] == noise(0)[:32]).all() and (mixed[32:] == noise(1)[32:]).all()


def test_lpips_is_measured_or_says_why_not() -> None:
    distance, why = metrics.open_lpips()
    assert (distance is None) == bool(why)


# Mouth


def test_lip_distance_ignores_where_the_mouth_is() -> None:
    points = np.random.default_rng(0).normal(0, 10, (478, 3))
    assert metrics_mouth.lip_distance(points + 7.0, points) == pytest.approx(0.0, abs=1e-9)
    wider = points.copy()
    lips = list(LIPS_40)
    wider[lips[::2], 0] += 3.0  # every second lip point: each is 1.5 px from the common mean
    assert metrics_mouth.lip_distance(wider, points) == pytest.approx(1.5)


def test_mouth_box_holds_the_lips() -> None:
    points = np.zeros((478, 3))
    for i, index in enumerate(LIPS_40):
        points[index, :2] = (100 + i, 200 + i / 2)  # 39 px wide
    top, left, bottom, right = metrics_mouth.mouth_box(points, (512, 512)) or (0, 0, 0, 0)
    assert bottom - top == right - left == pytest.approx(39 * 1.25, abs=1)
    assert left < 100 and right > 139


def opening_at(time_s: np.ndarray) -> np.ndarray:
    """A mouth that opens and closes without a period that a lag could hide behind."""
    return 0.03 + 0.02 * np.sin(2 * np.pi * 1.1 * time_s) * np.sin(2 * np.pi * 0.37 * time_s + 1)


@pytest.mark.parametrize("late_s", [0.0, 0.04, 0.12, -0.08, 0.07, -0.03])
def test_lag_is_found_in_ms_and_positive_when_late(late_s: float) -> None:
    time_s = np.arange(200) / FPS
    found = metrics_mouth.lag_ms(opening_at(time_s), opening_at(time_s - late_s), time_s)
    assert found == pytest.approx(1000 * late_s, abs=3.0)


def test_lag_uses_the_frames_own_times() -> None:
    rng = np.random.default_rng(0)
    time_s = np.sort(np.arange(300)[rng.random(300) > 0.1] / 30.0)  # a tenth is missing
    found = metrics_mouth.lag_ms(opening_at(time_s), opening_at(time_s - 0.1), time_s)
    assert found == pytest.approx(100.0, abs=6.0)


def test_lag_outside_the_search_and_of_nothing_is_unknown() -> None:
    time_s = np.arange(200) / FPS
    far = opening_at(time_s - 0.5)
    assert np.isnan(metrics_mouth.lag_ms(opening_at(time_s), far, time_s))
    assert np.isnan(metrics_mouth.lag_ms(opening_at(time_s), np.full(200, 0.02), time_s))
    assert np.isnan(metrics_mouth.lag_ms(np.ones(1), np.ones(1), np.zeros(1)))


def test_pearson_leaves_out_what_is_unknown() -> None:
    a = np.arange(20.0)
    b = 3 * a + 1
    b[3] = np.nan
    assert metrics_mouth.pearson(a, b) == pytest.approx(1.0)
    assert metrics_mouth.pearson(a, -b) == pytest.approx(-1.0)
    assert np.isnan(metrics_mouth.pearson(a, np.full(20, 0.3)))
    assert np.isnan(metrics_mouth.pearson(a[:5], b[:5]))


def test_closures_are_balanced() -> None:
    real = np.array([0.0] * 2 + [0.05] * 8)
    always_open = np.full(10, 0.05)
    assert metrics_mouth.closure_accuracy(real, real) == 1.0
    assert metrics_mouth.closure_accuracy(real, always_open) == 0.5
    one_of_two = np.array([0.0, 0.02] + [0.05] * 8)
    assert metrics_mouth.closure_accuracy(real, one_of_two) == 0.75
    assert np.isnan(metrics_mouth.closure_accuracy(always_open, real))


def test_gradient_energy_is_a_slope_and_falls_with_blur() -> None:
    slope = np.repeat(np.tile(np.arange(60), (60, 1))[..., None], 3, -1).astype(np.uint8)
    assert metrics_mouth.gradient_energy(slope, (20, 20, 40, 40)) == pytest.approx(1.0)
    real = smooth()
    blurred = real.astype(np.float64)
    for axis in (0, 1):
        blurred = np.mean([np.roll(blurred, s, axis) for s in range(-4, 5)], axis=0)
    box = (50, 50, 150, 150)
    ratio = metrics_mouth.gradient_energy(
        blurred.astype(np.uint8), box
    ) / metrics_mouth.gradient_energy(real, box)
    assert 0.3 < ratio < 0.9


# Motion

CENTRES = np.stack(np.meshgrid(np.arange(60.0, 150, 15), np.arange(60.0, 150, 15)), -1).reshape(
    -1, 2
)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (0.1, -0.05), (1.5, 0.75), (-4.0, 6.0)])
def test_displacement_finds_a_known_shift(dx: float, dy: float) -> None:
    a, b = (metrics_motion.grey_levels(p) for p in (smooth(), smooth(dx, dy)))
    found = metrics_motion.displacement(a, b, CENTRES)
    assert found == pytest.approx((dx, dy), abs=0.01)


def test_a_change_of_light_is_no_displacement() -> None:
    brighter = (smooth().astype(np.int64) + 20).astype(np.uint8)
    a, b = (metrics_motion.grey_levels(p) for p in (smooth(), brighter))
    assert metrics_motion.displacement(a, b, CENTRES) == pytest.approx((0, 0), abs=0.002)


def test_nothing_to_follow_has_no_displacement() -> None:
    flat = metrics_motion.grey_levels(np.full((200, 200, 3), 90, np.uint8))
    assert np.isnan(metrics_motion.displacement(flat, flat, CENTRES)).all()
    textured = metrics_motion.grey_levels(smooth())
    assert np.isnan(metrics_motion.displacement(textured, textured, np.zeros((0, 2)))).all()


def test_jitter_is_what_steady_motion_has_not() -> None:
    time_s = np.arange(50) / FPS
    drift = np.stack((0.3 * np.arange(50.0), -0.1 * np.arange(50.0)), -1)
    assert metrics_motion.rms(metrics_motion.jerks(drift, time_s)) == pytest.approx(0, abs=1e-9)
    shaking = drift.copy()
    shaking[::2, 0] += 0.2  # +-0.1 around its mean: every frame is 0.2 from its neighbours' mean
    assert metrics_motion.rms(metrics_motion.jerks(shaking, time_s)) == pytest.approx(0.2)


def test_jitter_does_not_reach_over_missing_frames() -> None:
    time_s = np.concatenate((np.arange(10), np.arange(20, 30))) / FPS
    steps = np.zeros((20, 2))
    steps[10:] = 5.0
    assert metrics_motion.rms(metrics_motion.jerks(steps, time_s)) == 0.0
    assert np.isnan(metrics_motion.rms(metrics_motion.jerks(steps[:2], time_s[:2])))


def test_patches_lie_on_skin() -> None:
    points = np.zeros((478, 3))
    corners = metrics_motion.FOREHEAD + metrics_motion.NOSE_BRIDGE
    where = [(60, 20), (140, 20), (140, 60), (60, 60), (90, 80), (110, 80), (110, 120), (90, 120)]
    for index, xy in zip(corners, where, strict=True):
        points[index, :2] = xy
    regions = np.full((200, 200), int(Region.SKIN), np.uint8)
    everything = metrics_motion.patch_centres(points, regions)
    assert len(everything) == 5 * 9 + 6 * 3
    regions[:, :100] = int(Region.HAIR)
    half = metrics_motion.patch_centres(points, regions)
    assert 0 < len(half) < len(everything) and (half[:, 0] >= 100).all()
    assert len(metrics_motion.patch_centres(np.full((478, 3), np.nan), regions)) == 0


# Intervals


def test_the_bootstrap_covers_the_mean_and_repeats_itself() -> None:
    values = np.random.default_rng(0).normal(5.0, 1.0, 400)

    def statistics(rows: np.ndarray) -> dict[str, float]:
        return {"mean": float(values[rows].mean()), "never": float("nan")}

    found = metrics.block_bootstrap(statistics, 400, 10)
    low, high = found["mean"] or (0.0, 0.0)
    assert low < 5.0 < high and 0.1 < high - low < 0.25  # 2 x 1.645 / sqrt(400) = 0.16
    assert found["never"] is None
    assert found == metrics.block_bootstrap(statistics, 400, 10)
    assert metrics.block_bootstrap(statistics, 20, 10)["mean"] is None


def test_frames_that_err_together_widen_the_interval() -> None:
    values = np.repeat(np.random.default_rng(0).normal(5.0, 1.0, 40), 10)

    def width(block: int) -> float:
        found = metrics.block_bootstrap(lambda r: {"m": float(values[r].mean())}, 400, block)["m"]
        assert found is not None
        return found[1] - found[0]

    assert width(10) > 2 * width(1)
