"""Pictures of the synthetic head: Mitsuba for beauty, VTK for speed. Both are optional packages."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gsavatar.datasets.synthetic_head import Head, Surface, rotation, vertex_normals
from gsavatar.errors import InputError

Float = NDArray[np.float64]
Map = NDArray[np.float32]

FIELD_DEG, DISTANCE_M, LOOK_AT_Y = 18.5, 1.18, -0.032
WALL_TOP, WALL_BOTTOM = (0.60, 0.63, 0.63), (0.45, 0.48, 0.49)
SAMPLES = 16
"""Rays per pixel of Mitsuba; 16 and 64 give the same bits every time, most others do not."""
SUPERSAMPLE = 2
LIGHT_TO_SRGB_KNEE = 0.0031308

MATTER = {
    # name: roughness, specular, clearcoat
    "skin": (0.46, 0.42, 0.0), "hair": (0.38, 0.35, 0.0), "shirt": (0.9, 0.1, 0.0),
    "body": (0.9, 0.1, 0.0), "throat": (0.4, 0.4, 0.0), "sockets": (0.3, 0.5, 0.0),
    "gums": (0.22, 0.5, 0.0), "teeth": (0.18, 0.5, 0.3), "eye": (0.06, 0.6, 1.0),
    "lashes": (0.8, 0.1, 0.0),
}  # fmt: skip


class Renderer(Protocol):
    """Draws a head's posed vertices, seen by one fixed camera."""

    def picture(self, model: Float, pose: Float, torso: Float, seed: int) -> NDArray[np.uint8]:
        """uint8 RGB [size, size, 3] of ``Head.posed`` vertices under a head pose [4, 4]."""


def create(name: str, head: Head, size: int, yaw_deg: float, pitch_deg: float) -> Renderer:
    """The renderer ``mitsuba`` or ``vtk``. Raises ``InputError`` if its package is missing."""
    kinds = {"mitsuba": Mitsuba, "vtk": Vtk}
    if name not in kinds:
        raise InputError(f"renderer {name}: choose one of {', '.join(kinds)}.")
    return kinds[name](head, size, yaw_deg, pitch_deg)


def camera_position(yaw_deg: float, pitch_deg: float) -> Float:
    """Where the camera stands, in the room; it looks at (0, LOOK_AT_Y, 0)."""
    turn = rotation(np.radians(yaw_deg), -np.radians(pitch_deg), 0.0)
    return np.asarray(turn @ [0.0, 0.0, DISTANCE_M] + [0.0, LOOK_AT_Y, 0.0])


def room_to_camera(yaw_deg: float, pitch_deg: float) -> Float:
    """The OpenCV camera, [4, 4]."""
    axes = rotation(np.radians(yaw_deg), -np.radians(pitch_deg), 0.0) @ np.diag([1.0, -1.0, -1.0])
    matrix = np.eye(4)
    matrix[:3, :3] = axes.T
    matrix[:3, 3] = -axes.T @ camera_position(yaw_deg, pitch_deg)
    return matrix


def focal_px(size: int) -> float:
    """Focal length in pixels of a square picture."""
    return float(0.5 * size / np.tan(np.radians(FIELD_DEG) / 2))


def wall(size: int) -> Map:
    """The softly graded wall behind the head, sRGB [size, size, 3]."""
    y, x = np.meshgrid(*(2 * [np.linspace(0, 1, size)]), indexing="ij")
    t = np.clip(0.75 * y + 0.35 * np.abs(x - 0.35), 0, 1)[..., None]
    return np.asarray((1 - t) * np.array(WALL_TOP) + t * np.array(WALL_BOTTOM), np.float32)


def to_linear(values: Any) -> Any:
    """Linear light of sRGB values."""
    v = np.asarray(values)
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def to_srgb(values: Map) -> Map:
    """sRGB of linear light, highlights rolled off softly."""
    v = np.clip(values, 0, None)
    v = np.where(v > 0.7, 0.7 + 0.3 * (1 - np.exp(-(v - 0.7) / 0.3)), v)
    low = v <= LIGHT_TO_SRGB_KNEE
    return np.where(low, 12.92 * v, 1.055 * np.maximum(v, 1e-9) ** (1 / 2.4) - 0.055)


def matter(name: str) -> tuple[float, float, float]:
    """Roughness, specular and clearcoat of a surface."""
    return next(value for key, value in MATTER.items() if name.startswith(key))


def _normals(head: Head, surface: Surface, vertices: Float) -> Float:
    """Smooth normals, without a crease where a surface's texture has a seam."""
    if surface.rows is None:
        return vertex_normals(vertices, surface.faces)
    used, same = np.unique(surface.rows, return_inverse=True)
    first = np.zeros((len(used), 3))
    first[same] = vertices
    return vertex_normals(first, same[surface.faces])[same]


