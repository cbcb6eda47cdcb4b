"""How much faster the incremental sampler is than one pass over the whole grid per code, at TalkSHOW's published size.

    python -m benchmarks.sampler [--seconds 10 60] [--threads 2] [--passes 20]

Random weights and audio; the time does not depend on them. The full grid is timed on some of its 2 T4 equal passes and
multiplied; the codes of a short stretch are drawn both ways and compared.
"""

import argparse
import os
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads cost more than they bring on small matrices

import torch

from talkshow_bridge.pixelcnn import COLUMNS, GatedPixelCNN, sample_full_grid
from talkshow_bridge.sampler import IncrementalSampler

CODES_PER_SECOND = 7.5
COMPARED = 8  # rows


def seconds_of(call, *args) -> float:
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 60], help="lengths of the speech")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=20, help="full-grid passes to time per length")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    net, speaker = GatedPixelCNN().eval(), torch.zeros(1, dtype=torch.int64)
    sampler = IncrementalSampler(net)
    audio = torch.randn(1, 256, COMPARED)
    slow = sample_full_grid(net, audio, speaker, torch.Generator().manual_seed(1))
    fast = sampler.sample(audio, speaker, torch.Generator().manual_seed(1))
    print(f"{COMPARED} rows, same codes: {torch.equal(slow, fast)}")
    for length in arguments.seconds:
        rows = round(length * CODES_PER_SECOND)
        audio = torch.randn(1, 256, rows)
        quick = min(seconds_of(sampler.sample, audio, speaker) for _ in range(3))
        with torch.inference_mode():
            tokens = torch.zeros(1, rows, COLUMNS, dtype=torch.int64)
            one = min(seconds_of(net, tokens, audio, speaker) for _ in range(arguments.passes))
        full = one * rows * COLUMNS
        print(f"{length:g} s, {rows} rows: incremental {quick:.2f} s, full grid {full:.1f} s, {full / quick:.0f} times")


if __name__ == "__main__":
    main()
