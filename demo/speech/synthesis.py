"""Spoken sentences from espeak-ng, and the rooms they are heard in.

Voices and noises fall into three sets that share nothing: `train`, `dev` (to look at progress)
and `canary`. A corpus is a cached file of clean speech; noise, gain and silence are laid over it
by `in_room`, whose result has passed through mu-law like the recordings of the canary pool.
Everything follows from the seed.
"""

import random
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo.speech.features import SAMPLE_RATE_HZ, mu_law_decode, mu_law_encode

Sound = NDArray[np.float32]

ESPEAK_RATE_HZ = 22_050
SPEED_WORDS_PER_MINUTE = (130, 195)
PITCH = (25, 75)
SPEECH_RMS = 0.03
NOISE_BANK_S = 60
BABBLE_VOICES = 6
WORKERS = 2


@dataclass(frozen=True)
class Hall:
    """A set of voices and noises, and how loud and how long the silence around speech is."""

    accents: str
    variants: str
    noises: str
    snr_db: tuple[float, float]
    lead_s: tuple[float, float]
    tail_s: tuple[float, float]
    gain_db: tuple[float, float]


HALLS = {
    "train": Hall(
        "en-us en-gb en-gb-x-rp en-029 en-us-nyc en-gb-x-gbclan",
        "m1 m2 m3 m4 m5 m6 f1 f2 f3 f5 klatt klatt2 klatt3 Alex Alicia Andy Annie antonio benjamin "
        "boris caleb david Denis Diogo ed edward gustave Henrique Hugo iven Jacky john linda "
        "marcelo Marco Michael michel miguel plain pablo paul pedro rob robert travis plain",
        "white pink hum babble",
        (10, 32),
        (0.025, 0.3),
        (0.2, 0.4),
        (-6, 6),
    ),
    "dev": Hall(
        "en-us en-gb en-us-nyc en-gb-x-gbclan",
        "max steph sandro shelby adam",
        "babble",
        (12, 25),
        (0.05, 0.2),
        (0.2, 0.3),
        (-6, 6),
    ),
    "canary": Hall(
        "en-us en-gb en-gb-x-rp en-gb-scotland en-gb-x-gbcwmd",
        "m7 m8 anika klatt4 Andrea Lee Mario belinda quincy steph2 victor Gene",
        "brown fan babble",
        (16, 28),
        (0.03, 0.1),
        (0.18, 0.22),
        (-6, 0),
    ),
}


@dataclass(frozen=True)
class Corpus:
    """Clean speech: one text, one tag and one sound (float32, 16 kHz) per utterance."""

    hall: str
    tag: str
    texts: list[str]
    sounds: list[Sound]


def corpus(
    build: Path,
    name: str,
    hall: str,
    tag: str,
    count: int,
    seed: int,
    sentence: Callable[[random.Random], str],
) -> Corpus:
    """Returns `count` spoken sentences, from the cache in `build` if they are there."""
    path = build / f"corpus-{name}-{count}-{seed}.npz"
    if not path.exists():
        print(f"speaking {count} sentences for {name}", flush=True)
        rng = random.Random(f"{name}/{seed}")
        texts = [sentence(rng) for _ in range(count)]
        orders = [(text, *_voice(rng, HALLS[hall])) for text in texts]
        with ThreadPoolExecutor(WORKERS) as pool:
            sounds = list(pool.map(lambda order: _speak(*order), orders))
        lengths = np.array([len(sound) for sound in sounds])
        part = path.with_suffix(".part.npz")
        np.savez(part, texts=np.array(texts), lengths=lengths, sound=np.concatenate(sounds))
        part.rename(path)
    with np.load(path) as stored:
        cuts = np.cumsum(stored["lengths"])[:-1]
        spoken: list[Sound] = [
            s.astype(np.float32) / np.float32(32_768) for s in np.split(stored["sound"], cuts)
        ]
        return Corpus(hall, tag, [str(text) for text in stored["texts"]], spoken)


def _voice(rng: random.Random, hall: Hall) -> tuple[str, int, int]:
    voice = f"{rng.choice(hall.accents.split())}+{rng.choice(hall.variants.split())}"
    return voice.removesuffix("+plain"), rng.randint(*SPEED_WORDS_PER_MINUTE), rng.randint(*PITCH)