class Mitsuba:
    """Path-traced pictures with soft shadows. Raises ``InputError`` if Mitsuba is missing."""

    def __init__(self, head: Head, size: int, yaw_deg: float, pitch_deg: float) -> None:
        try:
            import mitsuba as mi
        except ImportError:
            raise InputError(
                "mitsuba: the renderer is not installed; pip install mitsuba (and apt install "
                "libllvm19), or use --renderer vtk."
            ) from None
        mi.set_variant("llvm_ad_rgb")
        self._mi, self._head = mi, head
        self._wall = wall(size)
        target = [0.0, LOOK_AT_Y, 0.0]
        place = camera_position(yaw_deg, pitch_deg)
        look = mi.ScalarTransform4f().look_at(place.tolist(), target, [0, 1, 0])
        scene: dict[str, Any] = {
            "type": "scene",
            "integrator": {"type": "path", "max_depth": 3, "hide_emitters": True},
            "sensor": {
                "type": "perspective", "fov": FIELD_DEG, "to_world": look,
                "film": {"type": "hdrfilm", "width": size, "height": size,
                         "pixel_format": "rgba", "rfilter": {"type": "box"}},
                "sampler": {"type": "multijitter", "sample_count": SAMPLES},
            },
            "sky": {"type": "constant", "radiance": {"type": "rgb", "value": [0.30, 0.31, 0.33]}},
            "key": self._lamp((-0.55, 0.55, 1.15), 0.55, (5.2, 4.9, 4.5)),
            "rim": self._lamp((0.85, 0.45, -0.35), 0.35, (5.0, 5.2, 5.6)),
        }  # fmt: skip
        for surface in head.surfaces:
            scene[surface.name] = self._mesh(surface)
        self._scene = mi.load_dict(scene)
        self._params = mi.traverse(self._scene)

    def _lamp(
        self, place: tuple[float, float, float], side: float, power: tuple[float, float, float]
    ) -> dict[str, Any]:
        t = self._mi.ScalarTransform4f()
        return {
            "type": "rectangle",
            "to_world": t.look_at(list(place), [0, -0.02, 0.03], [0, 1, 0]) @ t.scale(side / 2),
            "emitter": {"type": "area", "radiance": {"type": "rgb", "value": list(power)}},
        }

    def _bsdf(self, surface: Surface) -> dict[str, Any]:
        mi = self._mi
        rough, specular, coat = matter(surface.name)
        color: dict[str, Any] = {"type": "mesh_attribute", "name": "vertex_color"}
        if surface.texture is not None:
            color = {"type": "bitmap", "bitmap": mi.Bitmap(_bytes(surface.texture[..., :3]))}
        bsdf: dict[str, Any] = {
            "type": "principled", "base_color": color, "roughness": rough, "specular": specular,
            "clearcoat": coat, "clearcoat_gloss": 0.95,
        }  # fmt: skip
        if surface.relief is not None:
            height = mi.Bitmap(surface.relief[..., None].astype(np.float32))
            bsdf = {"type": "bumpmap", "arbitrary": {"type": "bitmap", "raw": True, "bitmap": height},
                    "scale": RELIEF, "bsdf": bsdf}  # fmt: skip
        bsdf = {"type": "twosided", "bsdf": bsdf}
        if surface.texture is not None and surface.texture.shape[2] == 4:
            alpha = mi.Bitmap(_bytes(surface.texture[..., 3:]))
            bsdf = {"type": "mask", "bsdf": bsdf,
                    "opacity": {"type": "bitmap", "raw": True, "bitmap": alpha}}  # fmt: skip
        return bsdf

    def _mesh(self, surface: Surface) -> Any:
        mi = self._mi
        props = mi.Properties()
        props["bsdf"] = mi.load_dict(self._bsdf(surface))
        mesh = mi.Mesh(
            surface.name, len(surface.vertices), len(surface.faces), props=props,
            has_vertex_normals=True, has_vertex_texcoords=surface.uv is not None,
        )  # fmt: skip
        if surface.colors is not None:
            flat = to_linear(surface.colors).astype(np.float32).ravel()
            mesh.add_attribute("vertex_color", 3, flat)
        params = mi.traverse(mesh)
        params["faces"] = surface.faces.astype(np.uint32).ravel()
        params["vertex_positions"] = surface.vertices.astype(np.float32).ravel()
        if surface.uv is not None:
            params["vertex_texcoords"] = surface.uv.astype(np.float32).ravel()
        params.update()
        return mesh

    def picture(self, model: Float, pose: Float, torso: Float, seed: int) -> NDArray[np.uint8]:
        """uint8 RGB [size, size, 3] of ``Head.posed`` vertices under a head pose [4, 4]."""
        placed = {s.name: self._head.placed(s, model, pose, torso) for s in self._head.surfaces}
        for name, vertices in placed.items():
            self._params[f"{name}.vertex_positions"] = vertices.astype(np.float32).ravel()
        self._params.update()
        # Mitsuba has just made normals of its own, with a crease at every texture seam.
        for surface in self._head.surfaces:
            normals = _normals(self._head, surface, placed[surface.name])
            self._params[f"{surface.name}.vertex_normals"] = normals.astype(np.float32).ravel()
        self._params.update()
        rgba = np.array(self._mi.render(self._scene, spp=SAMPLES, seed=seed))
        alpha = np.clip(rgba[..., 3:], 0, 1)
        light = rgba[..., :3] + (1 - alpha) * to_linear(self._wall)
        return np.asarray((255 * np.clip(to_srgb(light), 0, 1)).round().astype(np.uint8))


RELIEF = 0.02
"""Height of the skin's fine structure, in the bump map's own unit."""


def _bytes(picture: Map) -> NDArray[np.uint8]:
    """8-bit of a 0-1 picture."""
    return np.asarray((255 * np.clip(picture, 0, 1)).round().astype(np.uint8))
