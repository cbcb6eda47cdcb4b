"""Train the gesture model on what gesture_corpus.py made: the two VQ-VAEs, then audio encoder and PixelCNN.

    python -m talkshow_bridge.training.train_gestures --corpus work/gestures/corpus.npz --run work/gestures \\
        --out checkpoints/motion

Resumable (work/gestures/*.pt), one seed, about 30 minutes of one core.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from talkshow_bridge.bundled import WEIGHTS
from talkshow_bridge.gesture_features import BODY_SIZE, FEATURES
from talkshow_bridge.gesture_model import GestureModel
from talkshow_bridge.pixelcnn import GatedPixelCNN, MfccEncoder
from talkshow_bridge.planner import PLAN_CHANNELS, STYLES
from talkshow_bridge.vq_vae import FRAMES_PER_CODE, VQVAE, CodebookAverage

log = logging.getLogger(__name__)
CODES, CODE_SIZE, BODY_WIDTH, HAND_WIDTH = 512, 48, 192, 144
AUDIO_WIDTH, DIM, LAYERS, HEAD = 160, 96, 11, 192
VQ_CROP, VQ_BATCH, CODE_CROP, CODE_BATCH = 64, 48, 256, 12  # frames, pieces
COMMITMENT, VELOCITY, ACCELERATION = 0.25, 4.0, 1.0
NOISE = 0.08  # share of codes replaced by random ones, so that sampling can recover from its own slips
UNIT = 0.03  # m of error that counts as 1
# metres by which a joint's rotation moves what is beyond it: spine 1-3, neck, collars, head, arms, wrists
BODY_LEVERS = np.repeat([0.3, 0.3, 0.3, 0.15, 0.4, 0.4, 0.15, 0.42, 0.42, 0.3, 0.3, 0.17, 0.17], 3)
HAND_LEVERS = np.repeat(np.tile([0.09, 0.06, 0.04], 10), 3)
AVERAGE = 0.998  # decay of the running mean of the code predictor's weights, which is what ships


class Corpus:
    """Pieces of motion with features and style; random crops."""

    def __init__(self, path: Path, seed: int) -> None:
        with np.load(path) as stored:
            self.tracks, self.features = torch.from_numpy(stored["tracks"]), torch.from_numpy(stored["features"])
            self.styles, counts = torch.from_numpy(stored["styles"]), stored["counts"]
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.seed = seed
        self.restart()

    def restart(self) -> None:
        """Same chances for every stage, whatever ran before."""
        torch.manual_seed(self.seed)
        self.rng = np.random.default_rng(self.seed)

    def crops(self, length: int, batch: int, step: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Pieces (B,) and first frames (B,), multiples of `step` after each piece's start."""
        pieces = self.rng.integers(0, len(self.styles), batch)
        room = (self.starts[pieces + 1] - self.starts[pieces] - length) // step
        return pieces, self.starts[pieces] + step * self.rng.integers(0, room + 1)

    @staticmethod
    def cut(values: Tensor, first: np.ndarray, length: int) -> Tensor:
        """(B, length, ...) float32 (codes stay whole numbers)."""
        cut = torch.stack([values[f : f + length] for f in first])
        return cut.float() if cut.is_floating_point() else cut


class Run:
    """A stage's modules, optimiser and step count, kept in a file so that training can go on after a stop."""

    def __init__(self, path: Path, parts: dict, steps: int, rate: float) -> None:
        self.path, self.parts, self.steps, self.done = path, dict(parts), steps, 0
        weights = [p for part in parts.values() if isinstance(part, nn.Module) for p in part.parameters()]
        self.weights = [p for p in weights if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.weights, rate, weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, rate, total_steps=steps)
        self.parts |= {"optimiser": self.optimiser, "schedule": self.schedule}
        if path.exists():
            stored = torch.load(path, weights_only=True)
            for name, part in self.parts.items():
                part.load_state_dict(stored[name])
            self.done = stored["step"]

    def go(self, loss_of: Callable[[], Tensor], after: Callable[[int], None] | None = None) -> None:
        """Minimise loss_of() for the steps that are left."""
        began, running = time.monotonic(), 0.0
        for step in range(self.done + 1, self.steps + 1):
            loss = loss_of()
            self.optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimiser.step()
            self.schedule.step()
            if after:
                after(step)
            running += (loss.item() - running) * max(0.02, 1 / (step - self.done))
            if step % 100 == 0 or step == self.steps:
                log.info("%s: step %d, loss %.4f, %.0f s", self.path.stem, step, running, time.monotonic() - began)
            if step % 500 == 0 or step == self.steps:
                torch.save({**{n: p.state_dict() for n, p in self.parts.items()}, "step": step}, self.path)


def cost(error: Tensor) -> Tensor:
    return F.smooth_l1_loss(error, torch.zeros_like(error))


