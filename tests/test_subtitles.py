"""Subtitles from a file into the video, and the comparison of the face pass that a render keeps."""

import json
import subprocess

import numpy as np
import pytest
from PIL import Image

from avatar_app.cli import main
from avatar_app.comparison import FaceComparison
from avatar_app.pipeline import FACE_COMPARISON, render
from avatar_app.settings import RenderSettings
from avatar_app.subtitles import load_subtitles
from avatar_app.trust.credentials import read
from avatar_app.video import probe
from talkshow_bridge.audio import ffmpeg_path
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import ARKIT_52, Motion
from tests.speech import write_speech

SRT = """1
00:00:00,100 --> 00:00:00,500
Good <i>evening</i>,
<script>alert(1)</script>你好 & welcome

2
00:00:00,400 --> 00:00:09,000
to the news.

3
01:00:00,000 --> 01:00:01,000
Much later.
"""
VTT = "WEBVTT\nKind: captions\nLanguage: de\n\nNOTE none\n\n00:00.100 --> 00:00.400 align:start\n<v Ann>Guten Abend\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_srt_becomes_clean_text(tmp_path, encoding):
    (tmp_path / "talk.ZH.srt").write_text(SRT, encoding=encoding)
    read = load_subtitles(tmp_path / "talk.ZH.srt")
    assert (read.language, read.language_code, len(read.cues)) == ("zh", "zho", 3)
    assert read.cues[0] == (0.1, 0.5, "Good <i>evening</i>,\nalert(1)你好 & welcome")
    cut = read.until(2.0)
    assert [cue[:2] for cue in cut.cues] == [(0.1, 0.5), (0.4, 2.0)]
    (tmp_path / "again.vtt").write_text(cut.as_vtt(), encoding="utf-8")
    assert load_subtitles(tmp_path / "again.vtt") == cut
    with pytest.raises(InputError, match="after the end"):
        read.until(0.05)


def test_vtt_tells_its_language(tmp_path):
    (tmp_path / "talk.en.vtt").write_text(VTT)
    read = load_subtitles(tmp_path / "talk.en.vtt")
    assert (read.language_code, read.cues) == ("deu", ((0.1, 0.4, "Guten Abend"),))
    (tmp_path / "final.srt").write_text(SRT)
    assert load_subtitles(tmp_path / "final.srt").language_code == "und"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.srt", b"", "no subtitles"),
        ("a.srt", b"hello\nworld", "no subtitles"),
        ("a.vtt", b"WEBVTT\n", "no subtitles"),
        ("a.srt", b"1\n00:00:00,000 --> 00:00:01,000\n\xff\xfe\xff", "UTF-8"),
        ("a.srt", b"1\n00:00:00,000 --> 00:00:01,000\n\0", "UTF-8"),
        ("a.srt", b"x" * (2**20 + 1), "too large"),
        ("a.txt", SRT.encode(), r"\.srt or \.vtt"),
        ("none.srt", None, "cannot be read"),
    ],
)
def test_bad_files_end_in_one_sentence(tmp_path, name, data, words):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=words):
        load_subtitles(tmp_path / name)


def test_the_video_carries_them_under_its_signature(tiny_anchor, tmp_path, capsys):
    speech, out = write_speech(tmp_path / "speech.wav", 0.8), tmp_path / "out.mp4"
    (tmp_path / "talk.zh.srt").write_text(SRT, encoding="utf-8")
    command = ["render", str(speech), "--anchor", str(tiny_anchor.folder), "--preset", "draft", "--out", str(out)]
    assert main([*command, "--subtitles", str(tmp_path / "speech.wav")]) == 2 and not out.exists()
    assert main([*command, "--subtitles", str(tmp_path / "talk.zh.srt")]) == 0
    told = subprocess.run(
        [ffmpeg_path(), "-i", str(out), "-map", "0:s:0", "-f", "srt", "-"], capture_output=True, text=True
    )
    assert "(zho): Subtitle: mov_text" in told.stderr and "to the news." in told.stdout
    assert (probe(out).frames, read(out).state in ("trusted", "valid")) == (20, True)
    facts = json.loads(out.with_suffix(".json").read_text())["subtitles"]
    assert (facts["language"], facts["count"]) == ("zh", 2)


def test_a_render_keeps_the_face_before_and_after(tiny_anchor, tmp_path):
    speech, kept = write_speech(tmp_path / "speech.wav", 0.8), tmp_path / "work" / FACE_COMPARISON
    settings = RenderSettings(preset="standard", credentials=False)
    render(speech, tiny_anchor.folder, tmp_path / "a.mp4", settings, work=tmp_path / "work")
    before, after = np.split(np.asarray(Image.open(kept).convert("L"), float), 2, axis=1)
    assert before.shape[0] == before.shape[1] and np.abs(before - after).max() > 5
    without = RenderSettings(preset="standard", credentials=False, face=False)
    render(speech, tiny_anchor.folder, tmp_path / "b.mp4", without, work=tmp_path / "work")
    assert not kept.exists()


def test_the_comparison_shows_where_most_was_done(tmp_path):
    path, frames, motion = tmp_path / "face.jpg", np.zeros((9, 64, 48, 3), np.uint8), Motion.rest(9, 3.0)
    changed = frames.copy()
    for frame, light in ((0, 40), (2, 250), (4, 200), (8, 90)):
        changed[frame, :16, 20:36] = light
    motion.expression[2, ARKIT_52.index("eyeBlinkRight")] = 1  # blinks are passed over
    FaceComparison(path, motion, lambda both: both).look(0, frames[:5], changed[:5])
    FaceComparison(path, motion, lambda both: both).look(5, frames[5:], changed[5:])  # another run goes on
    with Image.open(path) as picture:
        assert picture.size == (48, 24)  # 1.5 times what changed, twice
        assert 180 < np.asarray(picture)[4, 24 + 12].min() < 220
