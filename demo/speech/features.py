"""From sound to numbers: mu-law WAV files and log-mel features, with numpy alone.

A canary recording is a mono 16 kHz WAV file in 8-bit mu-law (ITU-T G.711), which any player
plays. Training passes its sound through the same mu-law codes, so that the coding costs the
recogniser nothing. Features are 40 log-mel bands every 10 ms over windows of 25 ms; nothing
looks ahead further than its own window, so they can be computed while someone speaks.
"""

import struct
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
FFT_SAMPLES = 512
BANDS = 40
BAND_LOW_HZ, BAND_HIGH_HZ = 60.0, 7_600.0
POWER_FLOOR = 1e-5
MU_LAW_FORMAT = 7
MU_LAW_BIAS = 132
MU_LAW_PEAK = 32_635
RECORDING_SAMPLES_MAX = 30 * SAMPLE_RATE_HZ


class BadRecording(ValueError):
    """A recording is not a mono 16 kHz mu-law WAV file, or has an impossible length."""


def log_mel(samples: NDArray[np.int16], warp: float = 1.0) -> Array:
    """Returns log-mel features of shape (frames, 40) of int16 samples.

    `warp` stretches the frequency axis (vocal tract length perturbation, Jaitly and Hinton
    2013); the device always uses 1.
    """
    signal = samples.astype(np.float32) / 32_768
    frames = max(0, (len(signal) - WINDOW_SAMPLES) // HOP_SAMPLES + 1)
    if frames == 0:
        return np.zeros((0, BANDS), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(signal, WINDOW_SAMPLES)[::HOP_SAMPLES]
    spectrum = np.fft.rfft(windows * _window(), FFT_SAMPLES, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    bands: Array = np.log(power @ mel_filters(warp) + np.float32(POWER_FLOOR))
    return bands


@cache
def _window() -> Array:
    return np.hanning(WINDOW_SAMPLES).astype(np.float32)


@cache
def mel_filters(warp: float = 1.0) -> Array:
    """Returns triangular mel filters of shape (257, 40), mel = 2595 log10(1 + f / 700)."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (BAND_LOW_HZ, BAND_HIGH_HZ))
    mel = np.linspace(low, high, BANDS + 2)
    edges = np.minimum(700 * (10 ** (mel / 2595) - 1) * warp, SAMPLE_RATE_HZ / 2)
    bins = np.arange(FFT_SAMPLES // 2 + 1)[:, None] * (SAMPLE_RATE_HZ / FFT_SAMPLES)
    rising = (bins - edges[:-2]) / np.maximum(edges[1:-1] - edges[:-2], 1e-3)
    falling = (edges[2:] - bins) / np.maximum(edges[2:] - edges[1:-1], 1e-3)
    filters: Array = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    return filters


def mu_law_encode(samples: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Returns the mu-law code (ITU-T G.711) of each int16 sample."""
    wide = samples.astype(np.int32)
    magnitude = np.minimum(np.abs(wide), MU_LAW_PEAK) + MU_LAW_BIAS
    exponent = np.frexp(magnitude.astype(np.float64))[1] - 8
    mantissa = (magnitude >> (exponent + 3)) & 15
    codes: NDArray[np.uint8] = (~(((wide < 0) << 7) | (exponent << 4) | mantissa) & 255).astype(
        np.uint8
    )
    return codes


def mu_law_decode(codes: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Returns the int16 sample that each mu-law code (ITU-T G.711) stands for."""
    bits = ~codes.astype(np.int32)
    magnitude = ((((bits & 15) << 3) + MU_LAW_BIAS) << ((bits >> 4) & 7)) - MU_LAW_BIAS
    return np.where(bits & 128, -magnitude, magnitude).astype(np.int16)


def write_wav(samples: NDArray[np.int16]) -> bytes:
    """Returns a mono 16 kHz mu-law WAV file of int16 samples."""
    sound = mu_law_encode(samples).tobytes()
    form = struct.pack("<HHIIHHH", MU_LAW_FORMAT, 1, SAMPLE_RATE_HZ, SAMPLE_RATE_HZ, 1, 8, 0)
    fact = struct.pack("<I", len(sound))
    chunks = [(b"fmt ", form), (b"fact", fact), (b"data", sound)]
    body = b"".join(k + struct.pack("<I", len(v)) + v + b"\0" * (len(v) % 2) for k, v in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def read_wav(data: bytes) -> NDArray[np.int16]:
    """Returns the int16 samples of a mono 16 kHz mu-law WAV file, or raises BadRecording."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise BadRecording("not a WAV file")
    chunks: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + size > len(data):
            raise BadRecording("WAV file is cut short")
        chunks[data[at : at + 4]] = data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    form, sound = chunks.get(b"fmt ", b""), chunks.get(b"data", b"")
    if len(form) < 16:
        raise BadRecording("WAV file has no format chunk")
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", form[:16])
    if (kind, channels, bits) != (MU_LAW_FORMAT, 1, 8):
        raise BadRecording(f"WAV is not mono 8-bit mu-law: {kind=} {channels=} {bits=}")
    if rate != SAMPLE_RATE_HZ:
        raise BadRecording(f"sample rate is {rate} Hz, not {SAMPLE_RATE_HZ} Hz")
    if not WINDOW_SAMPLES <= len(sound) <= RECORDING_SAMPLES_MAX:
        raise BadRecording(f"WAV has an impossible length of {len(sound)} samples")
    return mu_law_decode(np.frombuffer(sound, np.uint8))
