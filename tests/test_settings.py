import json

import pytest

from avatar_app import RenderSettings
from talkshow_bridge.errors import InputError


def test_round_trip_through_json_and_side_car(tmp_path):
    settings = RenderSettings(anchor="anna", preset="draft", seed=7, gesture_energy=1.5, steps=3, face=False)
    assert RenderSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    (tmp_path / "video.json").write_text(json.dumps({"settings": settings.to_dict(), "timings_s": {}}))
    assert RenderSettings.load(tmp_path / "video.json") == settings
    assert settings.sampler_overrides() == {"steps": 3, "face": False}


@pytest.mark.parametrize(
    "wrong",
    [
        {"preset": "ultra"}, {"seed": -1}, {"seed": 1.5}, {"seed": None}, {"seed": True}, {"gesture_energy": 3},
        {"gesture_energy": float("nan")}, {"steps": 0}, {"window": 4, "overlap": 4}, {"crf": 99}, {"face": "yes"},
        {"anchor": 3}, {"speed": 1},
    ],
)  # fmt: skip
def test_nonsense_is_refused_in_one_sentence(wrong):
    with pytest.raises(InputError) as caught:
        RenderSettings.from_dict(wrong)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("content", ["{", "[1]", '{"settings": 3}'])
def test_files_that_hold_no_settings(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match="settings"):
        RenderSettings.load(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot be read"):
        RenderSettings.load(tmp_path / "missing.json")