def _speak(text: str, voice: str, speed: int, pitch: int) -> NDArray[np.int16]:
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    at = wav.index(b"data") + 8
    sound = np.frombuffer(wav[at : at + (len(wav) - at) // 2 * 2], "<i2").astype(np.float64)
    loud = np.flatnonzero(np.abs(sound) > 0.01 * np.abs(sound).max())
    return _resample(sound[loud[0] : loud[-1] + 1])


def _resample(sound: NDArray[np.float64]) -> NDArray[np.int16]:
    """Takes 22.05 kHz to 16 kHz by cutting the spectrum; 441 samples become 320."""
    blocks = -(-len(sound) // 441) + 1
    spectrum = np.fft.rfft(sound, blocks * 441)[: blocks * 160 + 1] * (320 / 441)
    slow = np.fft.irfft(spectrum, blocks * 320)[: len(sound) * 320 // 441]
    return np.clip(np.round(slow), -32_768, 32_767).astype(np.int16)


def in_room(
    sound: Sound, hall: str, noises: dict[str, Sound], rng: random.Random
) -> tuple[NDArray[np.int16], int]:
    """Lays silence, noise and a random gain around speech and passes it through mu-law.

    Returns the int16 samples and the sample at which speech begins.
    """
    place = HALLS[hall]
    lead = int(rng.uniform(*place.lead_s) * SAMPLE_RATE_HZ)
    tail = int(rng.uniform(*place.tail_s) * SAMPLE_RATE_HZ)
    whole = np.zeros(lead + len(sound) + tail, np.float32)
    whole[lead : lead + len(sound)] = sound * (SPEECH_RMS / _rms(sound))
    noise = noises[rng.choice(sorted(noises))]
    start = rng.randrange(len(noise) - len(whole))
    level = SPEECH_RMS * 10 ** (-rng.uniform(*place.snr_db) / 20)
    whole += noise[start : start + len(whole)] * np.float32(level)
    whole *= np.float32(10 ** (rng.uniform(*place.gain_db) / 20))
    samples = np.clip(np.round(whole * 32_768), -32_768, 32_767).astype(np.int16)
    return mu_law_decode(mu_law_encode(samples)), lead


def noise_bank(hall: str, speech: Corpus, seed: int) -> dict[str, Sound]:
    """Returns a minute of every noise of a hall, each at a root mean square of one."""
    rng = np.random.default_rng([seed, len(hall)])
    return {kind: _noise(kind, speech, rng) for kind in HALLS[hall].noises.split()}


def _noise(kind: str, speech: Corpus, rng: np.random.Generator) -> Sound:
    count = NOISE_BANK_S * SAMPLE_RATE_HZ
    seconds = np.arange(count) / SAMPLE_RATE_HZ
    if kind == "babble":
        sound = np.zeros(count)
        for _ in range(BABBLE_VOICES):
            order = rng.permutation(len(speech.sounds))[:NOISE_BANK_S]
            line = np.concatenate([speech.sounds[i] / _rms(speech.sounds[i]) for i in order])
            sound += np.resize(line, count)
    elif kind == "hum":
        base = rng.uniform(48, 62)
        sound = sum(
            (np.sin(2 * np.pi * base * k * seconds + k) / k for k in range(1, 12)), np.zeros(count)
        )
        sound += 0.1 * rng.standard_normal(count)
    else:
        slope = {"white": 0.0, "pink": -0.5, "brown": -1.0, "fan": -0.8}[kind]
        hertz = np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE_HZ), 30)
        shape = hertz**slope
        if kind == "fan":
            shape *= 1 + 3 * np.exp(-(((hertz - 420) / 60) ** 2))
        sound = np.fft.irfft(np.fft.rfft(rng.standard_normal(count)) * shape, count)
        if kind == "fan":
            sound *= 1 + 0.3 * np.sin(2 * np.pi * 3.1 * seconds)
    return (sound / _rms(sound)).astype(np.float32)


def _rms(sound: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))) + 1e-9
