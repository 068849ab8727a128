"""What works on this machine: one line per finding, and for every problem one line of cure."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path

from gsavatar import __version__
from gsavatar.errors import InputError, first_line
from gsavatar.findings import Finding, State, table

__all__ = ["Finding", "State", "examine", "table", "usable"]

REQUIRED = {
    "torch": "torch", "numpy": "numpy", "scipy": "scipy", "opencv-python-headless": "cv2",
    "mediapipe": "mediapipe", "tyro": "tyro", "viser": "viser", "safetensors": "safetensors",
    "av": "av", "soundfile": "soundfile", "soxr": "soxr", "onnxruntime": "onnxruntime",
    "rich": "rich",
}  # fmt: skip
"""Distribution and module name of everything the main job needs."""

OPTIONAL = ("gsplat", "nerfacc", "lpips")
"""Distribution and the extra that brings it."""


def examine() -> list[Finding]:
    """Everything that decides whether and how well the main job runs here."""
    findings = [_system(), *(_package(d, m) for d, m in REQUIRED.items())]
    if any(f.state is State.BAD for f in findings):
        return findings  # what follows would only repeat the missing package
    return [*findings, *_kernels(), _picture(), *_gpu(), *_optional(), *_models()]


def usable(findings: list[Finding]) -> bool:
    """Whether the main job runs here."""
    return all(f.state is not State.BAD for f in findings)


def _system() -> Finding:
    text = (
        f"gsavatar {__version__}, Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} cores"
    )
    return Finding("system", State.GOOD, text)


def _package(distribution: str, module: str) -> Finding:
    """Whether a required package is there and can be imported."""
    try:
        version = importlib.metadata.version(distribution)
        importlib.import_module(module)
    except importlib.metadata.PackageNotFoundError:
        return Finding(distribution, State.BAD, "not installed", f"pip install {distribution}")
    except Exception as error:
        reason = f"does not import: {first_line(error)}"
        return Finding(
            distribution, State.BAD, reason, f"pip install --force-reinstall {distribution}"
        )
    return Finding(distribution, State.GOOD, version)


def _kernels() -> list[Finding]:
    """The native rasteriser in use; without it the reference in torch draws a few Gaussians."""
    from gsavatar import ops

    facts = ops.available()
    why: dict[str, str] = facts["why"]
    if facts["native"] is None:
        return [
            Finding(
                "kernels",
                State.BAD,
                f"no avatars without them: {why.get('native', 'the libraries were not built')}",
                "install a C++ compiler, then: pip install --force-reinstall --no-deps gsavatar",
            )
        ]
    built = ", ".join(facts["libraries"])
    text = (
        f"{facts['native']}, {facts['threads']} threads (built: {built}; CPU: {facts['machine']})"
    )
    if facts["native"] != facts["machine"]:
        return [Finding("kernels", State.NOTE, text, "unset GSAVATAR_ISA, or install again")]
    if not facts["multithreaded"] and (os.cpu_count() or 1) > 1:
        return [Finding("kernels", State.NOTE, f"{text}, on one core only", "build with g++")]
    return [Finding("kernels", State.GOOD, text)]


def _picture() -> Finding:
    """Renders one small Gaussian: the shortest proof that the CPU path works."""
    import torch

    from gsavatar import ops

    try:
        seen = ops.rasterize(
            torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
            torch.full((1, 3), 0.1), torch.tensor([0.9]), torch.ones(1, 3),
            torch.zeros(1, dtype=torch.int32), torch.eye(4),
            torch.tensor([[32.0, 0.0, 16.0], [0.0, 32.0, 16.0], [0.0, 0.0, 1.0]]),
            32, 32, torch.zeros(3),
        )  # fmt: skip
    except Exception as error:
        return Finding(
            "picture", State.BAD, f"cannot render: {first_line(error)}",
            "set GSAVATAR_ISA=base, or install gsavatar again",
        )  # fmt: skip
    centre, corner = float(seen.rgb[16, 16].mean()), float(seen.rgb[0, 0].mean())
    if centre > 0.5 and corner < 0.1:
        return Finding("picture", State.GOOD, "a test picture renders correctly on the CPU")
    return Finding(
        "picture", State.BAD, f"a test picture is wrong (centre {centre:.2f}, corner {corner:.2f})",
        "set GSAVATAR_ISA=base, or install gsavatar again",
    )  # fmt: skip


def _gpu() -> list[Finding]:
    import torch

    from gsavatar import ops

    facts = ops.available()
    if facts["cuda"]:
        text = f"{torch.cuda.get_device_name(0)}, used by fit --device cuda"
        return [Finding("CUDA", State.GOOD, text)]
    why = facts["why"].get("cuda", "not built")
    return [Finding("CUDA", State.NOTE, f"not used: {why}; everything runs on the CPU")]


def _optional() -> list[Finding]:
    """Packages that make things faster or measure more; none is needed."""
    from gsavatar import ops

    findings = []
    for distribution in OPTIONAL:
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            cure = f"pip install {distribution}"
            findings.append(Finding(distribution, State.NOTE, "not installed (optional)", cure))
            continue
        unused = ops.available()["why"].get(distribution)
        if unused is None:
            findings.append(Finding(distribution, State.GOOD, version))
        else:
            findings.append(Finding(distribution, State.NOTE, f"{version}, not used: {unused}"))
    return [*findings, _planes()]


def _planes() -> Finding:
    """Who reads the planes of talkinggaussian's field on a CUDA device."""
    from gsavatar.fields_planes import CHOICE, reader

    there = importlib.util.find_spec("tinycudann") is not None
    try:
        chosen = reader()
    except InputError as problem:
        return Finding("tinycudann", State.BAD, str(problem), f"unset {CHOICE}")
    if chosen == "torch":
        there_too = f"installed, not used unless {CHOICE}=tinycudann" if there else "not installed"
        text = f"{there_too}: torch reads the planes of talkinggaussian"
        return Finding("tinycudann", State.NOTE, text)
    if there:
        return Finding(
            "tinycudann", State.GOOD, "reads the planes of talkinggaussian on a CUDA device"
        )
    return Finding("tinycudann", State.BAD, f"not installed, named by {CHOICE}", f"unset {CHOICE}")


