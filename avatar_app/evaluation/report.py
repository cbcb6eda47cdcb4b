"""The quality report of one video: what is good and what deserves a look, measured while it is rendered.

    report = QualityReport(anchor, options, speech, frames=300)
    report.observe(frames, vertices)  # chunk by chunk, in order
    facts = report.finish()           # for the side-car; as_text(facts) and as_html(facts) show it

It compares the picture with the posed mesh and the sound, never with another video, so it needs no truth. Thresholds
are calibrated on renders of the bundled presenter and on the same renders with one fault built in each.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numba
import numpy as np

from avatar_app.anchors import Anchor, Preset
from avatar_app.diffusion.windows import PHASES, native_windows, shifted_windows
from avatar_app.evaluation.marks import HEAD_AREA, MOUTH_AREA, BodyMarks, InPicture
from avatar_app.evaluation.observers import Correlation, Histogram, pack, unpack, zeros
from talkshow_bridge.audio import Speech

GOOD, LOOK, NOT_MEASURED = "good", "look here", "not measured"
VERSION = 1
SMALL = 128  # samples of the picture's longer side
CELLS = 32  # of the grid in which the person is told from the background
HEAD_SHAPE, MOUTH_SHAPE = (28, 24), (32, 32)  # rows, columns of the upright crops
BLOCK_SECONDS = 2.0  # of the reference and of each comparison of the head
SPEAKING, SILENT = -25.0, -35.0  # dB below the speech's loud parts
PAUSE_EDGE = 0.1  # s at both ends of a pause in which the mouth may still move
HEAD_EVERY = 3  # frames: the head is compared that often
FAINTEST = -35.0  # dB of full scale: what is fainter than this by SPEAKING is no speech
LEAST = {"speech": 15, "pause": 8, "lips": 30, "borders": 3}  # frames (borders) without which nothing is said


@dataclass(frozen=True)
class Check:
    """One line of the report. value: None where it could not be measured. at: s, where to look, at most three."""

    id: str
    name: str
    value: float | None
    unit: str
    threshold: float
    verdict: str
    sentence: str
    at: tuple[float, ...] = ()


@dataclass
class Tallies:
    """Counters and last values of everything that is neither a correlation nor a histogram."""

    frames: np.ndarray = zeros(1, dtype=np.int64)
    first: np.ndarray = zeros(1, dtype=np.int64)  # frame that was seen
    aperture: np.ndarray = zeros(1)  # of the last frame
    lip_path: np.ndarray = zeros(2)  # mm, while speaking and in silence
    lip_frames: np.ndarray = zeros(2, dtype=np.int64)
    mouth: np.ndarray = zeros(*MOUTH_SHAPE, dtype=np.float32)
    places: np.ndarray = zeros(3, 3, 3)  # head, left and right hand in the last three frames, m, newest first
    small: np.ndarray = zeros(SMALL, SMALL, dtype=np.float32)
    person: np.ndarray = zeros(CELLS, CELLS, dtype=bool)
    changes: np.ndarray = zeros(2)  # of the picture in the last two frames, newest first
    jumps: np.ndarray = zeros(1, dtype=np.int64)
    jump_frames: np.ndarray = zeros(3, dtype=np.int64)
    faces: np.ndarray = zeros(2, dtype=np.int64)  # inside the picture, repainted
    clipped: np.ndarray = zeros(1, dtype=np.int64)
    clipped_frames: np.ndarray = zeros(3, dtype=np.int64)
    head_sum: np.ndarray = zeros(2, *HEAD_SHAPE, 3)  # reference, present block
    head_count: np.ndarray = zeros(2, dtype=np.int64)
    drift: np.ndarray = zeros(2)  # the largest one, and its frame


class QualityReport:
    """Watches one video being made. Small: `state` is about 160 kB of JSON, whatever the length.

    options: what the frames are painted with; None for pictures without windows and face pass (a mesh preview).
    speech: None for a silent video. frames: of the whole video. keep: called as keep(frames so far, state) after
    each `every` frames and at the end.
    """

    def __init__(
        self,
        anchor: Anchor,
        options: Preset | None,
        speech: Speech | None,
        frames: int,
        keep: Callable[[int, dict], None] | None = None,
        every: int = 60,
    ):
        self._keep, self._every, self._total = keep, every, frames
        self._camera, self._fps = anchor.camera, anchor.manifest.fps
        self._marks = BodyMarks(anchor.body, anchor.camera)
        self._face_pass = options is not None and options.face and anchor.has_face
        self._level = None if speech is None else loudness(speech, self._fps, frames)
        self._pause = None if speech is None else pauses(self._level, self._fps)
        together = anchor.manifest.kind != "native" or anchor.manifest.cross_frame_attention
        self._borders = window_borders(options, frames) if options is not None and together else set()
        self._parts = {
            "tallies": Tallies(), "sound": Correlation(), "drawn": Correlation(), "flicker": Histogram(),
            "head": Histogram(), "left": Histogram(), "right": Histogram(), "inside": Histogram(),
            "border": Histogram(),
        }  # fmt: skip
        self._now: Tallies = self._parts["tallies"]

    def state(self) -> dict:
        """All that was seen so far, as JSON, for `restore` in another process."""
        return {"version": VERSION, **{name: pack(part) for name, part in self._parts.items()}}

    def restore(self, state: dict) -> None:
        """Go on where `state` was taken. Raises ValueError for anything else."""
        try:
            if state["version"] != VERSION:
                raise ValueError("written by another version")
            for name, part in self._parts.items():
                unpack(part, state[name])
        except (KeyError, TypeError) as error:
            raise ValueError(f"This is no state of a quality report: {error}") from None

    def resume(self, frames: int, state: dict | None) -> None:
        """Go on after so many frames; without a state the report is about the rest."""
        if state is not None:
            self.restore(state)
        else:
            self._now.frames[0] = self._now.first[0] = frames

    def observe(self, frames: np.ndarray, vertices: np.ndarray) -> None:
        """The next finished frames, uint8 RGB (n, height, width, 3), and their posed vertices (n, V, 3) in metres."""
        for frame, posed in zip(frames, vertices, strict=True):  # one by one: chunks must not change a figure
            index = int(self._now.frames[0])
            self._see_lips(frame, posed, index)
            self._see_movement(posed, index)
            seen = self._marks.in_picture(posed)
            self._see_picture(frame, seen.points, index)
            self._see_head(seen, index)
            self._now.frames += 1
            if self._keep is not None and ((index + 1) % self._every == 0 or index + 1 == self._total):
                self._keep(index + 1, self.state())

    def _see_lips(self, frame: np.ndarray, vertices: np.ndarray, index: int) -> None:
        place, now = self._marks.face(vertices), self._now
        if index % HEAD_EVERY == 0:
            self._see_face(place.crop(frame, place.middle, HEAD_AREA, HEAD_SHAPE), index)
        if self._marks.lips is None:
            return
        aperture = self._marks.aperture(vertices)
        mouth = np.empty(MOUTH_SHAPE, np.float32)
        sample_luma(place.crop(frame, self._marks.mouth(vertices, place), MOUTH_AREA, MOUTH_SHAPE), mouth)
        begun = index > now.first[0]
        step = aperture - now.aperture[0] if begun else 0.0
        if begun:
            self._parts["drawn"].add(np.abs(mouth - now.mouth).mean(), abs(step))
        if self._level is not None:
            self._parts["sound"].add(aperture, max(self._level[index], SILENT))
            kinds = (self._level[index] > SPEAKING, self._pause[index])
            now.lip_path += np.multiply(kinds, abs(step))
            now.lip_frames += np.array(kinds, int)
        now.aperture[0], now.mouth[:] = aperture, mouth

    def _see_face(self, crop: np.ndarray, index: int) -> None:
        """Compare the head of each block of seconds with that of the first."""
        now, length = self._now, max(1, round(BLOCK_SECONDS * self._fps / HEAD_EVERY))
        part = 0 if now.head_count[0] < length else 1
        now.head_sum[part] += crop
        now.head_count[part] += 1
        if part and now.head_count[1] == length:
            reference, block = now.head_sum / now.head_count[:, None, None, None]
            drift = float(np.abs(block - reference).mean())
            if drift > now.drift[0]:
                now.drift[:] = drift, index - (length - 1) * HEAD_EVERY
            now.head_sum[1], now.head_count[1] = 0, 0

    def _see_movement(self, vertices: np.ndarray, index: int) -> None:
        now = self._now
        points = np.stack([mark(vertices) for mark in (self._marks.head, *self._marks.hands)])
        if index - now.first[0] >= 3:
            third = points - 3 * now.places[0] + 3 * now.places[1] - now.places[2]
            for name, jerk in zip(("head", "left", "right"), np.linalg.norm(third, axis=1), strict=True):
                self._parts[name].add(jerk * self._fps**3)
        now.places = np.stack([points, *now.places[:2]])

    def _see_picture(self, frame: np.ndarray, points: np.ndarray, index: int) -> None:
        now = self._now
        small = np.empty((SMALL, SMALL), np.float32)
        sample_luma(frame, small)
        person = self._covered(points)
        if index > now.first[0]:
            cell = SMALL // CELLS
            rows = np.abs(small - now.small).reshape(CELLS, cell, SMALL).sum(1)
            changes = rows.reshape(CELLS, CELLS, cell).sum(2) / cell**2
            background = ~(person | now.person)
            if background.mean() > 0.05:
                self._parts["flicker"].add(changes[background].mean())
            self._see_change(float(changes.mean()), index)
        now.small, now.person = small, person

    def _see_change(self, change: float, index: int) -> None:
        """How the change before this one stands out from its neighbours."""
        now = self._now
        middle, before = now.changes
        if index - now.first[0] >= 3:
            usual = (before + change) / 2
            kind = "border" if index - 1 in self._borders else "inside"
            self._parts[kind].add((middle + 0.05) / (usual + 0.05))
            if middle > JUMP * usual and middle - usual > JUMP_LEAST:
                remember(now.jumps, now.jump_frames, index - 1)
        now.changes[:] = change, middle

    def _covered(self, points: np.ndarray) -> np.ndarray:
        """Cells (CELLS, CELLS) in which the person may be: from the first to the last one of each row, and around."""
        scale = (CELLS / self._camera.width, CELLS / self._camera.height)
        x, y = np.floor(points * scale).astype(int).T
        seen = (y >= 0) & (y < CELLS)
        hit = np.zeros((CELLS + 2, CELLS + 2), bool)
        hit[y[seen] + 1, np.clip(x[seen], -1, CELLS) + 1] = True
        filled = np.logical_or.accumulate(hit, 1) & np.logical_or.accumulate(hit[:, ::-1], 1)[:, ::-1]
        filled = filled[:-2] | filled[1:-1] | filled[2:]
        return filled[:, :-2] | filled[:, 1:-1] | filled[:, 2:]

    def _see_head(self, seen: InPicture, index: int) -> None:
        now = self._now
        now.faces += (seen.head, seen.head and self._face_pass)
        if seen.hidden > HAND_SHARE:
            remember(now.clipped, now.clipped_frames, index)

    def finish(self) -> dict:
        """{"version", "verdict", "frames", "checks": [fields of `Check`]}. What was not measured spoils no verdict."""
        checks = [
            self._offset(), *self._lips(), self._drawn(), *self._jitter(), self._flicker(), *self._seams(),
            self._faces(), self._identity(), self._hands(),
        ]  # fmt: skip
        verdict = LOOK if any(check.verdict == LOOK for check in checks) else GOOD
        lines = [
            asdict(replace(check, value=None if check.value is None else round(check.value, 3))) for check in checks
        ]
        lines = [line | {"at": list(line["at"])} for line in lines]
        return {"version": VERSION, "verdict": verdict, "frames": self._seen, "checks": lines}

    @property
    def _seen(self) -> int:
        return max(int(self._now.frames[0] - self._now.first[0]), 1)

    def _seconds(self, frames: np.ndarray, count: int) -> tuple[float, ...]:
        return tuple(round(float(frame) / self._fps, 2) for frame in frames[: min(count, len(frames))])

    def _offset(self) -> Check:
        check = Check("av_offset", "Picture and sound", None, "frames", round(OFFSET_SECONDS * self._fps, 1), "", "")
        if self._level is None:
            return not_measured(check, "The video is silent.")
        late, agreement = self._parts["sound"].best()
        shift, drawn = self._parts["drawn"].best()
        if self._now.lip_frames[0] < LEAST["speech"] or agreement < AGREEMENT:
            return not_measured(check, "Mouth and loudness do not follow each other enough to be compared.")
        offset = late + (shift if drawn > DRAWN else 0.0)
        side = "behind" if offset > 0 else "ahead of"
        bad = f"The lips are {abs(offset):.1f} frames {side} the sound: use the motion that was made for this speech."
        return judge(check, abs(offset) <= check.threshold, offset, "The lips move with the sound.", bad)

    def _lips(self) -> list[Check]:
        speaking = Check("lips_speech", "Lips in speech", None, "mm/s", LIPS_SPEAKING, "", "")
        silent = Check("lips_silence", "Lips in silence", None, "share of speech", LIPS_SILENT, "", "")
        if self._level is None or self._marks.lips is None:
            reason = "The video is silent." if self._level is None else "This body has no lips to follow."
            return [not_measured(speaking, reason), not_measured(silent, reason)]
        frames = self._now.lip_frames
        talk, rest = self._now.lip_path / np.maximum(frames, 1) * self._fps
        if frames[0] < LEAST["speech"]:
            speaking = not_measured(speaking, "There is hardly any speech.")
        else:
            bad = "The mouth hardly moves while somebody speaks: is this the motion for this speech?"
            speaking = judge(speaking, talk >= LIPS_SPEAKING, talk, "The mouth moves while it speaks.", bad)
        if frames[1] < LEAST["pause"] or not talk:
            return [speaking, not_measured(silent, "The speech has no pauses.")]
        bad = "The mouth goes on moving in pauses: remove noise or music from the recording."
        return [speaking, judge(silent, rest <= LIPS_SILENT * talk, rest / talk, "The mouth rests in pauses.", bad)]

    def _drawn(self) -> Check:
        check = Check("lips_drawn", "Lips in the picture", None, "correlation", DRAWN, "", "")
        correlation: Correlation = self._parts["drawn"]
        count, _, path, *_ = correlation.sums[:, len(correlation.sums[0]) // 2]
        if count < LEAST["lips"] or path / count * self._fps < LIPS_SPEAKING / 4:
            return not_measured(check, "The mouth has too little to do.")
        value = max(0.0, correlation.best()[1])
        bad = "The picture's mouth does not follow the motion: switch the face pass on, or train this presenter longer."
        return judge(check, value >= DRAWN, value, "The picture's mouth follows the motion.", bad)

    def _jitter(self) -> list[Check]:
        checks = []
        for id, name, parts, most in (
            ("jitter_head", "Steady head", ("head",), HEAD_JERK),
            ("jitter_hands", "Steady hands", ("left", "right"), HAND_JERK),
        ):
            value = max(self._parts[part].quantile(0.5) for part in parts)
            check, what = Check(id, name, None, "m/s³", most, "", ""), name.split()[1]
            if not any(self._parts[part].counts.any() for part in parts):
                checks.append(not_measured(check, "The video is too short."))
                continue
            bad = f"The {what} tremble{'s' if what == 'head' else ''}: try another seed, or smooth the motion file."
            fine = f"The {what} move{'s' if what == 'head' else ''} smoothly."
            checks.append(judge(check, value <= most, value, fine, bad))
        return checks

    def _flicker(self) -> Check:
        check = Check("flicker", "Still background", None, "of 255", FLICKER, "", "")
        if not self._parts["flicker"].counts.any():
            return not_measured(check, "The person fills the picture.")
        value = self._parts["flicker"].quantile(0.9)
        bad = "The background flickers: choose the preset `best`, or an anchor with a background picture."
        return judge(check, value <= FLICKER, value, "The background stands still.", bad)

    def _seams(self) -> list[Check]:
        now, seams = self._now, Check("seams", "Window borders", None, "ratio", SEAM, "", "")
        if self._parts["border"].counts.sum() < LEAST["borders"]:
            reason = "Every frame is painted on its own." if not self._borders else "The video has too few windows."
            seams = not_measured(seams, reason)
        else:
            value = self._parts["border"].quantile(0.5) / max(self._parts["inside"].quantile(0.5), 0.1)
            bad = "The picture jumps where windows meet: raise `--overlap`."
            seams = judge(seams, value <= SEAM, value, "Windows join without a seam.", bad)
        jumps = Check("jumps", "Sudden jumps", None, "frames", 0, "", "")
        at = self._seconds(now.jump_frames, int(now.jumps[0]))
        bad = f"The picture jumps at {listed(at)}: look there, and try another seed if it shows."
        return [seams, replace(judge(jumps, not at, float(now.jumps[0]), "Nothing jumps.", bad), at=at)]

    def _faces(self) -> Check:
        now, check = self._now, Check("face_pass", "Face pass", None, "share of frames", FACE_SHARE, "", "")
        share = now.faces / self._seen
        if not self._face_pass:
            return not_measured(check, "The face pass was off: the presets `standard` and `best` have it.")
        bad = "The head leaves the picture: lower the gesture energy or choose another seed."
        return judge(check, share[1] >= FACE_SHARE, float(share[1]), "Every face was repainted.", bad)

    def _identity(self) -> Check:
        check = Check("identity", "Same person", None, "of 255", DRIFT, "", "")
        drift, frame = self._now.drift
        if not frame:
            return not_measured(check, "The video is too short to compare its parts.")
        at = self._seconds(np.array([frame]), 1) if drift > DRIFT else ()
        bad = f"The face looks different from the start at {listed(at)}: try another seed or train longer."
        return replace(judge(check, drift <= DRIFT, float(drift), "The face stays the same.", bad), at=at)

    def _hands(self) -> Check:
        check = Check("hands", "Hands in the picture", None, "share of frames", HANDS_CLIPPED, "", "")
        share = float(self._now.clipped[0] / self._seen)
        at = self._seconds(self._now.clipped_frames, int(self._now.clipped[0])) if share > HANDS_CLIPPED else ()
        bad = f"Hands are cut off by the picture's edge, first at {listed(at[:1])}: lower the gesture energy."
        return replace(judge(check, share <= HANDS_CLIPPED, share, "Hands stay in the picture.", bad), at=at)


# thresholds; in brackets what good renders show
OFFSET_SECONDS = 0.08  # s (< 0.01); people notice sound that is 0.045 s early or 0.125 s late
AGREEMENT = 0.2  # correlation of mouth and loudness (0.42 .. 0.66)
LIPS_SPEAKING = 25.0  # mm/s (70 .. 94)
LIPS_SILENT = 0.3  # of the speed in speech (0.03 .. 0.18)
DRAWN = 0.5  # correlation of the change of the drawn and the posed mouth (0.95)
HEAD_JERK, HAND_JERK = 25.0, 150.0  # m/s3 (2 .. 3, 5 .. 59)
FLICKER = 2.5  # of 255 (0 .. 0.5; an invisible watermark adds about 1)
SEAM = 1.25  # (0.95 .. 1.05)
JUMP, JUMP_LEAST = 2.5, 1.5  # times its neighbours' change and, of 255, above it (1.5, 1.2)
FACE_SHARE = 0.98
DRIFT = 18.0  # of 255, mean over an upright crop of the head averaged over 2 s (4 .. 14, the head turned; 24: another)
HAND_SHARE, HANDS_CLIPPED = 0.25, 0.1  # of a hand; of all frames (0 .. 0.07)


def judge(check: Check, good: bool, value: float, fine: str, bad: str) -> Check:
    return replace(check, value=float(value), verdict=GOOD if good else LOOK, sentence=fine if good else bad)


def not_measured(check: Check, reason: str) -> Check:
    return replace(check, verdict=NOT_MEASURED, sentence=reason)


def listed(seconds: tuple[float, ...]) -> str:
    return ", ".join(f"{second:.1f} s" for second in seconds)


def remember(count: np.ndarray, frames: np.ndarray, index: int) -> None:
    """Count an event and keep its frame if it is among the first."""
    if count[0] < len(frames):
        frames[count[0]] = index
    count += 1


@numba.njit(nogil=True, cache=True)
def sample_luma(picture, small):
    """small = luma (BT.601) of evenly spaced pixels of an RGB picture."""
    height, width = picture.shape[:2]
    rows, columns = small.shape
    places = np.arange(columns) * width // columns
    for row in range(rows):
        line = picture[row * height // rows]
        for column in range(columns):
            at = places[column]
            small[row, column] = 0.299 * line[at, 0] + 0.587 * line[at, 1] + 0.114 * line[at, 2]


def loudness(speech: Speech, fps: float, frames: int) -> np.ndarray:
    """(frames,) dB around each frame's time, relative to the loud parts of the speech."""
    power = np.concatenate([[0], np.cumsum(speech.samples.astype(np.float64) ** 2)])
    hop, middle = speech.sample_rate / fps, np.arange(frames) * speech.sample_rate / fps
    low, high = (np.clip(middle + side, 0, len(power) - 1).astype(int) for side in (-hop, hop))
    mean = (power[high] - power[low]) / np.maximum(high - low, 1)
    level = 10 * np.log10(np.maximum(mean, 1e-10))
    return level - max(np.percentile(level, 95), FAINTEST)


