"""Pictures, labels and depth of the synthetic head by VTK, off screen, from any camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsavatar.datasets.synthetic_head import Head, Surface, label_colors, rotation
from gsavatar.datasets.synthetic_motion import Instant, in_room
from gsavatar.errors import InputError
from gsavatar.types import Region

Float = NDArray[np.float64]
UInt8 = NDArray[np.uint8]

SUPERSAMPLE = 2
FIELD_DEG, DISTANCE_M, LOOK_AT_Y = 20.0, 1.18, -0.035
NEAR_M, FAR_M = 0.3, 3.0
BACKDROP = ((0.50, 0.56, 0.60), (0.36, 0.42, 0.47))
SHINE = {"eyes": (0.6, 60), "teeth": (0.15, 30), "gums": (0.12, 20), "hair": (0.18, 12),
         "skin": (0.10, 14), "cloth": (0.0, 1), "glasses": (0.5, 40)}  # fmt: skip
"""Specular share and power of each surface."""
LIGHTS = (((-0.6, 0.8, 1.4), 0.72), ((1.0, 0.3, 1.0), 0.32), ((0.2, -0.3, 1.5), 0.10))
"""Place in metres and power of each light."""


@dataclass(frozen=True)
class View:
    """A camera that looks at the head: turned by ``yaw`` and ``pitch`` around it, in degrees."""

    size: int
    focal_px: float
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0

    @property
    def distance_m(self) -> float:
        """From the head to the camera, so that a head is as large whatever the focal length."""
        return DISTANCE_M * self.focal_px / focal_px(self.size)

    @property
    def position(self) -> Float:
        """Where the camera stands in the room."""
        turn = rotation(np.radians(self.yaw_deg), -np.radians(self.pitch_deg), 0.0)
        return np.asarray(turn @ [0, 0, self.distance_m] + [0, LOOK_AT_Y, 0])

    @property
    def world_to_cam(self) -> Float:
        """Room to OpenCV camera, [4, 4]."""
        turn = rotation(np.radians(self.yaw_deg), -np.radians(self.pitch_deg), 0.0)
        matrix = np.eye(4)
        matrix[:3, :3] = np.diag([1.0, -1.0, -1.0]) @ turn.T
        matrix[:3, 3] = -matrix[:3, :3] @ self.position
        return matrix

    @property
    def field_deg(self) -> float:
        """The vertical angle of view."""
        return float(2 * np.degrees(np.arctan(0.5 * self.size / self.focal_px)))


def focal_px(size: int) -> float:
    """The usual focal length in pixels of a square picture."""
    return float(0.5 * size / np.tan(np.radians(FIELD_DEG) / 2))


class Renderer:
    """Pictures of the head by VTK. Raises ``InputError`` if VTK is missing.

    ``light`` 0 is the usual set of lights, other numbers place and tint them at random.
    """

    def __init__(self, head: Head, view: View, light: int = 0) -> None:
        try:
            import vtkmodules.all as vtk
        except ImportError:
            raise InputError("vtk: the renderer is not installed; pip install vtk.") from None
        self._vtk, self.head, self.view = vtk, head, view
        self._beauty = vtk.vtkRenderer()
        self._beauty.SetBackground(*BACKDROP[0])
        self._beauty.SetBackground2(*BACKDROP[1])
        self._beauty.GradientBackgroundOn()
        self._labels = vtk.vtkRenderer()
        self._labels.SetBackground(0, 0, 0)
        self._meshes = [self._mesh(s) for s in head.surfaces]
        self._lights(light)
        for scene in (self._beauty, self._labels):
            self._aim(scene.GetActiveCamera())
        self._windows = [
            self._window(self._beauty, SUPERSAMPLE * view.size),
            self._window(self._labels, view.size),
        ]
        self._windows[1].SetMultiSamples(0)

    def _window(self, scene: Any, side: int) -> Any:
        window = self._vtk.vtkRenderWindow()
        window.SetOffScreenRendering(1)
        window.SetSize(side, side)
        window.AddRenderer(scene)
        return window

    def _aim(self, camera: Any) -> None:
        camera.SetPosition(*self.view.position)
        camera.SetFocalPoint(0, LOOK_AT_Y, 0)
        camera.SetViewUp(0, 1, 0)
        camera.SetViewAngle(self.view.field_deg)
        camera.SetClippingRange(NEAR_M, FAR_M)

    def _mesh(self, surface: Surface) -> Any:
        from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray

        vtk = self._vtk
        points = vtk.vtkPoints()
        points.SetData(numpy_to_vtk(surface.vertices, deep=True))
        cells = vtk.vtkCellArray()
        table = np.concatenate((np.full((len(surface.faces), 1), 3), surface.faces), 1)
        cells.SetCells(len(surface.faces), numpy_to_vtkIdTypeArray(table.ravel(), deep=True))
        labels = label_colors(surface)
        meshes = []
        for scene, colors in (
            (self._beauty, (surface.colors * 255).astype(np.uint8)),
            (self._labels, labels),
        ):
            mesh = vtk.vtkPolyData()
            mesh.SetPoints(points)
            mesh.SetPolys(cells)
            mesh.GetPointData().SetScalars(numpy_to_vtk(colors, deep=True))
            actor = vtk.vtkActor()
            mapper = vtk.vtkPolyDataMapper()
            if scene is self._beauty:
                smooth = vtk.vtkPolyDataNormals()
                smooth.SetInputData(mesh)
                smooth.SplittingOff()
                smooth.ConsistencyOff()
                mapper.SetInputConnection(smooth.GetOutputPort())
                look = actor.GetProperty()
                look.SetInterpolationToPhong()
                look.SetAmbient(0.22)
                look.SetDiffuse(0.85)
                look.SetSpecular(SHINE[surface.name][0])
                look.SetSpecularPower(SHINE[surface.name][1])
            else:
                mapper.SetInputData(mesh)
                actor.GetProperty().LightingOff()
            actor.SetMapper(mapper)
            scene.AddActor(actor)
            meshes.append(mesh)
        return surface, points, meshes

    def _lights(self, light: int) -> None:
        rng = np.random.default_rng([light, 5])
        for place, power in LIGHTS:
            own, tint, dim = np.array(place), np.ones(3), 1.0
            if light:
                own = own * rng.uniform(0.5, 1.5, 3) + rng.normal(0, 0.25, 3)
                dim = float(rng.uniform(0.75, 1.2))
                tint = np.array([1.0, rng.uniform(0.92, 1.0), rng.uniform(0.82, 1.0)])
            lamp = self._vtk.vtkLight()
            lamp.SetLightTypeToSceneLight()
            lamp.SetPosition(*own)
            lamp.SetFocalPoint(0, -0.02, 0)
            lamp.SetIntensity(power * dim)
            lamp.SetColor(*tint)
            self._beauty.AddLight(lamp)
        self._beauty.SetAmbient(1, 1, 1)

    def pose(self, now: Instant) -> None:
        """Moves every surface to where it is at a moment."""
        from vtkmodules.util.numpy_support import numpy_to_vtk

        model = self.head.posed(now.weights, (float(now.gaze[0]), float(now.gaze[1])))
        pose = now.head_pose
        for surface, points, meshes in self._meshes:
            if surface.name == "glasses":
                moved = surface.vertices @ pose[:3, :3].T + pose[:3, 3]
            elif surface.rows is None:
                moved = surface.vertices + 0.12 * pose[:3, 3]
            else:
                rest = self.head.vertices[surface.rows]
                moved = in_room(model[surface.rows] + surface.offset, rest, pose)
            points.SetData(numpy_to_vtk(moved, deep=True))
            points.Modified()
            for mesh in meshes:
                mesh.Modified()

    def picture(self, now: Instant) -> UInt8:
        """The picture at a moment, RGB [2 size, 2 size, 3], not yet reduced."""
        self.pose(now)
        return self._grab(0)

    def truth(self, now: Instant) -> tuple[UInt8, NDArray[np.float32]]:
        """Region labels [size, size] and depth z in metres [size, size], 0 where nothing is."""
        self.pose(now)
        colors = self._grab(1)
        part, lips, neck = (colors[..., i] for i in range(3))
        labels = part.copy()
        skin = part == int(Region.SKIN)
        labels[skin & (neck > 127)] = int(Region.NECK)
        labels[skin & (lips > 127)] = int(Region.LIPS)
        return labels, self._depth(part > 0)

    def _grab(self, window: int) -> UInt8:
        from vtkmodules.util.numpy_support import vtk_to_numpy

        self._windows[window].Render()
        grab = self._vtk.vtkWindowToImageFilter()
        grab.SetInput(self._windows[window])
        grab.ReadFrontBufferOff()
        grab.ShouldRerenderOff()
        grab.Update()
        out = grab.GetOutput()
        side = out.GetDimensions()[0]
        return np.asarray(
            vtk_to_numpy(out.GetPointData().GetScalars()).reshape(side, side, 3)[::-1]
        )

    def _depth(self, there: NDArray[np.bool_]) -> NDArray[np.float32]:
        from vtkmodules.util.numpy_support import vtk_to_numpy

        grab = self._vtk.vtkWindowToImageFilter()
        grab.SetInput(self._windows[1])
        grab.SetInputBufferTypeToZBuffer()
        grab.ReadFrontBufferOff()
        grab.ShouldRerenderOff()
        grab.Update()
        side = self.view.size
        flat = vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars())
        z = flat.reshape(side, side)[::-1].astype(np.float64)
        near, far = self._labels.GetActiveCamera().GetClippingRange()
        metres = near * far / (far - z * (far - near))
        return np.where(there, metres, 0.0).astype(np.float32)


def distorted(picture: Any, k1: float, *, nearest: bool = False) -> Any:
    """A square picture or label plane as a lens with radial distortion shows it.

    A point at distance r from the middle (1 at the side's middle) is seen at r (1 + k1 r^2).
    """
    if not k1:
        return picture
    import cv2

    side = len(picture)
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(axis, axis)
    seen = np.hypot(x, y)
    straight = seen.copy()
    for _ in range(8):
        straight = seen / (1 + k1 * straight**2)
    scale = straight / np.maximum(seen, 1e-9)
    columns, rows = (((a * scale + 1) / 2 * side - 0.5).astype(np.float32) for a in (x, y))
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    kept = picture if nearest else picture.astype(np.float32)
    return cv2.remap(kept, columns, rows, how, borderMode=cv2.BORDER_REPLICATE)


def reduced(large: Any) -> UInt8:
    """A supersampled picture brought to its size."""
    side = len(large) // SUPERSAMPLE
    split = large.reshape(side, SUPERSAMPLE, side, SUPERSAMPLE, 3).astype(np.float32)
    return np.asarray(split.mean((1, 3)).round().astype(np.uint8))


def with_grain(picture: UInt8, sigma: float, rng: np.random.Generator) -> UInt8:
    """The picture with a camera's noise of ``sigma`` units."""
    grain = rng.normal(0.0, sigma, picture.shape)
    return np.asarray(np.clip(picture + grain, 0, 255).round().astype(np.uint8))