def _placed(name: str) -> str:
    """How a file gets where it is looked for."""
    from gsavatar import assets

    asset = assets.table()[name]
    put = f"put {asset.file} into {assets.cache_folder()} or GSAVATAR_ASSETS"
    return f"gsavatar assets --fetch, or get {asset.url} and {put}" if asset.url else put


def _models() -> list[Finding]:
    """Model files, and which way of finding landmarks and of hearing speech follows."""
    from gsavatar import assets

    try:
        assets.status()
    except InputError as error:  # a file with another content stands in the way
        return [Finding("assets", State.BAD, str(error), "delete that file")]
    best = assets.available("face_landmarker")
    spare = all(assets.available(n) for n in ("face_detection", "face_landmark"))
    cure = "gsavatar assets --fetch"
    folder = os.environ.get("GSAVATAR_ASSETS")
    if best:
        landmarks = Finding("landmarks", State.GOOD, "MediaPipe face landmarker, 52 blendshapes")
    else:
        text = "478 points without blendshapes, from models in an older wheel"
        text += "" if spare else " (fetched on first use)"
        landmarks = Finding("landmarks", State.NOTE, text, _placed("face_landmarker"))
    regions = Finding("regions", State.GOOD, "MediaPipe multi-class segmenter") if (
        assets.available("selfie_multiclass")
    ) else Finding(
        "regions", State.NOTE, "person from MediaPipe, hair, neck and clothes by colour",
        _placed("selfie_multiclass"),
    )  # fmt: skip
    ict = assets.available("ict_facekit") and assets.available("mediapipe468_to_ict")
    face = Finding("face model", State.GOOD, "ICT-FaceKit") if ict else Finding(
        "face model", State.NOTE, "learned from the clip itself",
        _placed("ict_facekit"),
    )  # fmt: skip
    own = [f"{name} ({path})" for name in assets.OWN_TABLE if (path := assets.own_path(name))]
    if own:
        face = Finding(face.name, face.state, f"{face.text}; also {', '.join(own)}", face.cure)
    encoder = assets.available("speech_encoder")
    speech = Finding("speech", State.GOOD, "speech encoder") if encoder else Finding(
        "speech", State.NOTE, "speech encoder not fetched yet", cure
    )  # fmt: skip
    place = Finding("assets", State.GOOD, f"GSAVATAR_ASSETS = {folder}") if folder else Finding(
        "assets", State.NOTE, "GSAVATAR_ASSETS is not set; files come from the cache or the network"
    )  # fmt: skip
    if folder and not Path(folder).is_dir():
        place = Finding(
            "assets", State.NOTE, f"GSAVATAR_ASSETS = {folder} is no folder", "correct or unset it"
        )
    return [landmarks, regions, face, speech, place]
