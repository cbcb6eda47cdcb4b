"""Record a neural voice: many utterances with their phones, as a folder that corpus.py and the evaluation read.

    python -m talkshow_bridge.training.synthesise joe --minutes 25 --texts RECORDINGS --out work/lips/joe
    python -m talkshow_bridge.training.synthesise kokoro --minutes 12 --texts RECORDINGS --out work/lips/kokoro
    python -m talkshow_bridge.training.synthesise hibari --minutes 3 --texts RECORDINGS --out work/lips/hibari
    python -m talkshow_bridge.training.synthesise ked --minutes 3 --texts RECORDINGS --out work/lips/ked

Hibari (a woman) and ked (Festival's diphones of a man) are for choosing thresholds and never trained on. Kokoro takes
about as long as it speaks. A run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from talkshow_bridge.features import SAMPLE_RATE
from talkshow_bridge.training.neural_voices import KOKORO_VOICES, Hibari, Kokoro, Piper
from talkshow_bridge.training.recordings import PHONES_FILE, held_out, load_alignments
from talkshow_bridge.training.sentences import SENTENCES, word_salad
from talkshow_bridge.training.voices import FESTIVAL_HELD_OUT, Utterance, festival

KOKORO_LANGUAGES = {"en-us": 0.3, "es": 0.25, "it": 0.12, "pt-br": 0.12, "fr": 0.11, "de": 0.1}
MALE_SHARE = 0.6  # of Kokoro's utterances; it has one male voice, mixed with the others in turn


def joe(texts: list[str], rng: np.random.Generator) -> Iterator[Utterance]:
    voice = Piper()
    while True:
        yield voice.speak(str(rng.choice(texts)), "en-us", rng.uniform(0.8, 1.25))


def hibari(texts: list[str], rng: np.random.Generator) -> Iterator[Utterance]:
    voice = Hibari()
    while True:
        yield voice.speak(str(rng.choice(texts)), rng.uniform(0.85, 1.15))


def ked(texts: list[str], rng: np.random.Generator) -> Iterator[Utterance]:
    while True:
        yield from festival([str(text) for text in rng.choice(texts, 10)], FESTIVAL_HELD_OUT, rng.uniform(0.85, 1.15))


def kokoro(texts: list[str], rng: np.random.Generator) -> Iterator[Utterance]:
    voice = Kokoro()
    women = [name for name in KOKORO_VOICES if name.startswith("jf")]
    foreign = {
        name: SENTENCES.get(name, []) + word_salad(name, 300, rng) for name in KOKORO_LANGUAGES if name[:2] != "en"
    }
    while True:
        language = str(rng.choice(list(KOKORO_LANGUAGES), p=list(KOKORO_LANGUAGES.values())))
        first = "jm_kumo" if rng.random() < MALE_SHARE else str(rng.choice(women))
        share = rng.uniform(0.6, 1.0)
        mixture = {first: share}
        other = str(rng.choice([name for name in women if name != first]))
        mixture[other] = 1 - share
        yield voice.speak(str(rng.choice(foreign.get(language, texts))), language, mixture, rng.uniform(0.85, 1.2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("voice", choices=("joe", "kokoro", "hibari", "ked"))
    parser.add_argument("--texts", type=Path, required=True, help="recordings whose English training texts are spoken")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    entries = load_alignments(arguments.texts)
    texts = [entry["text"] for name, entry in entries.items() if not held_out(name)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    index = arguments.out / PHONES_FILE
    done = json.loads(index.read_text()) if index.exists() else {}
    rng = np.random.default_rng(len(done))
    speak = {"joe": joe, "kokoro": kokoro, "hibari": hibari, "ked": ked}[arguments.voice]
    for spoken in speak(texts, rng):
        if sum(entry["dur"] for entry in done.values()) > arguments.minutes * 60:
            break
        name = f"{arguments.voice}_{len(done):04}"
        samples = soxr.resample(spoken.samples, spoken.rate, SAMPLE_RATE)
        soundfile.write(arguments.out / f"{name}.flac", samples * (0.7 / np.abs(samples).max()), SAMPLE_RATE)
        phones = [(round(float(start), 4), round(float(end), 4), letter) for start, end, letter in spoken.parts]
        done[name] = {"dur": len(samples) / SAMPLE_RATE, "phones": phones}
        index.write_text(json.dumps(done, ensure_ascii=False))


if __name__ == "__main__":
    main()
