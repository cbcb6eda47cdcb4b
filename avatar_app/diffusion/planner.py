"""How much is computed at once: from the memory that is free to window batch, precision, decode chunk and offload.

The estimates are upper bounds on the values alive in one call, taken from the widths in the networks' configurations.
They need not be exact: whoever runs out of memory all the same asks for `Plan.smaller` and tries again.
"""

import gc
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from talkshow_bridge.errors import InputError

log = logging.getLogger(__name__)

USABLE = 0.6  # share of the free memory that a plan may fill
WINDOWS_ON_GPU, FRAMES_ON_GPU = 8, 16  # more at once is hardly faster
VALUES_PER_LATENT = 60  # alive in a UNet and a ControlNet, per latent pixel and channel of their first level
VALUES_PER_PIXEL = 10  # alive in a decoder, per pixel and channel of its last level
UNKNOWN_MEMORY = 4 * 2**30


@dataclass(frozen=True)
class Needs:
    """What an anchor's networks need: weights, values of one window, values of decoding one frame."""

    weights: int
    window: int
    frame: int


@dataclass(frozen=True)
class Plan:
    """windows: predicted in one call. frames: decoded in one call. offload: the networks that are not at work wait in
    main memory. group: windows whose turn comes together, whatever becomes of `windows` later; 0 for as many as those.
    """

    windows: int = 1
    frames: int = 4
    dtype: torch.dtype = torch.float32
    offload: bool = False
    group: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", self.group or self.windows)

    def smaller(self, device: torch.device) -> "Plan | None":
        """One notch less memory, the pictures staying as they are; None when there is no notch left."""
        if self.windows > 1:
            return replace(self, windows=self.windows // 2)
        if self.frames > 1:
            return replace(self, frames=self.frames // 2)
        if device.type != "cpu" and not self.offload:
            return replace(self, offload=True)
        return None

    def to_dict(self) -> dict:
        """As JSON; `from_dict` reads it."""
        return {**asdict(self), "dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def from_dict(cls, values: dict) -> "Plan":
        return cls(**{**values, "dtype": getattr(torch, values["dtype"])})

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        offload = ", idle networks in main memory" if self.offload else ""
        return f"{self.windows} window(s) and {self.frames} frame(s) at once, {kind}{offload}"


def make_plan(device: torch.device, needs: Needs, free: int | None = None, dtype: torch.dtype | None = None) -> Plan:
    """The plan for `free` bytes (measured if not given). dtype: wanted precision, None leaves it to the plan."""
    free = free_memory(device) if free is None else free
    room, on_gpu = USABLE * free, device.type != "cpu"
    if dtype is None:
        short = 4 * (needs.weights + needs.window) > room
        dtype = torch.float32 if not short else torch.float16 if on_gpu else torch.bfloat16
    size = dtype.itemsize
    offload = on_gpu and size * (needs.weights + needs.window) > room
    left = room - size * needs.weights * (0.8 if offload else 1)
    windows = int(left // (size * needs.window)) if on_gpu else 1  # a CPU gains nothing from more
    frames = int(left // (size * needs.frame))
    plan = Plan(
        windows=min(max(windows, 1), WINDOWS_ON_GPU),
        frames=min(max(frames, 1), FRAMES_ON_GPU if on_gpu else Plan.frames),
        dtype=dtype,
        offload=offload,
    )
    log.info("%s with %.1f GB free: %s", device.type, free / 2**30, plan)
    return plan


def with_less_memory(work: Callable[[Plan], object], plan: Plan, device: torch.device) -> tuple[object, Plan]:
    """work(plan), again with ever smaller plans while memory runs out -> its result and the plan that did it.

    Raises InputError when the smallest plan is still too large.
    """
    while True:
        try:
            return work(plan), plan
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if (smaller := plan.smaller(device)) is None:
                raise InputError(
                    f"The memory of {device} does not suffice even for {plan}; a smaller window needs less."
                ) from error
        log.warning("Out of memory with %s; trying again with %s", plan, smaller)
        plan = smaller
        if device.type != "cpu":
            getattr(torch, device.type).empty_cache()


def in_parts(
    work: Callable[[slice, Plan], object], count: int, size: str, plan: Plan, device: torch.device
) -> Iterator[tuple[object, Plan]]:
    """work(part, plan) for parts of 0...count, each as large as the plan's `size` ("windows" or "frames").

    Yields each result with the plan that did it, which is smaller from where memory runs out."""
    done = 0

    def next_part(plan: Plan) -> tuple[object, int]:
        stop = min(done + getattr(plan, size), count)
        return work(slice(done, stop), plan), stop

    while done < count:
        (result, done), plan = with_less_memory(next_part, plan, device)
        yield result, plan


def is_out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(w in str(error).lower() for w in words)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device; what this process let go of is given back first."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return min(_free_in_system(), _free_in_container())


def _free_in_system() -> int:
    try:
        table = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * int(table["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return UNKNOWN_MEMORY


def _free_in_container() -> int:
    """What a control group leaves to this process; a very large number where none limits it."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        table = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(table["active_file"]) + int(table["inactive_file"]))
    except (OSError, KeyError, ValueError):
        return 2**62


def weight_count(folder: Path) -> int:
    """Numbers in all safetensors files below a folder, read from their headers."""
    return sum(_count(file) for file in folder.rglob("*.safetensors"))


def _count(file: Path) -> int:
    with file.open("rb") as stream:
        header = json.loads(stream.read(min(int.from_bytes(stream.read(8), "little"), 2**26)))
    return sum(torch.Size(entry["shape"]).numel() for name, entry in header.items() if name != "__metadata__")
