"""Content credentials (C2PA): every video carries a signed statement of what it is and how it was made.

Signing needs a certificate.  By default one is made at the first signature and kept in the user's folder; it shows
that a file was not altered since, and that it came from this very installation, but not whose it is.  A certificate
from an authority takes its place with AVATAR_APP_CERTIFICATE and AVATAR_APP_CERTIFICATE_KEY (PEM files: the chain,
leaf first, and the key).  Nothing here uses the network: no time stamps, no revocation look-ups, no remote manifests.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import os
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from avatar_app import __version__
from avatar_app.trust.seal import Seal, is_whole
from talkshow_bridge.errors import InputError

if TYPE_CHECKING:
    from cryptography import x509

SOFTWARE = "avatar_app"
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
FACTS_LABEL = "org.avatar-app.render"  # our own assertion: anchor, audio, consent, id
SEAL_LABEL = "org.avatar-app.seal"  # and the key that seals the whole file
YEARS = 10  # that the local certificate is good for
FORMAT = "video/mp4"


@dataclass(frozen=True)
class Identity:
    """A signing certificate: PEM chain, leaf first, and PEM key (PKCS 8, no password), and its C2PA algorithm."""

    chain: bytes
    key: bytes
    algorithm: str
    local: bool

    @property
    def leaf(self) -> x509.Certificate:
        from cryptography import x509

        return x509.load_pem_x509_certificates(self.chain)[0]


@dataclass(frozen=True)
class Statement:
    """What the credentials of a file say.

    state: "trusted" (unaltered, by a certificate that this installation trusts), "valid" (unaltered, by another) or
    "invalid" (altered, or the signature is broken).   problems: C2PA's codes of what failed, "seal.mismatch" is ours.
    signer: organisation of the certificate.   own: signed with the certificate in use here.
    software, created, generated: who made it, when, and whether it says that it is synthetic.
    facts: our own assertion; {} in files of others.
    """

    state: str
    problems: tuple[str, ...]
    signer: str
    own: bool
    software: str
    created: str
    generated: bool
    facts: dict


class MissingLibrary(InputError):
    """c2pa-python is not there or does not load."""


def sha256(path: str | os.PathLike[str]) -> str:
    """Of a file, 64 hex digits. Raises InputError when it cannot be read."""
    try:
        digest = hashlib.sha256()
        with Path(path).open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.") from None


def sign(video: str | os.PathLike[str], facts: dict) -> None:
    """Puts signed credentials into a finished mp4; the file is replaced when that has succeeded.

    facts: JSON about this video: id, watermark, anchor {id, sha256}, audio sha256 or None, consent id, ...
    Raises InputError when there is no usable certificate or no C2PA library, and leaves the video as it was.
    """
    video, seal = Path(video), Seal()
    signed = video.with_name(f".{video.name[:40]}.{secrets.token_hex(6)}.signed.part")
    try:
        with video.open("rb") as source, signed.open("w+b") as target:
            _sign(identity(), _manifest(facts, seal), source, target)
            seal.close(target)
        os.replace(signed, video)
    finally:
        signed.unlink(missing_ok=True)


def _sign(who: Identity, manifest: dict, source: BinaryIO, target: BinaryIO) -> None:
    """Copies a file with the signed manifest in it. Raises InputError."""
    c2pa = _library()
    try:
        info = c2pa.C2paSignerInfo(who.algorithm, who.chain, who.key, None)
        with (
            c2pa.Signer.from_info(info) as signer,
            c2pa.Context.from_dict(_settings()) as context,
            c2pa.Builder(json.dumps(manifest), context=context) as builder,
        ):
            builder.sign(signer, manifest["format"], source, target)
    except c2pa.C2paError as error:
        raise InputError(
            f"Nothing can be signed with this certificate ({_words(error).rstrip('.')}): C2PA wants one for signing, "
            "with e-mail protection, document signing or C2PA claims as its purpose, that an authority has issued."
        ) from None


def read(video: str | os.PathLike[str]) -> Statement | None:
    """The credentials of a file and whether they hold; None when it carries none, or is of a kind that cannot.

    Raises InputError when the file cannot be read or the C2PA library is missing."""
    c2pa = _library()
    try:
        with (
            Path(video).open("rb") as file,
            c2pa.Context.from_dict(_settings()) as context,
            c2pa.Reader(FORMAT, file, context=context) as reader,
        ):
            store = json.loads(reader.json())
    except OSError as error:
        raise InputError(f"'{os.path.basename(video)}' cannot be read: {error.strerror}.") from None
    except c2pa.C2paError as error:
        return Statement("invalid", (_words(error),), "", False, "", "", False, {}) if _holds_rests(video) else None
    return _statement(store, Path(video))


def _holds_rests(video: str | os.PathLike[str]) -> bool:
    """Whether a file in which C2PA finds nothing holds the beginning of what credentials are kept in."""
    with Path(video).open("rb") as file:
        if not os.path.getsize(video):
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b"jumdc2pa") >= 0


def check_ready() -> None:
    """Raises InputError when `sign` would: called before a long render begins."""
    _library()
    _try_out(identity())


@lru_cache(maxsize=2)
def _try_out(who: Identity) -> None:
    """Sign a picture of one pixel: a certificate may be sound and yet none that C2PA accepts."""
    from PIL import Image

    with io.BytesIO() as picture, io.BytesIO() as signed:
        Image.new("RGB", (1, 1)).save(picture, "PNG")
        picture.seek(0)
        _sign(who, _manifest({}, Seal()) | {"format": "image/png"}, picture, signed)


def identity() -> Identity:
    """The configured certificate, or else the local one, which is made when there is none yet.

    Raises InputError: only one of the two files is given, unreadable, key and certificate do not belong together,
    expired, or the folder of the local one cannot be written."""
    chain, key = (os.environ.get(name) for name in ("AVATAR_APP_CERTIFICATE", "AVATAR_APP_CERTIFICATE_KEY"))
    if not chain and not key:
        return _local_identity()
    if not chain or not key:
        raise InputError("AVATAR_APP_CERTIFICATE and AVATAR_APP_CERTIFICATE_KEY must be given together.")
    try:
        return _identity(Path(chain).expanduser().read_bytes(), Path(key).expanduser().read_bytes(), local=False)
    except OSError as error:
        raise InputError(f"The certificate file '{error.filename}' cannot be read: {error.strerror}.") from None
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}; `--no-credentials` renders without it.") from None


def key_folder() -> Path:
    """Where the local certificate lies: AVATAR_APP_KEYS, or avatar_app in the user's configuration folder."""
    if own := os.environ.get("AVATAR_APP_KEYS"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "avatar_app"


def _local_identity() -> Identity:
    path = key_folder() / "signing.pem"
    try:
        if not path.exists():
            _keep_secret(path, _make_certificates())
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"The signing key cannot be kept in '{path.parent}' ({error.strerror}): please make it writable, set "
            "AVATAR_APP_KEYS to another folder, or ask for a video without credentials (--no-credentials)."
        ) from None
    try:
        return _identity(content, content, local=True)
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}; remove '{path}', and a new one is made.") from None