def train_vq(corpus: Corpus, run: Path, name: str, columns: slice, width: int, levers: np.ndarray, steps: int) -> VQVAE:
    """One VQ-VAE with a plan branch: errors of place, speed and acceleration in metres; averaged codebook."""
    corpus.restart()
    channels = len(levers)
    net = VQVAE(channels, width, CODES, CODE_SIZE, PLAN_CHANNELS)
    motion = corpus.tracks[:, columns]
    some = motion[:: max(1, len(motion) // 50_000)].float()
    net.mean.copy_(some.mean(0))
    net.scale.copy_(some.std(0).clamp(min=0.02))
    metres = torch.from_numpy(levers).float() / UNIT
    average = CodebookAverage(net)
    stage = Run(run / f"{name}.pt", {"net": net}, steps, 1.5e-3)
    average.sums.copy_(net.codebook)

    def loss_of() -> Tensor:
        _, first = corpus.crops(VQ_CROP, VQ_BATCH)
        x, features = corpus.cut(motion, first, VQ_CROP), corpus.cut(corpus.features, first, VQ_CROP)
        y, latents, codes = net(x, features[..., -PLAN_CHANNELS:])
        commitment = F.mse_loss(latents, net.codebook[codes])
        average.update(latents, codes)
        error = (y - x) * metres
        jitter = VELOCITY * cost(error.diff(dim=1)) + ACCELERATION * cost(error.diff(n=2, dim=1))
        return cost(error) + jitter + COMMITMENT * commitment

    net.train()
    stage.go(loss_of)
    return net.eval()


@torch.inference_mode()
def encode_all(corpus: Corpus, body: VQVAE, hands: VQVAE) -> Tensor:
    """Codes of the whole corpus, (frames // 4, 2) int64; pieces start at multiples of 4 only by cutting their ends."""
    rows = torch.zeros(len(corpus.tracks), 2, dtype=torch.int64)
    for start, end in zip(corpus.starts[:-1], corpus.starts[1:], strict=True):
        for offset in range(0, FRAMES_PER_CODE, 2):
            track = corpus.tracks[start + offset : end].float()[None]
            codes = torch.stack([body.encode(track[..., :BODY_SIZE])[0], hands.encode(track[..., BODY_SIZE:])[0]], -1)
            rows[start + offset : end : FRAMES_PER_CODE][: len(codes)] = codes
    return rows


def train_codes(corpus: Corpus, run: Path, codes: Tensor, steps: int) -> tuple[MfccEncoder, GatedPixelCNN]:
    """Audio encoder and PixelCNN by cross-entropy on noisy codes -> the nets with averaged weights."""
    corpus.restart()
    encoder = MfccEncoder(FEATURES, AUDIO_WIDTH)
    pixelcnn = GatedPixelCNN(CODES, DIM, LAYERS, len(STYLES), AUDIO_WIDTH, HEAD)
    both = nn.ModuleDict({"encoder": encoder, "pixelcnn": pixelcnn})
    average = torch.optim.swa_utils.AveragedModel(
        both, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE), use_buffers=True
    )
    average.requires_grad_(False)
    stage = Run(run / "codes.pt", {"nets": both, "average": average}, steps, 2e-3)

    def loss_of() -> Tensor:
        pieces, first = corpus.crops(CODE_CROP, CODE_BATCH, step=2)
        features = corpus.cut(corpus.features, first, CODE_CROP).transpose(1, 2)
        truth = torch.stack([codes[f : f + CODE_CROP : FRAMES_PER_CODE] for f in first])
        wrong = torch.rand(truth.shape) < NOISE
        seen = torch.where(wrong, torch.randint(0, CODES, truth.shape), truth)
        with torch.autocast("cpu", torch.bfloat16):
            logits = pixelcnn(seen, encoder(features), corpus.styles[pieces])
        return F.cross_entropy(logits.float(), truth)

    both.train()
    stage.go(loss_of, after=lambda step: average.update_parameters(both) if step > steps // 10 else None)
    nets = average.module.eval()
    return nets["encoder"], nets["pixelcnn"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("work/gestures/corpus.npz"))
    parser.add_argument("--run", type=Path, default=Path("work/gestures"), help="folder of the resumable state")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/motion"))
    parser.add_argument("--vq-steps", type=int, default=1500)
    parser.add_argument("--code-steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    corpus, run = Corpus(arguments.corpus, arguments.seed), arguments.run
    body = train_vq(corpus, run, "body_vq", slice(0, BODY_SIZE), BODY_WIDTH, BODY_LEVERS, arguments.vq_steps)
    hands = train_vq(corpus, run, "hand_vq", slice(BODY_SIZE, None), HAND_WIDTH, HAND_LEVERS, arguments.vq_steps)
    encoder, pixelcnn = train_codes(corpus, run, encode_all(corpus, body, hands), arguments.code_steps)
    GestureModel(encoder, pixelcnn, body, hands).save(arguments.out / WEIGHTS)


if __name__ == "__main__":
    main()
