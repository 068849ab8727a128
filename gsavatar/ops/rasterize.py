"""Gaussians to a picture: projection, tiling and compositing, differentiable in every input.

One depth-sorted pass over all branches. Perspective EWA projection with 0.3 px^2 of screen blur
and opacity compensation; a Gaussian counts in a pixel where its alpha is at least 1/255 and the
transmittance in front of it at least 1e-4. The mathematics is in ``cuda_ext/include``.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gsavatar.ops import batch, check, cuda_backend, gsplat_backend, native
from gsavatar.ops.gsplat_backend import rasterize_gsplat
from gsavatar.ops.rasterize_ref import rasterize_ref
from gsavatar.ops.shortcut import shortcut
from gsavatar.types import Rendering

BACKENDS = ("auto", "native", "gsplat", "torch")
REFERENCE_VALUES = 1 << 27
"""Gaussians times pixels that the reference may stand in for: some gigabytes, some seconds."""

OWN_AXES = {
    "means": 2, "quats": 2, "scales": 2, "opacities": 1, "colors": 2, "world_to_cam": 2, "K": 2,
    "background": 3, "screen_probe": 2, "extra_channels": 2,
}  # fmt: skip
"""Axes of an input that belong to one picture; those before them are batch axes."""


def rasterize(
    means: Tensor,  # [*B, N, 3]
    quats: Tensor,  # [*B, N, 4]
    scales: Tensor,  # [*B, N, 3]
    opacities: Tensor,  # [*B, N]
    colors: Tensor,  # [*B, N, 3]
    branch: Tensor,  # [N] int32
    world_to_cam: Tensor,  # [*B, 4, 4]
    K: Tensor,  # [*B, 3, 3]
    width: int,
    height: int,
    background: Tensor,  # [3], [H, W, 3] or [*B, H, W, 3]
    *,
    screen_probe: Tensor | None = None,  # [*B, N, 2]
    extra_channels: Tensor | None = None,  # [*B, N, C]
    backend: str = "auto",
) -> Rendering:
    """The picture [*B, H, W] of a cloud from a camera, background composited.

    Batch axes ``*B`` are the same wherever they are; inputs without them are shared by all.
    means and scales in metres, quats wxyz of any length, opacities in 0..1, colors sRGB, branch
    0..2 (``types.Branch``), K in pixels without skew. ``depth`` is the weighted sum of z: divided
    by ``alpha`` it is the mean depth. ``branch_alpha`` sums to ``alpha``. No Gaussians give the
    background. All float inputs get gradients from all four outputs; that of ``screen_probe``
    (pixels added to the projected means) is the gradient by the screen position.
    ``extra_channels`` (features, labels, normals) are composited as colours are, over zero, into
    ``extras``, with the projection, the order and the tile lists that the colours have.

    Raises ``ValueError`` for a malformed argument (shape, dtype, device, NaN, branch out of range,
    empty picture) and ``native.NativeUnavailable`` when the backend asked for is not there.
    """
    inputs = {
        "means": means, "quats": quats, "scales": scales, "opacities": opacities,
        "colors": colors, "world_to_cam": world_to_cam, "K": K, "background": background,
        "screen_probe": screen_probe, "extra_channels": extra_channels,
    }  # fmt: skip
    axes = batch.axes_of(inputs, OWN_AXES)
    if axes:
        fixed: Any = {"branch": branch, "width": width, "height": height, "backend": backend}
        views = [rasterize(**e, **fixed) for e in batch.elements(inputs, OWN_AXES, axes)]
        return _joined(views, axes)
    check.raster_arguments(
        means, quats, scales, opacities, colors, branch, world_to_cam, K, width, height,
        background, screen_probe, extra_channels,
    )  # fmt: skip
    cloud = (means, quats, scales, opacities, colors, branch, world_to_cam, K, width, height)
    if extra_channels is None or extra_channels.shape[1] > 0:
        return _drawn(cloud, background, screen_probe, extra_channels, backend)
    rendering = _drawn(cloud, background, screen_probe, None, backend)
    return replace(rendering, extras=rendering.rgb[..., :0])


def _joined(views: list[Rendering], axes: tuple[int, ...]) -> Rendering:
    """Pictures of one size as one of batch axes ``axes``."""
    rgb, alpha, branch_alpha, depth = (
        batch.joined([getattr(v, name) for v in views], axes)
        for name in ("rgb", "alpha", "branch_alpha", "depth")
    )
    extras = [v.extras for v in views if v.extras is not None]
    return Rendering(
        rgb, alpha, branch_alpha, depth, batch.joined(extras, axes) if extras else None
    )


def _drawn(
    cloud: tuple[Any, ...], background: Tensor, screen_probe: Tensor | None,
    channels: Tensor | None, backend: str,
) -> Rendering:  # fmt: skip
    """The picture of checked arguments by the backend that serves them."""
    means = cloud[0]
    chosen = choose_backend(means, backend)
    if chosen == "native":
        check.dtype("means", means, torch.float32)
        op = _rasterize_cpu if means.device.type == "cpu" else cuda_backend.rasterize_op
        rgb, alpha, branch_alpha, depth, extras, *_ = op(*cloud, background, screen_probe, channels)
        return Rendering(
            rgb, alpha[..., None], branch_alpha, depth[..., None],
            None if channels is None else extras,
        )  # fmt: skip
    draw: Any = rasterize_gsplat if chosen == "gsplat" else rasterize_ref
    if chosen == "torch":
        if backend == "auto":
            _refuse_large(means, cloud[8] * cloud[9])
        _refuse_bad_values(*cloud[:8], background, screen_probe, channels)
    return draw(*cloud, background, screen_probe=screen_probe, extra_channels=channels)


def choose_backend(means: Tensor, backend: str) -> str:
    """The backend that serves ``backend`` for tensors like ``means``: native where it can run,
    then gsplat, then torch. Raises ``ValueError`` for an unknown name."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    if backend != "auto":
        return backend
    if means.device.type == "cpu":
        return "native" if native.present() else "torch"
    if cuda_backend.why_not() is None:
        return "native"
    return "gsplat" if gsplat_backend.why_not() is None else "torch"