def _keep_secret(path: Path, content: bytes) -> None:
    """Writes a file that only its owner may read; of two processes at once, the first one's stays."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
    finally:
        part.unlink(missing_ok=True)


def _make_certificates() -> bytes:
    """PEM: a new key, its certificate, and the authority that issued it, whose own key is forgotten at once."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(common: str) -> x509.Name:
        organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"{SOFTWARE} (local, unverified)")
        return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, common)])

    def certificate(subject, key, issuer, issuer_key, authority: bool) -> x509.Certificate:
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
        )
        usage |= {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
        started = datetime.now(timezone.utc) - timedelta(hours=1)
        builder = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(started)
            .not_valid_after(started + timedelta(days=365 * YEARS))
            .add_extension(x509.BasicConstraints(authority, 0 if authority else None), critical=True)
            .add_extension(x509.KeyUsage(**usage, decipher_only=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        )
        if not authority:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])  # one of those that C2PA admits
            builder = builder.add_extension(purpose, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())

    label = secrets.token_hex(4)
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate(name(f"local authority {label}"), root_key, name(f"local authority {label}"), root_key, True)
    leaf = certificate(name(f"installation {label}"), key, root.subject, root_key, False)
    encoding = serialization.Encoding.PEM
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return secret + leaf.public_bytes(encoding) + root.public_bytes(encoding)


