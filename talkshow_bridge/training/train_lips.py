"""Train the lip net on what corpus.py made; resumable, one seed, about 0.2 s a step on one free core with bfloat16.

    python -m talkshow_bridge.training.train_lips --corpus work/lips/corpus.npz --run work/lips --out checkpoints/motion

--start FOLDER begins from an earlier lip net, which may have fewer blocks: the new ones start as identities.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from talkshow_bridge.features import BANDS, mel_edges, normalise
from talkshow_bridge.lip_net import CONTROLS, LipNet

log = logging.getLogger(__name__)
CROP = 150  # control frames: 3 s
BATCH = 16
STATES = [CONTROLS.index(n) for n in ("speech", "voiced", "vowel")]  # yes/no controls
CONTACTS = [CONTROLS.index(n) for n in ("closure", "labiodental")]  # rare, short, and seen at once when missed
SPEECH = CONTROLS.index("speech")
RARITY = 5.0  # weight of a frame with contact against one without
WEIGHTS = torch.tensor(
    [{"jaw": 3, "aperture": 3, "closure": 1, "labiodental": 1, "pucker": 2}.get(n, 1) for n in CONTROLS]
)
DROPOUT = 0.1
VOCAL_TRACTS = (0.87, 1.15)  # factors of all frequencies
CENTRES = mel_edges()[1:-1]  # Hz
AVERAGE = 0.998  # decay of the running mean of the weights, which is what ships


class Batches:
    """Random 3 s crops, sources balanced, with on-line vocal tracts, noise floors, tilts and band masks."""

    def __init__(self, paths: list[Path], seed: int) -> None:
        names = ("mels", "means", "controls", "classes", "counts", "sources")
        stored = [np.load(path) for path in paths]
        self.mels, self.means, self.controls, self.classes, counts, sources = (
            np.concatenate([part[name] for part in stored]) for name in names
        )
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.groups = [np.flatnonzero(sources == source) for source in np.unique(sources)]
        share = np.array([counts[group].sum() ** 0.7 for group in self.groups])
        self.share = share / share.sum()
        self.rng = np.random.default_rng(seed)

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised mels [B, 2T, 40], controls [B, T, 16], phone classes [B, T]."""
        mels = np.empty((BATCH, 2 * CROP, BANDS), np.float32)
        controls = np.zeros((BATCH, CROP, len(CONTROLS)), np.float32)
        controls[:, :, CONTROLS.index("width")], controls[:, :, CONTROLS.index("closure")] = 0.5, 0.25
        classes = np.zeros((BATCH, CROP), np.int64)
        for row in range(BATCH):
            self._fill(mels[row], controls[row], classes[row])
        return torch.from_numpy(mels), torch.from_numpy(controls), torch.from_numpy(classes)

    def _fill(self, mels: np.ndarray, controls: np.ndarray, classes: np.ndarray) -> None:
        rng = self.rng
        item = rng.choice(self.groups[rng.choice(len(self.groups), p=self.share)])
        start, end = self.starts[item], self.starts[item + 1]
        first = start + int(rng.integers(-20, max(1, end - start - CROP + 20)))
        low, high = max(start, first), min(end, first + CROP)
        inside = slice(low - first, high - first)
        own = self.mels[2 * low : 2 * high].astype(np.float32)
        quiet = np.percentile(own, 2, axis=0)
        mels[:] = quiet + 0.3 * rng.standard_normal(mels.shape)
        mels[2 * inside.start : 2 * inside.stop] = own
        controls[inside], classes[inside] = self.controls[low:high], self.classes[low:high]
        mean = self.means[item].astype(np.float32)
        if rng.random() < 0.7:
            factor = rng.uniform(*VOCAL_TRACTS)
            mels[:], mean = other_vocal_tract(mels, factor), other_vocal_tract(mean, factor)
        if rng.random() < 0.5:
            floor = mean.mean() + rng.uniform(-10, -3)
            mels[:] = np.logaddexp(mels, floor + 0.5 * rng.standard_normal(mels.shape))
        tilt = rng.uniform(-1.2, 1.2) * np.linspace(-1, 1, BANDS) + rng.uniform(-0.6, 0.6)
        mels[:] = normalise(mels + tilt.astype(np.float32), mean)
        for _ in range(rng.integers(0, 3)):
            band = int(rng.integers(0, BANDS - 5))
            mels[:, band : band + int(rng.integers(2, 6))] = 0.0


