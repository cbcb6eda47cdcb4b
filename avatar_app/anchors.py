"""The anchor package: one presenter as a folder of JSON, safetensors, pictures and video. Nothing in it is unpickled.

    <id>/anchor.json            the manifest (see `Manifest`)
         body.safetensors       the posable body (`avatar_app.mesh.body.Body`), unless the manifest names another
         body/... face/...      diffusers-style network folders; face is optional
         background.png  thumbnail.jpg  sample.mp4  card.md

Bundled anchors live in checkpoints/anchors; the folder in the environment variable AVATAR_APP_ANCHORS comes first when
it is set, and imported anchors go there.
"""

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from avatar_app.files import unfinished, write_json
from avatar_app.mesh.bodies import SmplxBody, load_body, with_native_parts
from avatar_app.mesh.body import Body
from avatar_app.mesh.camera import MAX_SIDE, Camera
from avatar_app.trust.consent import Consent, migrate, require_consent
from avatar_app.unpack import BLOCK, PICKLE_SUFFIXES, check_name, unpack
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import Motion
from talkshow_bridge.rotations import matrix

SCHEMA_VERSION = 2  # 1: consent was a sentence
MANIFEST = "anchor.json"
REVOKED = ".revoked.json"
BUNDLED = Path(__file__).parents[1] / "checkpoints" / "anchors"
SHIPPED = ("adam", "eve")

Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Preset(_Strict):
    """Sampler numbers of one quality level.

    windows: "overlap" averages what several windows say about a frame, "shifted" predicts every frame once a step in
    windows that move. lora: strength of <part>/lora.safetensors or lora.safetensors (stable-diffusion anchors).
    pooled_keys: cheaper, approximate attention between frames in the largest layers.
    int8: native networks compute in 8 bits where the CPU engine is at work: twice as fast, half a level away.
    """

    steps: int = Field(ge=1, le=1000)
    guidance: float = Field(1.0, ge=0, le=30)
    window: int = Field(16, ge=1, le=256)
    overlap: int = Field(4, ge=0)
    condition_scale: float = Field(1.0, ge=0, le=10)
    face: bool = True
    windows: Literal["overlap", "shifted"] = "overlap"
    scheduler: Literal["ddim", "dpm++", "lcm"] = "ddim"
    lora: float = Field(0.0, ge=0, le=2)
    pooled_keys: bool = False
    int8: bool = False

    @classmethod
    def from_options(cls, options: "Preset | dict") -> "Preset":
        """Checked numbers from a preset or a dict. Raises InputError naming the wrong one."""
        try:
            preset = cls.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"Setting '{'.'.join(map(str, first['loc']))}' is wrong ({first['msg']}).") from None
        if preset.overlap >= preset.window:
            raise InputError(f"The overlap ({preset.overlap}) must be smaller than the window ({preset.window}).")
        if preset.scheduler == "lcm" and preset.steps > 50:
            raise InputError(f"The scheduler 'lcm' takes at most 50 steps, not {preset.steps}.")
        return preset


class FaceSpec(_Strict):
    """How the face networks want their picture and are sampled.

    resolution: pixels. margin: the crop's side in sides of the head (native anchors). guidance, condition_scale: of the
    face pass, whatever the preset says about the body (stable-diffusion anchors)."""

    resolution: int = Field(256, ge=16, le=1024)
    margin: float = Field(1.3, ge=1.0, le=4.0)
    guidance: float = Field(1.0, ge=0, le=30)
    condition_scale: float = Field(1.0, ge=0, le=10)


class Compat(_Strict):
    """Habits of the original Make-Your-Anchor code, which its published weights are used with; all off by default.

    In a manifest, "make-your-anchor" is short for all on.
    """

    pooled_norm: bool = Field(False, description="group norms of both body networks see all frames of a window")
    residual_into_mid: bool = Field(False, description="the last control residual also enters the UNet's mid block")
    original_windows: bool = Field(False, description="the window list may end in a short, redundant window")
    truncate_pixels: bool = Field(False, description="fractions of pixel values are cut off, not rounded")
    sampled_face_posterior: bool = Field(False, description="noise, the same every 30 frames, on the face's latents")
    square_face_mask: bool = Field(False, description="the whole face crop is pasted, blurred at its rim")
    unsteady_face_crop: bool = Field(False, description="the face crop follows the points of every single frame")


class BodyModel(_Strict):
    """The body of an anchor that brings none: the user's licensed SMPL-X model or the bundled open body."""

    model: Literal["smplx", "open"] = "smplx"
    betas: tuple[float, ...] = Field((), max_length=300)


