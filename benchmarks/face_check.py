"""Look at a finished video with somebody else's eyes: MediaPipe's detectors of faces, face meshes and hands.

    pip install mediapipe==0.10.14 imageio-ffmpeg      # in an environment of its own: it needs numpy < 2
    python benchmarks/face_check.py VIDEO [VIDEO ...] [--truth VIDEO]

Prints the share of frames with a detected face, the mean number of detected hands, the share of the truth's hands that
are found in the video too (`launch.py bench anchors --save FOLDER` writes such pairs), and how the opening of the inner
lips follows the loudness of the sound: Pearson r at lag 0 and at the best lag within 5 frames; with a positive lag the
lips come later.
"""

import argparse
import re
import subprocess

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


def hand_counts(frames: np.ndarray) -> np.ndarray:
    """(N,) number of hands found in each frame, every frame by itself."""
    finder = mediapipe.solutions.hands.Hands(static_image_mode=True, max_num_hands=2, min_detection_confidence=0.5)
    return np.array([len(finder.process(frame).multi_hand_landmarks or ()) for frame in frames])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--truth", help="video of the same motion, filmed")
    options = parser.parse_args()
    detector = mediapipe.solutions.face_detection.FaceDetection(model_selection=1, min_detection_confidence=0.5)
    columns = (
        "video",
        "frames",
        "face found",
        "hands a frame",
        "of the truth's hands",
        "r at lag 0",
        "best r",
        "at lag",
    )
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    true_hands = hand_counts(read(options.truth)[0]) if options.truth else None
    for video in options.videos:
        frames, sound = read(video)
        found = np.mean([bool(detector.process(frame).detections) for frame in frames])
        hands = hand_counts(frames)
        kept = "-" if true_hands is None else f"{np.minimum(hands, true_hands).sum() / true_hands.sum():.3f}"
        row = [video, len(frames), f"{found:.3f}", f"{hands.mean():.2f}", kept, "-", "-", "-"]
        if len(sound):
            lips, energy = lip_opening(frames), loudness(sound, len(frames))
            scores = {lag: correlation(lips, energy, lag) for lag in range(-MAX_LAG, MAX_LAG + 1)}
            best = max(scores, key=scores.get)
            row[-3:] = f"{scores[0]:.2f}", f"{scores[best]:.2f}", best
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