def _refuse_large(means: Tensor, pixels: int) -> None:
    """Raises ``NativeUnavailable`` for what would fill the memory: the reference holds several
    values for each Gaussian at each pixel."""
    if means.device.type == "cpu" and len(means) * pixels > REFERENCE_VALUES:
        native.cpu()


def _refuse_bad_values(*tensors: Tensor | None) -> None:
    """Raises ``ValueError`` for NaN, infinity or an unknown branch, as the kernels do."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError("an argument of rasterize holds NaN or infinity")
        if not tensor.is_floating_point() and ((tensor < 0) | (tensor > 2)).any():
            raise ValueError("branch holds a value outside 0..2")


def _tiles(width: int, height: int) -> int:
    return -(-width // native.TILE) * -(-height // native.TILE)


def _ints(*size: int) -> Tensor:
    return torch.empty(*size, dtype=torch.int32)


def scene_of(tensors: dict[str, Tensor | None], width: int, height: int) -> Any:
    """The C struct of one scene; the caller keeps the tensors alive during the call."""
    background, means = tensors["background"], tensors["means"]
    assert background is not None and means is not None
    return native.Raster(
        count=means.shape[0],
        width=width,
        height=height,
        background_is_image=int(background.dim() == 3),
        threads=native.threads(),
        **{name: native.pointer(tensor) for name, tensor in tensors.items()},
    )


def project_and_composite(
    inputs: dict[str, Tensor | None], width: int, height: int, parts: Any = None
) -> tuple[Tensor, ...]:
    """What ``rasterize_op`` returns; ``parts`` is an array of ``native.Part`` that move the
    cloud, which then may have ``sh`` in place of ``colors``."""
    held = {name: None if t is None else t.contiguous() for name, t in inputs.items()}
    means = held["means"]
    assert means is not None
    count, tiles = means.shape[0], _tiles(width, height)
    records, pair_start = torch.empty(count, native.RECORD), _ints(count + 1)
    held |= {"records": records, "pair_start": pair_start}
    library = native.cpu()
    scene = scene_of(held, width, height)
    scratch = _ints((native.COVER + 5) * count + scene.threads * tiles)
    scene.cover = scratch.data_ptr()
    scene.order = scene.cover + 4 * native.COVER * count
    scene.scratch = scene.order + 4 * count
    scene.tile_counts = scene.scratch + 16 * count
    sh = held.get("sh")
    if sh is not None:
        scene.terms = sh.shape[1]
    if parts is not None:
        scene.parts, scene.part_count = ctypes.addressof(parts), len(parts)
    check.raise_for(library.gsa_project(scene))
    check.pairs_fit(scene.pairs, native.memory())
    tile_start, pairs = _ints(tiles + 2), _ints(2, scene.pairs, 2)
    rgb, branch_alpha = torch.empty(height, width, 3), torch.empty(height, width, 3)
    alpha, depth = torch.empty(height, width), torch.empty(height, width)
    scene.tile_start, scene.list = tile_start.data_ptr(), pairs.data_ptr()
    scene.blocks = pairs.data_ptr() + 8 * scene.pairs  # int32 [E, 2] come first
    scene.rgb, scene.branch_alpha = rgb.data_ptr(), branch_alpha.data_ptr()
    scene.alpha, scene.depth = alpha.data_ptr(), depth.data_ptr()
    check.raise_for(library.gsa_composite(scene))
    channels = held.get("channels")
    extras = torch.empty(0 if channels is None else (height, width, channels.shape[1]))
    if channels is not None:
        scene.extras, scene.channel_count = extras.data_ptr(), channels.shape[1]
        check.raise_for(library.gsa_channels(scene))
    return rgb, alpha, branch_alpha, depth, extras, records, pair_start, tile_start, pairs


def _forward(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    branch: Tensor,
    world_to_cam: Tensor,
    K: Tensor,
    width: int,
    height: int,
    background: Tensor,
    screen_probe: Tensor | None,
    channels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """rgb, alpha, branch_alpha, depth, extras (empty without), then what backward reads again.

    That is the projected records [N, 16], first slot per Gaussian [N + 1], first pair per tile
    [T + 2] and the pairs with the blocks they reach [2, E, 2].
    """
    inputs: dict[str, Tensor | None] = {
        "means": means, "quats": quats, "scales": scales, "opacities": opacities,
        "colors": colors, "world_to_cam": world_to_cam, "K": K, "background": background,
        "screen_probe": screen_probe, "branch": branch, "channels": channels,
    }  # fmt: skip
    return project_and_composite(inputs, width, height)  # type: ignore[return-value]


rasterize_op = torch.library.custom_op("gsavatar::rasterize", _forward, mutates_args=())


@rasterize_op.register_fake
def _(means, quats, scales, opacities, colors, branch, world_to_cam, K, width, height,
      background, screen_probe, channels=None):  # fmt: skip
    count, tiles = means.shape[0], _tiles(width, height)
    pairs = torch.library.get_ctx().new_dynamic_size()
    return (
        means.new_empty(height, width, 3), means.new_empty(height, width),
        means.new_empty(height, width, 3), means.new_empty(height, width),
        means.new_empty(0 if channels is None else (height, width, channels.shape[1])),
        means.new_empty(count, native.RECORD), branch.new_empty(count + 1),
        branch.new_empty(tiles + 2), branch.new_empty(2, pairs, 2),
    )  # fmt: skip


def _gradients(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    branch: Tensor,
    world_to_cam: Tensor,
    K: Tensor,
    width: int,
    height: int,
    background: Tensor,
    saved: list[Tensor],
    v_rgb: Tensor | None,
    v_alpha: Tensor | None,
    v_branch_alpha: Tensor | None,
    v_depth: Tensor | None,
    needs_background: bool,
    v_extras: Tensor | None = None,
    channels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of means, quats, scales, opacities, colors, world_to_cam, K, background, probe
    and channels.

    ``saved`` is what ``rasterize_op`` returned. Those of the background, unless asked for, and of
    the channels, without ``v_extras``, are empty.
    """
    rgb, alpha, branch_alpha, depth, extras, records, pair_start, tile_start, pairs = saved
    inputs = {
        "means": means, "quats": quats, "scales": scales, "opacities": opacities,
        "colors": colors, "world_to_cam": world_to_cam, "K": K, "background": background,
        "branch": branch, "channels": channels,
    }  # fmt: skip
    held = {name: None if t is None else t.contiguous() for name, t in inputs.items()}
    held |= {
        "records": records, "pair_start": pair_start, "tile_start": tile_start, "list": pairs,
        "rgb": rgb, "alpha": alpha, "branch_alpha": branch_alpha, "depth": depth, "extras": extras,
    }  # fmt: skip
    scene = scene_of(held, width, height)
    scene.blocks = pairs[1].data_ptr()
    count = means.shape[0]
    given = {"rgb": v_rgb, "alpha": v_alpha, "branch_alpha": v_branch_alpha, "depth": v_depth,
             "extras": v_extras}  # fmt: skip
    cotangents = {name: None if t is None else t.contiguous() for name, t in given.items()}
    results = _room_for_gradients(
        count, background if needs_background else None, None if v_extras is None else channels
    )
    slots = torch.empty(pairs.shape[1], native.MOMENTS)
    channel_slots = torch.empty(0 if v_extras is None else (pairs.shape[1], native.CHANNELS))
    partial = torch.empty(16 * (count // native.CHUNK + 1) + 3 * _tiles(width, height))
    grad = native.RasterGrad()
    scratch = {"slots": slots, "partial": partial, "channel_slots": channel_slots}
    for name, tensor in (cotangents | scratch | results).items():
        setattr(grad, name, native.pointer(tensor))
    if not needs_background:
        grad.background = None
    if channels is not None:
        scene.channel_count = channels.shape[1]
    check.raise_for(native.cpu().gsa_raster_bwd(scene, grad))
    return tuple(results.values())  # type: ignore[return-value]


def _room_for_gradients(
    count: int, background: Tensor | None, channels: Tensor | None
) -> dict[str, Tensor]:
    """Where the gradients of ``count`` Gaussians go; empty for what is None."""
    return {
        "means": torch.empty(count, 3), "quats": torch.empty(count, 4),
        "scales": torch.empty(count, 3), "opacities": torch.empty(count),
        "colors": torch.empty(count, 3), "world_to_cam": torch.empty(4, 4),
        "K": torch.empty(3, 3),
        "background": torch.empty(0 if background is None else background.shape),
        "screen_probe": torch.empty(count, 2),
        "channels": torch.empty(0 if channels is None else channels.shape),
    }  # fmt: skip


rasterize_bwd_op = torch.library.custom_op("gsavatar::rasterize_bwd", _gradients, mutates_args=())


@rasterize_bwd_op.register_fake
def _(means, quats, scales, opacities, colors, branch, world_to_cam, K, width, height,
      background, saved, v_rgb, v_alpha, v_branch_alpha, v_depth, needs_background,
      v_extras=None, channels=None):  # fmt: skip
    empty_like = (means, quats, scales, opacities, colors, world_to_cam, K)
    back = torch.empty_like(background) if needs_background else background.new_empty(0)
    return (*(t.new_empty(t.shape) for t in empty_like), back, means.new_empty(means.shape[0], 2),
            means.new_empty(0 if v_extras is None else channels.shape))  # fmt: skip


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, width, height, background, probe, channels = inputs
    ctx.set_materialize_grads(False)
    ctx.size, ctx.has_probe = (width, height), probe is not None
    ctx.save_for_backward(*tensors, background, channels, *output)


def _backward(
    ctx: Any,
    v_rgb: Tensor | None,
    v_alpha: Tensor | None,
    v_branch_alpha: Tensor | None,
    v_depth: Tensor | None,
    v_extras: Tensor | None,
    *_: Any,
    gradients: Callable[..., Any] = rasterize_bwd_op,
) -> tuple[Any, ...]:
    *tensors, background, channels = ctx.saved_tensors[:10]
    saved = list(ctx.saved_tensors[10:])
    needs_background = ctx.needs_input_grad[10]
    v_extras = None if channels is None else v_extras
    *grads, v_background, v_probe, v_channels = gradients(
        *tensors, *ctx.size, background, saved, v_rgb, v_alpha, v_branch_alpha, v_depth,
        needs_background, v_extras, channels,
    )  # fmt: skip
    means, quats, scales, opacities, colors, world_to_cam, K = grads
    return (
        means, quats, scales, opacities, colors, None, world_to_cam, K, None, None,
        v_background if needs_background else None, v_probe if ctx.has_probe else None,
        None if v_extras is None else v_channels,
    )  # fmt: skip


def _gradients_once(*arguments: Any) -> Any:
    """The gradients by the short way, unless theirs are wanted, which the op refuses."""
    return rasterize_bwd_op(*arguments) if torch.is_grad_enabled() else _gradients(*arguments)


rasterize_op.register_autograd(_backward, setup_context=_setup)
_rasterize_cpu = shortcut(
    rasterize_op,
    _forward,
    _setup,
    functools.partial(_backward, gradients=_gradients_once),
    visible=5,
)