class Placement(_Strict):
    """How SHOW's fit placed the person: SMPL-X orientation (axis-angle, rad) and translation (m).

    Its y points down and its z into the scene."""

    global_orient: tuple[float, float, float] = (np.pi, 0.0, 0.0)
    transl: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def apply(self, vertices: np.ndarray, pelvis: np.ndarray) -> np.ndarray:
        """Upright vertices (N, V, 3) -> the fit's, in SHOW's world turned to y up; pelvis: the rest joint (3,)."""
        turn = matrix(np.array(self.global_orient))
        fitted = (vertices - pelvis) @ turn.T + (pelvis + self.transl)
        return (fitted * (1, -1, -1)).astype(np.float32)


class FileRecord(_Strict):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Manifest(_Strict):
    """anchor.json. Everything that training fixed and rendering must repeat is in here."""

    schema_version: Literal[2] = SCHEMA_VERSION
    id: Id
    name: str = Field(min_length=1, max_length=200)
    description: str = ""
    licence: str
    consent: Consent
    kind: Literal["native", "stable-diffusion"] = "native"
    fps: float = Field(gt=0, le=120)
    width: int = Field(ge=16, le=4096)
    height: int = Field(ge=16, le=4096)
    expression_space: Literal["arkit52", "flame100"] = "arkit52"
    camera: dict
    condition: Literal["maps", "mesh-picture", "normal-picture"] = "maps"
    condition_version: int = 1
    cross_frame_attention: bool = False
    guided: bool = Field(False, description="native: trained with condition dropout, so that guidance above 1 works")
    compat: Compat = Compat()
    body: BodyModel | None = None
    placement: Placement | None = None
    static_background: bool = Field(False, description="keep background.png wherever the person is not")
    face: FaceSpec | None = None
    presets: dict[Literal["draft", "standard", "best"], Preset]
    extra: dict = Field(default_factory=dict, description="facts for people: training time, metrics, sources")
    files: dict[str, FileRecord] = Field(default_factory=dict)

    @field_validator("compat", mode="before")
    @classmethod
    def _compat(cls, value: object) -> object:
        if value in (False, True, "make-your-anchor"):
            return dict.fromkeys(Compat.model_fields, bool(value))
        return value

    @field_validator("camera")
    @classmethod
    def _camera(cls, value: dict) -> dict:
        try:
            Camera.from_dict(value)
        except (KeyError, TypeError, OverflowError):
            raise ValueError("not a camera") from None
        return value

    @field_validator("presets")
    @classmethod
    def _all_presets(cls, value: dict) -> dict:
        missing = {"draft", "standard", "best"} - set(value)
        if missing:
            raise ValueError(f"preset {sorted(missing)[0]} is missing")
        return value

    @field_validator("files")
    @classmethod
    def _safe_files(cls, value: dict) -> dict:
        for name in value:
            check_name(name)
        return value


@dataclass(frozen=True)
class Anchor:
    """A validated anchor folder. The networks are loaded by the generator, not here."""

    folder: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def has_face(self) -> bool:
        return self.manifest.face is not None

    @cached_property
    def camera(self) -> Camera:
        return Camera.from_dict(self.manifest.camera)

    @cached_property
    def body(self) -> Body | SmplxBody:
        """The posable body, as trained. Raises InputError when the model that the manifest names is not installed."""
        if (model := self.manifest.body) is None:
            return Body.load(self.file("body.safetensors"))
        try:
            body = load_body(betas=model.betas, model=model.model)
        except InputError as problem:
            raise InputError(f"Anchor '{self.id}' needs a body that does not come with it. {problem}") from None
        return with_native_parts(body) if self.manifest.kind == "native" else body

    def vertices(self, motion: Motion) -> np.ndarray:
        """All frames of a motion, (N, V, 3) float32 in metres, as they stand before the anchor's camera."""
        posed, place = self.body.pose(motion).vertices, self.manifest.placement
        return posed if place is None else place.apply(posed, self.body.joints[0])

    @cached_property
    def background(self) -> np.ndarray | None:
        """The empty scene, uint8 RGB (height, width, 3), or None."""
        path = self.folder / "background.png"
        if not path.exists():
            return None
        with _picture(path, self.id) as plate:
            if plate.size != (self.manifest.width, self.manifest.height):
                raise InputError(f"Anchor '{self.id}': background.png has another size than the anchor.")
            return np.asarray(plate.convert("RGB"))

    def preset(self, name: str, overrides: dict | None = None) -> Preset:
        """The sampler numbers of "draft", "standard" or "best", some of them replaced. Raises InputError."""
        if name not in self.manifest.presets:
            known = ", ".join(self.manifest.presets)
            raise InputError(f"Unknown preset '{name}'; anchor '{self.id}' has: {known}.")
        return Preset.from_options({**self.manifest.presets[name].model_dump(), **(overrides or {})})

    def file(self, name: str) -> Path:
        """Path of a file or folder of the package. Raises InputError when it is not there."""
        path = self.folder / name
        if not path.exists():
            raise InputError(f"Anchor '{self.id}' is incomplete: '{name}' is missing.")
        return path