def other_vocal_tract(mels: np.ndarray, factor: float) -> np.ndarray:
    """(..., 40) log-mels with every frequency multiplied by `factor` (vocal tract length perturbation)."""
    place = np.interp(CENTRES / factor, CENTRES, np.arange(BANDS))
    low = np.minimum(place.astype(int), BANDS - 2)
    share = (place - low).astype(np.float32)
    return (1 - share) * mels[..., low] + share * mels[..., low + 1]


def loss_of(logits: Tensor, phones: Tensor, controls: Tensor, classes: Tensor) -> Tensor:
    """Position and velocity errors of all controls, cross-entropy for states and phone classes, focal for contacts."""
    predicted = torch.sigmoid(logits)
    weights = WEIGHTS.to(logits)
    position = ((predicted - controls) ** 2 * weights).mean()
    velocity = ((predicted.diff(dim=1) - controls.diff(dim=1)) ** 2 * weights).mean()
    state = F.binary_cross_entropy_with_logits(logits[..., STATES], controls[..., STATES])
    phone = F.cross_entropy(phones.flatten(0, 1), classes.flatten())
    contact = contact_loss(logits[..., CONTACTS], controls[..., CONTACTS], controls[..., SPEECH, None])
    return 10 * position + 10 * velocity + 0.3 * state + contact + 0.3 * phone


def contact_loss(logits: Tensor, wanted: Tensor, speech: Tensor) -> Tensor:
    """Cross-entropy that cares for the frames that are still wrong (focal loss, Lin et al. 2017, for soft labels).

    Silence hardly counts: whether lips touch while nobody speaks cannot be heard."""
    wrong = (torch.sigmoid(logits) - wanted).abs().detach()
    weight = (1 + RARITY * wanted) * wrong * (0.1 + 0.9 * speech)
    return 3 * (weight * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).mean()


def begin_from(net: LipNet, folder: Path) -> None:
    """Copy an earlier net's weights into one with as many or more blocks; additional blocks pass their input on."""
    earlier = LipNet.load(folder)
    known = {name: weight for name, weight in earlier.state_dict().items() if not name.startswith("phones.")}
    net.load_state_dict(known, strict=False)
    for block in net.blocks[len(earlier.blocks) :]:
        torch.nn.init.zeros_(block.project.weight)
        torch.nn.init.zeros_(block.project.bias)


def train(
    batches: Batches, run: Path, steps: int, peak_rate: float, seed: int, anneal: int = 0, start: Path | None = None
) -> LipNet:
    """Train (or go on training) and return the net with averaged weights.

    anneal: cut a resumed run short by bringing its learning rate linearly to zero within that many steps.
    start: folder of an earlier net to begin from (see begin_from).
    """
    torch.manual_seed(seed)
    net, average = LipNet(dropout=DROPOUT), LipNet()
    if start:
        begin_from(net, start)
    average.load_state_dict(net.state_dict())
    optimiser = torch.optim.AdamW(net.parameters(), peak_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak_rate, total_steps=steps)
    parts = {"net": net, "average": average, "optimiser": optimiser, "schedule": schedule}
    checkpoint, done = run / "train_lips.pt", 0
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(stored[name])
        done = stored["step"]
        batches.rng = np.random.default_rng(seed + done)
    if anneal:
        steps = done + anneal
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, total_iters=anneal)
    running, began = 0.0, time.monotonic()
    for step in range(done + 1, steps + 1):
        mels, controls, classes = batches.next()
        with torch.autocast("cpu", torch.bfloat16):
            logits, phones = net(mels)
        loss = loss_of(logits.float(), phones.float(), controls, classes)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for mean, now in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(now, 0.02 if anneal else max(1 - AVERAGE, 1 / step))
        running += (loss.item() - running) * max(0.02, 1 / (step - done))
        if step % 50 == 0 or step == steps:
            log.info("step %d of %d, loss %.3f, %.0f s", step, steps, running, time.monotonic() - began)
        if not anneal and (step % 250 == 0 or step == steps):
            torch.save({**{name: part.state_dict() for name, part in parts.items()}, "step": step}, checkpoint)
    return average.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, nargs="+", default=[Path("work/lips/corpus.npz")])
    parser.add_argument("--run", type=Path, default=Path("work/lips"), help="folder of the resumable checkpoint")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/motion"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--anneal", type=int, default=0, help="finish a resumed run within this many steps")
    parser.add_argument("--start", type=Path, help="folder of an earlier lip net to begin from")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    batches = Batches(arguments.corpus, arguments.seed)
    net = train(
        batches, arguments.run, arguments.steps, arguments.rate, arguments.seed, arguments.anneal, arguments.start
    )
    net.save(arguments.out)


if __name__ == "__main__":
    main()