def _identity(chain: bytes, key: bytes, local: bool) -> Identity:
    """Checks and normalises PEM texts. Raises InputError."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    try:
        certificates = x509.load_pem_x509_certificates(chain)
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError):
        raise InputError("The signing certificate or its key is not readable PEM without a password.") from None
    encoding, public = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    leaf = certificates[0]
    if leaf.public_key().public_bytes(encoding, public) != private.public_key().public_bytes(encoding, public):
        raise InputError("The signing certificate (the first in its file) does not belong to the key.")
    begin, end, now = leaf.not_valid_before_utc, leaf.not_valid_after_utc, datetime.now(timezone.utc)
    if now < begin:
        raise InputError(f"The signing certificate is not valid before {begin:%Y-%m-%d}, by this computer's clock.")
    if now > end:
        raise InputError(f"The signing certificate expired on {end:%Y-%m-%d}.")
    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in curves:
        algorithm = curves[private.curve.name]
    elif isinstance(private, (rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)):
        algorithm = "ps256" if isinstance(private, rsa.RSAPrivateKey) else "ed25519"
    else:
        raise InputError("The signing key must be P-256, P-384, P-521, RSA or Ed25519.")
    return Identity(
        b"".join(certificate.public_bytes(encoding) for certificate in certificates),
        private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        algorithm,
        local,
    )


def _settings() -> dict:
    """C2PA's: offline; trusted are who issued our own certificate and the PEM file in AVATAR_APP_TRUSTED."""
    own, roots = _own(), []
    if own is not None:
        roots.append(own.chain)
    if extra := os.environ.get("AVATAR_APP_TRUSTED"):
        try:
            roots.append(Path(extra).expanduser().read_bytes())
        except OSError as error:
            raise InputError(f"AVATAR_APP_TRUSTED '{extra}' cannot be read: {error.strerror}.") from None
    verify = {"verify_trust": True, "verify_after_sign": False, "ocsp_fetch": False, "remote_manifest_fetch": False}
    trusted = b"\n".join(roots).decode("utf-8", "replace")
    return {"verify": verify, **({"trust": {"user_anchors": trusted}} if roots else {})}


def _manifest(facts: dict, seal: Seal) -> dict:
    software = {"name": SOFTWARE, "version": __version__}
    created = {
        "action": "c2pa.created",
        "digitalSourceType": GENERATED,
        "softwareAgent": software,
        "when": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return {
        "claim_generator_info": [software],
        "title": "Synthetic video of a presenter",
        "format": FORMAT,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": FACTS_LABEL, "data": facts},
            {"label": SEAL_LABEL, "data": {"key": seal.public}},
        ],
    }


def _statement(store: dict, video: Path) -> Statement:
    manifest = store.get("manifests", {}).get(store.get("active_manifest"), {})
    found = {entry["label"]: entry.get("data") for entry in manifest.get("assertions", [])}
    assertions = {label: data for label, data in found.items() if isinstance(data, dict)}  # strangers sign anything
    actions = [
        action
        for label, data in assertions.items()
        if label.startswith("c2pa.actions")
        for action in data.get("actions", [])
        if isinstance(action, dict)
    ]
    created = next((action for action in actions if action.get("action") == "c2pa.created"), {})
    signature = manifest.get("signature_info") or {}
    info = (manifest.get("claim_generator_info") or [{}])[0]
    results, own = store.get("validation_results", {}).get("activeManifest", {}), _own()
    codes = {entry["code"] for entry in results.get("failure", [])} - {"signingCredential.untrusted"}
    if not codes and SEAL_LABEL in assertions and not is_whole(video, str(assertions[SEAL_LABEL].get("key"))):
        codes = {"seal.mismatch"}
    problems = tuple(sorted(codes))
    trusted = any(entry["code"] == "signingCredential.trusted" for entry in results.get("success", []))
    state = str(store.get("validation_state", "Invalid")).lower()
    return Statement(
        "invalid" if problems else state,
        problems,
        str(signature.get("issuer") or signature.get("common_name") or "somebody unnamed"),
        trusted and own is not None and signature.get("cert_serial_number") == str(own.leaf.serial_number),
        " ".join(str(info[part]) for part in ("name", "version") if info.get(part)),
        str(created.get("when") or ""),
        any(str(action.get("digitalSourceType", "")).endswith("lgorithmicMedia") for action in actions),
        assertions.get(FACTS_LABEL, {}),
    )


def has_identity() -> bool:
    """Whether a certificate is configured or the local one has been made."""
    configured = ("AVATAR_APP_CERTIFICATE", "AVATAR_APP_CERTIFICATE_KEY")
    return any(map(os.environ.get, configured)) or (key_folder() / "signing.pem").exists()


def _own() -> Identity | None:
    """None while this installation has not signed anything: checking a file makes no key."""
    if has_identity():
        with contextlib.suppress(InputError):
            return identity()
    return None


def _library():
    try:
        import c2pa
    except (ImportError, OSError):
        raise MissingLibrary(
            "The package c2pa-python is missing or does not load here, so that content credentials can neither be "
            "written nor checked; `--no-credentials` renders without them."
        ) from None
    return c2pa


def _words(error: Exception) -> str:
    return str(error).strip().rstrip(".").split("\n")[0][:300] + "."