def anchor_folders() -> list[Path]:
    """Where anchors are looked for, the user's own folder first."""
    own = os.environ.get("AVATAR_APP_ANCHORS")
    return ([Path(own).expanduser()] if own else []) + [BUNDLED]


def is_bundled(folder: Path) -> bool:
    """Whether an anchor's folder came with the program; others may lie beside those."""
    return folder.name in SHIPPED and folder.resolve().parent == BUNDLED.resolve()


def motion_model_folder(name: str | None) -> Path | None:
    """A motion model by folder; "talkshow" is where `launch.py motion import` puts one, beside the user's anchors."""
    if name == "talkshow":
        return anchor_folders()[0].parent / name
    return None if name is None else Path(name)


def list_anchors() -> list[Anchor]:
    """All readable anchors, by id; damaged manifests are left out here and reported by `load_anchor`."""
    found: dict[str, Anchor] = {}
    for folder in anchor_folders():
        for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
            try:
                anchor = Anchor(manifest.parent, _read_manifest(manifest))
            except InputError:
                continue
            found.setdefault(anchor.id, anchor)
    return [found[name] for name in sorted(found)]


def load_anchor(name_or_path: str | Path, verify: bool = True) -> Anchor:
    """An anchor by id, or by the path of its folder, with every file checked against the manifest.

    Raises InputError: unknown anchor, missing or damaged file, wrong schema version, pickle file.
    """
    folder = _find(name_or_path)
    anchor = Anchor(folder, _read_manifest(folder / MANIFEST))
    _check_contents(anchor)
    if verify:
        verify_anchor(anchor)
    return anchor


def verify_anchor(anchor: Anchor) -> None:
    """Check the sha256 of every file; files unchanged since the last check in this process are not read again."""
    for name, record in anchor.manifest.files.items():
        path = anchor.file(name)
        status = path.stat()
        if status.st_size != record.size or _cached_sha256(path, status) != record.sha256:
            raise InputError(f"Anchor '{anchor.id}' is damaged: '{name}' does not match its checksum.")


def seal_anchor(folder: Path, manifest: dict) -> Anchor:
    """Write anchor.json for a finished folder: validates `manifest` and records size and sha256 of every file."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        path.chmod(0o644)  # safetensors are written for their owner alone
        name = path.relative_to(folder).as_posix()
        files[name] = {"sha256": _sha256(path), "size": path.stat().st_size}
    _write_manifest(folder, _validate({**manifest, "files": files}, str(manifest.get("id", folder.name))))
    return load_anchor(folder)


def set_consent(anchor: Anchor, consent: Consent) -> Anchor:
    """Replace the consent record in an anchor's manifest. Raises InputError for a bundled anchor."""
    if is_bundled(anchor.folder):
        raise InputError(f"Anchor '{anchor.id}' is bundled; its consent record cannot be changed.")
    changed = Anchor(anchor.folder, anchor.manifest.model_copy(update={"consent": consent}))
    if consent.revoked:
        folder = anchor_folders()[0]
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / REVOKED, _revoked() | {f"{anchor.id} {consent.id}": str(consent.revoked)})
    _write_manifest(anchor.folder, changed.manifest)
    return changed


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    part = folder / f".{MANIFEST}.part"
    part.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / MANIFEST)


def export_anchor(anchor: Anchor, path: Path) -> Path:
    """Pack the manifest and the files it lists into a zip, checksums verified first."""
    verify_anchor(anchor)
    path = Path(path)
    with unfinished(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in [MANIFEST, *anchor.manifest.files]:
            archive.write(anchor.folder / name, f"{anchor.id}/{name}")
    return path


def import_anchor(path: Path, replace: bool = False, consent: Consent | None = None) -> Anchor:
    """Unpack an exported zip into the user's anchor folder and verify it.

    consent: for a package that is older than consent records; others bring their own.
    Raises InputError for anything that is not a sound anchor package, whose consent does not permit the import or was
    revoked here, and when the anchor exists already unless `replace`. A refused package leaves nothing behind.
    """
    destination = anchor_folders()[0]
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=destination) as temporary:
        unpacked = Path(temporary) / "anchor"
        unpack(Path(path), unpacked)
        manifests = [*unpacked.glob(MANIFEST), *unpacked.glob(f"*/{MANIFEST}")]
        if len(manifests) != 1:
            raise InputError(f"'{Path(path).name}' is not an anchor package: it has no single {MANIFEST}.")
        anchor = load_anchor(manifests[0].parent)
        _check_shapes(anchor)
        if consent is not None:
            if anchor.manifest.consent.kind != "unstated":
                raise InputError(f"Anchor '{anchor.id}' brings its own consent record; please leave out --consent.")
            anchor = set_consent(anchor, consent)
        require_consent(anchor, "import")
        if day := _revoked().get(f"{anchor.id} {anchor.manifest.consent.id}"):  # this is an older copy
            raise InputError(f"The consent for anchor '{anchor.id}' was revoked here on {day}.")
        target = destination / anchor.id
        if target.exists():
            if not replace:
                raise InputError(f"An anchor '{anchor.id}' exists already; remove it first or ask to replace it.")
            shutil.rmtree(target)
        shutil.move(anchor.folder, target)
    return load_anchor(target)


