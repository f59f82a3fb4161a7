"""What to measure and how, as `smartmem bench` was asked; names are checked before anything is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from smartmem.bench.peers import ALL, GPU_PEERS, PEERS, check_known
from smartmem.device import Device
from smartmem.errors import InputError
from smartmem.levels import LEVELS


@dataclass(frozen=True)
class Options:
    """What to measure; see `smartmem bench --help`.

    Attributes:
        model: an ONNX file; None: networks of the zoo.
        networks: of the zoo; empty: all.
        against: peers; `ALL` stands for every one that is installed.
        floor: whether a loop of as many multiply-adds as the network has takes its turns, too.
        batch, resolution: of the zoo's networks, as `smartmem zoo export` takes them.
        zoo_dir: where the exports are; None: in the cache.
        work: where what preparation made stays for later runs; None: a temporary folder.
        timed: whether the rounds follow the preparation.
        device, layout: where smartmem runs and how layouts are assigned there, as `smartmem run` takes them.
        memories, precisions: on a device, every level has a row for each of both, every GPU peer for each precision.
            On the CPU every level, and peers that have it, for each precision.
        jobs: runners of a network that are prepared, and load, at the same time; the rounds take turns in any case.
        load: busy processes that run beside the measured ones.
        clock: "wall", or "cpu" for the CPU time of all threads, which other processes on the machine disturb less.
        limit: seconds that a runner may take to convert, and again to load and answer.
        seconds: of measured runs for one runner and network; slow ones take part in fewer rounds, three at least.
        longest: seconds of one run above which a runner is not timed.
        environments: folder of virtual environments, one per peer by its name, or one called "common".
        database: of tuned schedules, for TVM.
    """

    model: Path | None = None
    networks: tuple[str, ...] = ()
    against: tuple[str, ...] = ("onnxruntime",)
    floor: bool = False
    levels: tuple[str, ...] = LEVELS
    batch: int = 1
    resolution: int | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    rounds: int = 10
    threads: int | None = None
    march: str = "native"
    device: str = "cpu"
    memories: tuple[str, ...] = ("auto",)
    precisions: tuple[str, ...] = ("fp32",)
    layout: str = "greedy"
    jobs: int = 1
    seed: int = 0
    zoo_dir: Path | None = None
    work: Path | None = None
    timed: bool = True
    clock: str = "wall"
    load: int = 0
    limit: float = 300.0
    seconds: float = 8.0
    longest: float = 30.0
    environments: Path | None = None
    database: Path | None = None


def find_device(options: Options) -> Device | None:
    """Where smartmem runs; None is the CPU.

    Raises:
        InputError: an unknown word, no such device, a peer for GPUs while smartmem runs on the CPU, or a floor beside
            another device.
        RuntimeFailure: there is no OpenCL.
    """
    from smartmem import api

    if options.floor and options.device != "cpu":
        raise InputError(f"--floor is the CPU's: leave it out, or --device {options.device}")
    if not options.memories or not options.precisions:
        raise InputError("nothing to measure: give --memory and --precision a word each")
    # All words are known to be right before a device is asked for.
    kinds = [api.device_options(m, p, options.layout) for m in options.memories for p in options.precisions]
    device = None
    for kind in kinds:
        device = api.find_device(options.device, kind)
    on_gpu = [name for name in options.against if name in GPU_PEERS]
    if device is None and on_gpu:
        raise InputError(f"{on_gpu[0]} runs on a GPU, and smartmem would run on the CPU: give --device opencl")
    return device


def described(options: Options, device: Device | None) -> dict[str, str]:
    """{"smartmem": where and how it runs}, if that is not the CPU."""
    if device is None:
        return {}
    return {
        "smartmem": f"{device.name} (opencl:{device.index}, driver {device.driver}), {', '.join(options.memories)} "
        f"memory, {', '.join(options.precisions)}, {options.layout} layouts"
    }


def check(options: Options) -> tuple[str, ...]:
    """The networks to measure, after all names are known to be right.

    Raises:
        InputError: an unknown network, level or peer, or nothing to measure.
    """
    from smartmem.zoo.registry import NETWORKS

    check_known("peer", [name for name in options.against if name != ALL], PEERS)
    check_known("level", options.levels, LEVELS)
    check_known("network", options.networks, NETWORKS)
    check_known("clock", [options.clock], ("wall", "cpu"))
    if not options.levels and not options.against and not options.floor:
        raise InputError("nothing to measure: give --levels, --against or --floor")
    if options.environments is not None and not options.environments.is_dir():
        raise InputError(f"{options.environments}: no such folder of virtual environments")
    return tuple(dict.fromkeys(options.networks)) or tuple(NETWORKS)
