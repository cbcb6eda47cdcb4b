"""Look at a finished video with somebody else's eyes: MediaPipe's face detector and face mesh.

    pip install mediapipe==0.10.14 imageio-ffmpeg      # in an environment of its own: it needs numpy < 2
    python benchmarks/face_check.py VIDEO [VIDEO ...]

Prints the share of frames with a detected face and how the opening of the inner lips follows the loudness of the sound
(Pearson r at lag 0 and at the best lag within 5 frames; a positive lag means that the lips come later).
"""

import re
import subprocess
import sys

import imageio_ffmpeg
import mediapipe
import numpy as np

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
UPPER_LIP, LOWER_LIP, FOREHEAD, CHIN = 13, 14, 10, 152  # MediaPipe's landmark numbers
MAX_LAG = 5


def read(video: str) -> tuple[np.ndarray, np.ndarray]:
    """RGB frames (N, H, W, 3) uint8 and the sound as 16 kHz mono float32."""
    told = subprocess.run([FFMPEG, "-i", video], capture_output=True, text=True).stderr
    width, height = map(int, re.search(r" (\d{2,5})x(\d{2,5})", told).groups())

    def decode(*options: str) -> bytes:
        return subprocess.run([FFMPEG, "-v", "error", "-i", video, *options, "-"], capture_output=True).stdout

    frames = np.frombuffer(decode("-f", "rawvideo", "-pix_fmt", "rgb24"), np.uint8).reshape(-1, height, width, 3)
    return frames, np.frombuffer(decode("-vn", "-ac", "1", "-ar", "16000", "-f", "f32le"), np.float32)


def lip_opening(frames: np.ndarray) -> np.ndarray:
    """(N,) inner lip distance over face height; NaN where no face mesh is found."""
    mesh = mediapipe.solutions.face_mesh.FaceMesh(max_num_faces=1, refine_landmarks=True)
    opening = np.full(len(frames), np.nan)
    for n, frame in enumerate(frames):
        faces = mesh.process(frame).multi_face_landmarks
        if faces:
            size = np.array(frame.shape[1::-1])
            points = np.array([(p.x, p.y) for p in faces[0].landmark]) * size
            gap, height = points[UPPER_LIP] - points[LOWER_LIP], points[FOREHEAD] - points[CHIN]
            opening[n] = np.linalg.norm(gap) / np.linalg.norm(height)
    return opening


def loudness(sound: np.ndarray, count: int, fps: float = 30.0) -> np.ndarray:
    """(count,) log energy of the sound during each frame."""
    edges = (np.arange(count + 1) / fps * 16000).astype(int)
    parts = [sound[a:b] for a, b in zip(edges, edges[1:])]  # noqa: B905 (Python 3.9 environments)
    return np.log([np.sqrt(np.mean(part**2)) + 1e-4 if len(part) else 1e-4 for part in parts])


def correlation(lips: np.ndarray, sound: np.ndarray, lag: int) -> float:
    count = len(lips) - abs(lag)
    a, b = lips[max(lag, 0) :][:count], sound[max(-lag, 0) :][:count]
    good = np.isfinite(a)
    return float(np.corrcoef(a[good], b[good])[0, 1])


def main() -> None:
    detector = mediapipe.solutions.face_detection.FaceDetection(model_selection=1, min_detection_confidence=0.5)
    print("| video | frames | face found | r at lag 0 | best r | at lag |\n|---|---|---|---|---|---|")
    for video in sys.argv[1:]:
        frames, sound = read(video)
        found = np.mean([bool(detector.process(frame).detections) for frame in frames])
        lips, energy = lip_opening(frames), loudness(sound, len(frames))
        scores = {lag: correlation(lips, energy, lag) for lag in range(-MAX_LAG, MAX_LAG + 1)}
        best = max(scores, key=scores.get)
        print(f"| {video} | {len(frames)} | {found:.3f} | {scores[0]:.2f} | {scores[best]:.2f} | {best} |", flush=True)


if __name__ == "__main__":
    main()
