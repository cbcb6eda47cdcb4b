"""`launch.py batch`: a list is checked as a whole, rendered one by one, and taken up again."""

import json
import shutil

import pytest

from avatar_app import RenderSettings, batch
from avatar_app.cli import main
from avatar_app.video import probe
from tests.speech import write_speech


@pytest.fixture
def place(tmp_path, tmp_path_factory, tiny_anchor, monkeypatch):
    """A folder with a speech and two presenters, `one` and `two`."""
    people = tmp_path_factory.mktemp("people")
    for name in ("one", "two"):
        shutil.copytree(tiny_anchor.folder, people / name)
        facts = json.loads((people / name / "anchor.json").read_text())
        (people / name / "anchor.json").write_text(json.dumps(facts | {"id": name}))
    monkeypatch.setenv("AVATAR_APP_ANCHORS", str(people))
    monkeypatch.setenv("AVATAR_APP_CACHE", str(tmp_path_factory.mktemp("cache")))
    (tmp_path / "sound").mkdir()
    write_speech(tmp_path / "sound" / "hello world.wav", 0.4)
    return tmp_path


def test_every_speech_with_every_presenter_then_again(place, capsys):
    table = place / "list.csv"
    table.write_text(
        "\ufeffSpeech;anchor;preset;seed;out;credentials\nsound/hello world.wav; one|two ;draft;7;;no\n;;;;;\n"
    )
    assert main(["batch", str(table), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "2 of 2 to make: about" in told and "hello-world-one-7.mp4" in told and "MB on the disk" in told
    assert sorted(file.name for file in place.iterdir()) == ["list.csv", "sound"]

    assert main(["batch", str(table)]) == 0
    assert "2 done." in capsys.readouterr().out
    videos = sorted(file.name for file in place.glob("*.mp4"))
    assert videos == ["hello-world-one-7.mp4", "hello-world-two-7.mp4"]
    assert probe(place / "hello-world-two-7.mp4").frames == 10 and not list(place.glob(".*"))
    assert json.loads((place / "hello-world-two-7.json").read_text())["settings"]["seed"] == 7

    (place / "words.srt").write_text("1\n00:00:00,000 --> 00:00:00,300\nHello\n")
    text = (
        table.read_text("utf-8-sig").replace(";;no", ";;no;words.srt").replace("credentials", "credentials;subtitles")
    )
    table.write_text(text)
    assert main(["batch", str(table)]) == 0
    assert "2 done." in capsys.readouterr().out  # without subtitles they are other videos
    assert json.loads((place / "hello-world-two-7.json").read_text())["subtitles"]["count"] == 1

    before = (place / "hello-world-two-7.mp4").stat().st_mtime_ns
    (place / "hello-world-one-7.mp4").unlink()
    assert main(["batch", str(table)]) == 0
    assert "1 done, 1 was there." in capsys.readouterr().out
    assert (place / "hello-world-two-7.mp4").stat().st_mtime_ns == before


def test_all_faults_come_in_one_table_before_anything_is_made(place, capsys):
    table = place / "list.csv"
    table.write_text(
        "speech,anchor,preset,seed,out\n"
        "sound/hello world.wav,one,draft,,a.mp4\n"
        "sound/nothing.wav,one,draft,,b.mp4\n"
        "sound/hello world.wav,nobody,draft,,c.mp4\n"
        "sound/hello world.wav,one,fast,,d.mp4\n"
        "sound/hello world.wav,one,,many,e.mp4\n"
        "sound/hello world.wav,two,,,a.mp4\n"
        "sound/hello world.wav,two,,,a.avi\n"
        ",two,,,f.mp4\n"
        "sound/hello world.wav,one,draft,1,g.mp4,more\n"
    )
    assert main(["batch", str(table)]) == 2
    told = capsys.readouterr()
    rows = [line.split()[:2] for line in told.err.splitlines()[1:-1]]
    assert [row[0] for row in rows] == ["3", "4", "5", "6", "7", "8", "9", "10"]
    assert [row[1] for row in rows][:7] == ["speech", "anchor", "settings", "settings", "out", "out", "speech"]
    assert told.err.splitlines()[-1] == "avatar_app: list.csv has 8 fault(s); nothing was made."
    assert not list(place.glob("*.mp4")) and told.out == ""


def test_no_video_replaces_a_speech_of_another_line(place, capsys):
    shutil.copy(place / "sound" / "hello world.wav", place / "two.mp4")
    (place / "list.csv").write_text("speech,out,anchor\nsound/hello world.wav,two.mp4,one\ntwo.mp4,b.mp4,one\n")
    assert main(["batch", str(place / "list.csv")]) == 2
    assert "'two.mp4' would replace a speech of this list" in capsys.readouterr().err


def test_folders_of_presenters_may_lie_beside_the_list(place, tiny_anchor, capsys):
    shutil.copytree(tiny_anchor.folder, place / "mine")
    (place / "one").mkdir()  # a folder of something else: the presenter of this id is meant
    (place / "list.csv").write_text("speech,anchor\nsound/hello world.wav,mine|one\n")
    assert main(["batch", str(place / "list.csv"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "hello-world-tiny.mp4" in told and "hello-world-one.mp4" in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needs a first line"),
        ("audio,anchor\na,b\n", "needs a first line"),
        ("speech,speed\na,b\n", "'speed' of 'list.csv' is unknown; known are speech, out"),
        ("speech,seed,seed\na,1,2\n", "'seed' of 'list.csv' is twice"),
        ("speech\n\n", "names no speech"),
        ('"speech,anchor\na,b\n', "is not CSV"),
    ],
)
def test_lists_that_are_none(place, text, words, capsys):
    (place / "list.csv").write_text(text)
    assert main(["batch", str(place / "list.csv")]) == 2
    assert words in capsys.readouterr().err
    assert main(["batch", str(place / "nowhere.csv")]) == 2


def test_one_failure_stops_no_other(place, monkeypatch):
    (place / "list.csv").write_text("speech,anchor,preset\nsound/hello world.wav,one|two,draft\n")
    items, faults = batch.read_list(place / "list.csv", RenderSettings(credentials=False))
    assert not faults and [item.anchor.id for item in items] == ["one", "two"]

    def fail_first(speech, anchor, out, *more, **options):
        if out == items[0].out:
            raise batch.VideoError("ffmpeg said: no")
        out.write_bytes(b"video")

    monkeypatch.setattr(batch, "render", fail_first)
    outcomes = batch.run(items, lambda item: lambda stage, done, total: None)
    assert [outcome.state for outcome in outcomes] == [batch.FAILED, batch.DONE]
    assert "ffmpeg said: no" in batch.summary(outcomes) and "1 done, 1 failed." in batch.summary(outcomes)
