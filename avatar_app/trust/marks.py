"""What is done to finished frames before they are written: the invisible mark and, when wanted, a visible label."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from avatar_app.settings import RenderSettings
from avatar_app.trust.consent import Consent
from avatar_app.trust.watermark import Watermark, payload_of

LABEL = "AI-generated"
LABEL_HEIGHT = 1 / 28  # of the letters, in heights of the frame


def marker(settings: RenderSettings, id: str) -> Callable[[np.ndarray], np.ndarray]:
    """mark(frames): (n, height, width, 3) uint8 RGB as the settings want; a frame depends on itself and `id`."""
    watermark = Watermark(id) if settings.watermark else None

    def mark(frames: np.ndarray) -> np.ndarray:
        if settings.label:
            frames = labelled(frames)
        return watermark.mark(frames) if watermark else frames

    return mark


def labelled(frames: np.ndarray) -> np.ndarray:
    """Copies of (n, height, width, 3) uint8 RGB frames with the label in the lower left corner."""
    ink, shade = _stamp(*frames.shape[1:3])
    height, width = ink.shape
    top, left = frames.shape[1] - height, 0
    frames = frames.copy()
    corner = frames[:, top:, left : left + width]
    dimmed = corner * (1 - shade[..., None]) + 255 * ink[..., None]
    corner[:] = np.clip(np.rint(dimmed), 0, 255).astype(np.uint8)
    return frames


@lru_cache(maxsize=4)
def _stamp(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The corner that the label takes: white to add and share of the picture to take away, 0..1, both float32."""
    from PIL import Image, ImageDraw, ImageFont

    size = max(6, round(height * LABEL_HEIGHT))
    font = ImageFont.load_default(size)
    gap = max(1, size // 2)
    right, bottom = font.getbbox(LABEL)[2:]
    canvas = Image.new("L", (min(width, right + 3 * gap), min(height, bottom + 2 * gap)))
    plate = canvas.copy()
    corner = (gap // 2, gap // 2, canvas.width - gap // 2, canvas.height - gap // 2)
    ImageDraw.Draw(plate).rounded_rectangle(corner, radius=gap // 2, fill=255)
    ImageDraw.Draw(canvas).text((canvas.width // 2, canvas.height // 2), LABEL, 255, font, anchor="mm")
    ink, plate = (np.asarray(picture, np.float32) / 255 for picture in (canvas, plate))
    return 0.92 * ink, np.maximum(ink, 0.55 * plate)


def trust_facts(settings: RenderSettings, id: str, ingredients: dict, consent: Consent) -> dict:
    """What is signed with a video and kept in its side-car, as JSON. ingredients: of `avatar_app.sidecar`."""
    speech = ingredients["speech"]
    return {
        "id": id,
        "watermark": payload_of(id).hex() if settings.watermark else None,
        "label": settings.label,
        "preview": ingredients["preview"],
        "anchor": ingredients["anchor"],
        "audio_sha256": speech and speech["sha256"],
        "consent": {"id": consent.id, "kind": consent.kind, "summary": consent.summary()},
    }