def pauses(level: np.ndarray, fps: float) -> np.ndarray:
    """(frames,) bool: well inside a pause."""
    from scipy.ndimage import maximum_filter1d

    return maximum_filter1d(level, 2 * round(PAUSE_EDGE * fps) + 1, mode="nearest") < SILENT


def window_borders(options: Preset, frames: int) -> set[int]:
    """The frames at which a window of the generator begins or has ended."""
    if options.windows == "shifted":
        windows = [window for step in range(len(PHASES)) for window in shifted_windows(frames, options.window, step)]
    else:
        windows = list(native_windows(frames, options.window, options.overlap))
    return {border for window in windows for border in (window.start, window.stop)} - {0, frames}


def as_text(report: dict, brief: bool = False) -> str:
    """The report for a terminal, one check a line; brief: only those that deserve a look."""
    marks = {GOOD: "ok  ", LOOK: "LOOK", NOT_MEASURED: " -  "}
    lines = [f"Quality: {report['verdict']}"]
    for check in report["checks"]:
        if brief and check["verdict"] != LOOK:
            continue
        lines.append(f"{marks[check['verdict']]}  {check['name']:22} {figure(check):24} {check['sentence']}".rstrip())
    return "\n".join(lines)


def as_html(report: dict) -> str:
    """The report as one panel (a <section class="quality"> with a table); whatever is in it, it holds no markup."""
    rows = []
    for check in report["checks"]:
        kind = str(check["verdict"]).replace(" ", "-")
        cells = (check["verdict"], check["name"], check["sentence"], figure(check))
        rows.append(
            f'<tr class="{html.escape(kind)}">' + "".join(f"<td>{html.escape(str(c))}</td>" for c in cells) + "</tr>"
        )
    verdict = html.escape(str(report["verdict"]))
    return f'<section class="quality"><h4>Quality: {verdict}</h4><table>{"".join(rows)}</table></section>'


def figure(check: dict) -> str:
    """Value, unit and limit as people read them; empty where nothing was measured."""
    if check["value"] is None:
        return ""
    return f"{check['value']:.3g} {check['unit']} (limit {check['threshold']:g})"
