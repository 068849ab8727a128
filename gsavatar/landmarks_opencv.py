"""MediaPipe's face detector and face mesh of 2021 on OpenCV, with their regions of interest.

Geometry as described in "BlazeFace" (Bazarevsky et al. 2019) and "Real-time Facial Surface
Geometry from Monocular Video on Mobile GPUs" (Kartynnik et al. 2019).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsavatar import assets

Float = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

DETECTOR_SIDE, MESH_SIDE = 128, 192
MIN_SCORE, MIN_PRESENCE, OVERLAP = 0.5, 0.5, 0.3
REGION_SCALE = 1.5
"""The mesh wants the face's box grown by half."""
RIGHT_EYE_OUTER, LEFT_EYE_OUTER = 33, 263
PASSES = 2
"""The first mesh comes from the detector's box, the second from the first mesh."""
EYES = {  # of these models none that fits in tells of gaze: irises stand between the lids
    468: (33, 133, 159, 145),
    473: (362, 263, 386, 374),
}


class FaceMesh:
    """``detect(picture)`` gives the 478 points of every face; iris points from the lids."""

    def __init__(self) -> None:
        import cv2

        def net(name: str) -> Any:
            path = str(assets.resolve(name))
            if hasattr(cv2.dnn, "ENGINE_CLASSIC"):  # the new engine mixes up the outputs
                return cv2.dnn.readNetFromTFLite(path, cv2.dnn.ENGINE_CLASSIC)
            return cv2.dnn.readNetFromTFLite(path)

        self._detector, self._mesh = net("face_detection"), net("face_landmark")
        self._anchors = anchors()

    def detect(self, picture: UInt8) -> list[Float]:
        """Points [478, 3] in pixels of every face of an RGB picture."""
        faces = []
        for keypoints, box in self._boxes(picture):
            right, left = keypoints[0], keypoints[1]
            region = _region(box[:2], box[2:], left - right)
            points: Float | None = None
            for _ in range(PASSES):
                points = self._points(picture, region)
                if points is None:
                    break
                region = _region_of(points)
            if points is not None:
                faces.append(_with_irises(points))
        return faces

    def _boxes(self, picture: UInt8) -> list[tuple[Float, Float]]:
        """Keypoints [6, 2] and (x, y, width, height) of every detection, in pixels."""
        import cv2

        height, width = picture.shape[:2]
        side = max(height, width)
        square = np.zeros((side, side, 3), np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = picture
        small = cv2.resize(square, (DETECTOR_SIDE, DETECTOR_SIDE), interpolation=cv2.INTER_AREA)
        self._detector.setInput(cv2.dnn.blobFromImage(small, 1 / 127.5, mean=(127.5,) * 3))
        outputs = self._detector.forward(self._detector.getUnconnectedOutLayersNames())
        by_width = {o.shape[-1]: o.reshape(-1, o.shape[-1]) for o in outputs}
        scores = 1.0 / (1.0 + np.exp(-np.clip(by_width[1][:, 0], -80, 80)))
        raw = by_width[16] / DETECTOR_SIDE
        centre = self._anchors + raw[:, :2]
        size = raw[:, 2:4]
        keypoints = raw[:, 4:].reshape(-1, 6, 2) + self._anchors[:, None]
        good = np.flatnonzero(scores > MIN_SCORE)
        boxes = np.concatenate((centre - size / 2, size), -1)[good] * side
        kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores[good].tolist(), MIN_SCORE, OVERLAP)
        shift = np.array([left, top], np.float32)
        found = []
        for i in np.asarray(kept, int).reshape(-1):
            x, y, w, h = boxes[i]
            box = np.array([x + w / 2 - left, y + h / 2 - top, w, h], np.float32)
            found.append((keypoints[good[i]].astype(np.float32) * side - shift, box))
        return found

    def _points(self, picture: UInt8, region: Float) -> Float | None:
        """Mesh points [468, 3] in a turned square region (2 x 3: region -> picture); None if the
        model sees no face there."""
        import cv2

        patch = cv2.warpAffine(
            picture, region, (MESH_SIDE, MESH_SIDE),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        self._mesh.setInput(cv2.dnn.blobFromImage(patch, 1 / 255.0))
        outputs = self._mesh.forward(self._mesh.getUnconnectedOutLayersNames())
        flat = {o.size: o.reshape(-1) for o in outputs}
        if 1.0 / (1.0 + np.exp(-float(flat[1][0]))) < MIN_PRESENCE:
            return None
        points = flat[1404].reshape(468, 3).astype(np.float32)
        scale = float(np.hypot(region[0, 0], region[1, 0]))
        placed = points[:, :2] @ region[:, :2].T + region[:, 2]
        return np.concatenate((placed, points[:, 2:] * scale), -1).astype(np.float32)


def anchors() -> Float:
    """Centres [896, 2] of the detector's anchors, 0-1: two per cell of 16 x 16, six of 8 x 8."""
    parts = []
    for cells, per_cell in ((16, 2), (8, 6)):
        at = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        y, x = np.meshgrid(at, at, indexing="ij")
        parts.append(np.repeat(np.stack((x, y), -1).reshape(-1, 2), per_cell, axis=0))
    return np.concatenate(parts)


def _region(centre: Float, size: Float, across: Float) -> Float:
    """Affine map [2, 3] from mesh pixels to the picture: a square, level with the eyes."""
    side = REGION_SCALE * float(max(size)) / MESH_SIDE
    x, y = across / max(float(np.hypot(*across)), 1e-6) * side
    linear = np.array([[x, -y], [y, x]], np.float32)
    origin = centre - linear @ np.full(2, MESH_SIDE / 2, np.float32)
    return np.concatenate((linear, origin[:, None]), -1).astype(np.float32)


def _region_of(points: Float) -> Float:
    """The region of a face whose points are known."""
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    across = points[LEFT_EYE_OUTER, :2] - points[RIGHT_EYE_OUTER, :2]
    return _region((low + high) / 2, high - low, across)


def _with_irises(points: Float) -> Float:
    """The 468 points followed by five per iris, placed between the lids."""
    full = np.zeros((478, 3), np.float32)
    full[:468] = points
    for first, corners in EYES.items():
        centre = points[list(corners)].mean(0)
        radius = 0.2 * float(np.linalg.norm(points[corners[0], :2] - points[corners[1], :2]))
        full[first : first + 5] = centre
        full[first + 1 : first + 5, :2] += radius * np.array([[1, 0], [0, -1], [-1, 0], [0, 1]])
    return full