def _revoked() -> dict[str, str]:
    """Anchor and consent record -> the day it was revoked on this machine; outlives the anchor."""
    file = anchor_folders()[0] / REVOKED
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _find(name_or_path: str | Path) -> Path:
    if (Path(name_or_path) / MANIFEST).is_file():
        return Path(name_or_path).resolve()
    for folder in anchor_folders():
        for candidate in folder.glob(f"*/{MANIFEST}"):
            if candidate.parent.name == str(name_or_path):
                return candidate.parent
    known = ", ".join(anchor.id for anchor in list_anchors()) or "none"
    raise InputError(f"Unknown anchor '{name_or_path}'; known anchors: {known}.")


def _read_manifest(path: Path) -> Manifest:
    name = path.parent.name
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise InputError(f"Anchor '{name}' is damaged: '{MANIFEST}' is not readable JSON.") from None
    if not isinstance(data, dict):
        raise InputError(f"Anchor '{name}' is damaged: '{MANIFEST}' is not a JSON object.")
    return _validate(data, name)


def _validate(data: dict, name: str) -> Manifest:
    version = data.get("schema_version", SCHEMA_VERSION)
    if version == 1 and not isinstance(version, bool):
        data, version = migrate(data), SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise InputError(
            f"Anchor '{name}' has manifest version {version}, this program reads version {SCHEMA_VERSION}."
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"Anchor '{name}': '{field}' in {MANIFEST} is wrong ({first['msg']}).") from None


def _check_contents(anchor: Anchor) -> None:
    """Links, pickles and unlisted weights or configurations have no place in the folder."""
    for path in anchor.folder.rglob("*"):
        name = path.relative_to(anchor.folder).as_posix()
        if path.is_symlink():
            raise InputError(f"Anchor '{anchor.id}': '{name}' is a link, which an anchor may not hold.")
        suffix = path.suffix.lower()
        if suffix in PICKLE_SUFFIXES:
            raise InputError(f"Anchor '{anchor.id}': '{name}' may hold a pickle; only safetensors weights are read.")
        listed = name == MANIFEST or name in anchor.manifest.files
        if path.is_file() and suffix in {".json", ".safetensors"} and not listed:
            raise InputError(f"Anchor '{anchor.id}': '{name}' is not listed in its {MANIFEST}.")


def _check_shapes(anchor: Anchor) -> None:
    """Open all files as far as their sizes, body and background as a whole: what is wrong is said at the import."""
    from safetensors import SafetensorError, safe_open

    for name in anchor.manifest.files:
        path = anchor.folder / name
        if path.suffix in (".png", ".jpg", ".jpeg"):
            with _picture(path, anchor.id):
                pass
        elif path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="numpy"):
                    pass
            except (SafetensorError, OSError):
                raise InputError(f"Anchor '{anchor.id}': '{name}' is cut off or no safetensors file.") from None
    _ = anchor.background
    if anchor.manifest.body is None:
        _ = anchor.body


@contextmanager
def _picture(path: Path, anchor: str) -> Iterator[Image.Image]:
    """An opened picture of a package that is not too large to be decoded. Raises InputError."""
    try:
        with Image.open(path) as picture:
            if max(picture.size) > MAX_SIDE:
                raise InputError(f"Anchor '{anchor}': '{path.name}' is larger than {MAX_SIDE} pixels.")
            yield picture
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise InputError(f"Anchor '{anchor}': '{path.name}' is not a readable picture.") from None


_verified: dict[tuple[str, int, int], str] = {}


def _cached_sha256(path: Path, status: os.stat_result) -> str:
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    if key not in _verified:
        _verified[key] = _sha256(path)
    return _verified[key]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
