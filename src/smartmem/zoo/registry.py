"""What networks there are: names, sizes, inputs, and how to build them. Imports no torch.

A network's `factory` is an import path "package.module:function", called with `arguments` and, where the network is
built for one size, with `size`; so a module is imported only when its network is built.

    find("swin_t").build()          a torch.nn.Module in evaluation mode, with seeded weights
    find("swin_t").example()        {"image": array of 1 x 3 x 224 x 224}
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from smartmem.errors import InputError
from smartmem.zoo.packages import load, require

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]


class UnknownNetworkError(InputError):
    """No network has this name."""


@dataclass(frozen=True)
class Input:
    """One input of a network.

    Attributes:
        name: of the graph's input.
        shape: extents; "batch" and "size" stand for what `export` is asked for.
        below: int64 values from 0 to below - 1; None: float32, standard normal.
    """

    name: str
    shape: tuple[int | str, ...]
    below: int | None = None

    def dims(self, batch: int, size: int) -> tuple[int, ...]:
        """`("batch", 3, "size", "size"), 1, 224 -> (1, 3, 224, 224)`."""
        given = {"batch": batch, "size": size}
        return tuple(given[extent] if isinstance(extent, str) else extent for extent in self.shape)


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    Attributes:
        name: what the command line calls it.
        title: what its authors call it.
        params: number of parameters, exactly.
        gmacs: 1e9 multiply-adds of one run at `size`, batch 1, counted on the exported graph; a target within 2%.
        factory, arguments: what builds it: see the module's docstring.
        inputs, outputs: of the graph, in order.
        size: the default of `--resolution`.
        unit: what `size` counts: "px", "tokens", "latent" or "frames".
        step: other sizes must be a multiple of it; None: there is no other size.
        most: the largest size.
        sized: whether the factory takes `size`; if not, what it builds takes inputs of any size.
        needs: packages to import.
        source: the paper, and where the code is from.
    """

    name: str
    title: str
    params: int
    gmacs: float
    factory: str
    source: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Input, ...] = (Input("image", ("batch", 3, "size", "size")),)
    outputs: tuple[str, ...] = ("logits",)
    size: int = 224
    unit: str = "px"
    step: int | None = None
    most: int = 2048
    sized: bool = False
    needs: tuple[str, ...] = ("torch",)

    def resolve(self, size: int | None) -> int:
        """`size`, or the default.

        Raises:
            InputError: the network cannot have this size.
        """
        if size is None or size == self.size:
            return self.size
        if self.step is None:
            raise InputError(f"{self.name}: --resolution {size}: it is built for {self.size} {self.unit} only")
        if size < self.step or size % self.step or size > self.most:
            raise InputError(
                f"{self.name}: --resolution {size}: give a multiple of {self.step} up to {self.most} ({self.unit})"
            )
        return size

    def build(self, size: int | None = None, seed: int = 0) -> torch.nn.Module:
        """The network in evaluation mode, with weights that follow from `seed` (see `weights`).

        Raises:
            MissingPackageError: a package of the `zoo` extra is missing.
            InputError: the network cannot have this size.
        """
        size = self.resolve(size)
        require(*self.needs)
        import torch

        from smartmem.zoo.weights import calibrate, randomise

        module_name, _, function = self.factory.partition(":")
        factory = getattr(load(module_name, self.needs[-1]), function)
        torch.manual_seed(seed)
        try:
            module = factory(**self.arguments, **({"size": size} if self.sized else {})).eval()
        except ValueError as error:  # for example too few frames
            raise InputError(f"{self.name}: --resolution {size}: {error}") from error
        randomise(module, seed)
        calibrate(module, [torch.from_numpy(array) for array in self.example(2, size, seed + 1000).values()])
        return module

    def example(self, batch: int = 1, size: int | None = None, seed: int = 0) -> dict[str, Array]:
        """An input: arrays by name, which follow from `seed`."""
        size = self.resolve(size)
        arrays: dict[str, Array] = {}
        for index, spec in enumerate(self.inputs):
            generator = np.random.default_rng([seed, index])
            dims = spec.dims(batch, size)
            if spec.below is None:
                arrays[spec.name] = generator.standard_normal(dims, dtype=np.float32)
            else:
                arrays[spec.name] = generator.integers(0, spec.below, dims, dtype=np.int64)
        return arrays


def find(name: str) -> Network:
    """The network of this name.

    Raises:
        UnknownNetworkError: there is none; the message suggests the near names.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    plain = name.lower().replace("-", "_").replace(".", "_").replace("/", "_")
    near = difflib.get_close_matches(plain, NETWORKS, n=3, cutoff=0.5)
    near += [key for key in NETWORKS if plain and key.startswith(plain) and key not in near]
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(NETWORKS)}"
    raise UnknownNetworkError(f"no network {name!r} in the zoo: {hint}")


def _timm(name: str, title: str, params: int, gmacs: float, model: str, paper: str, **more: Any) -> Network:
    return Network(
        name,
        title,
        params,
        gmacs,
        "smartmem.zoo.timm_networks:build",
        f"{paper}; timm {model}",
        arguments={"model": model},
        step=32,
        needs=("torch", "timm"),
        **more,
    )


def _paper(name: str, title: str, params: int, gmacs: float, file: str, paper: str, **more: Any) -> Network:
    options: dict[str, Any] = {"sized": True, "step": 224} | more
    return Network(name, title, params, gmacs, f"smartmem.zoo.papers.{file}:build", f"{paper}; written here", **options)


def _pythia(name: str, title: str, params: int, gmacs: float, layers: int) -> Network:
    return Network(
        name,
        title,
        params,
        gmacs,
        "smartmem.zoo.transformers_networks:pythia_1b",
        "Biderman et al. 2023, arXiv 2304.01373; transformers GPTNeoXForCausalLM",
        arguments={"layers": layers},
        inputs=(Input("input_ids", ("batch", "size"), below=50304),),
        size=128,
        unit="tokens",
        step=1,
        needs=("torch", "transformers"),
    )


_DIFFUSION = "Rombach et al. 2022, arXiv 2112.10752"

_ALL = (
    _timm(
        "swin_t",
        "Swin-T",
        28_288_354,
        4.49,
        "swin_tiny_patch4_window7_224",
        "Liu et al. 2021, arXiv 2103.14030",
        sized=True,
    ),
    _timm(
        "vit_b16",
        "ViT-B/16",
        86_567_656,
        17.56,
        "vit_base_patch16_224",
        "Dosovitskiy et al. 2020, arXiv 2010.11929",
        sized=True,
    ),
    _timm("convnext_t", "ConvNeXt-T", 28_589_128, 4.46, "convnext_tiny", "Liu et al. 2022, arXiv 2201.03545"),
    _timm("regnetx_032", "RegNetX-3.2GF", 15_296_552, 3.18, "regnetx_032", "Radosavovic et al. 2020, arXiv 2003.13678"),
    _timm("regnety_032", "RegNetY-3.2GF", 19_436_338, 3.18, "regnety_032", "Radosavovic et al. 2020, arXiv 2003.13678"),
    _timm("resnext50_32x4d", "ResNeXt50", 25_028_904, 4.23, "resnext50_32x4d", "Xie et al. 2016, arXiv 1611.05431"),
    _timm(
        "efficientvit_b2", "EfficientViT-B2", 24_330_712, 1.59, "efficientvit_b2", "Cai et al. 2022, arXiv 2205.14756"
    ),
    _timm(
        "efficientvit_b3",
        "EfficientViT-B3",
        48_646_056,
        5.16,
        "efficientvit_b3",
        "Cai et al. 2022, arXiv 2205.14756",
        size=256,
    ),
    Network(
        "yolov8n",
        "YOLOv8n",
        3_157_200,
        4.37,
        "smartmem.zoo.ultralytics_networks:build",
        "Jocher et al. 2023; ultralytics yolov8n.yaml (AGPL-3.0)",
        arguments={"config": "yolov8n.yaml"},
        outputs=("predictions",),
        size=640,
        step=32,
        needs=("torch", "ultralytics"),
    ),
    Network(
        "sd15_text_encoder",
        "SD 1.5 text encoder",
        123_060_480,
        6.65,
        "smartmem.zoo.transformers_networks:clip_text_encoder",
        "Radford et al. 2021, arXiv 2103.00020; transformers CLIPTextModel",
        inputs=(Input("input_ids", ("batch", "size"), below=49408),),
        outputs=("last_hidden_state",),
        size=77,
        unit="tokens",
        step=1,
        most=77,
        needs=("torch", "transformers"),
    ),
    _pythia("pythia_1b", "Pythia-1B", 1_011_781_632, 117.3, 16),
    _pythia("pythia_1b_2", "Pythia-1B, 2 of 16 layers", 306_765_824, 26.2, 2),
    Network(
        "sd15_unet",
        "SD 1.5 U-Net",
        859_520_964,
        90.05,
        "smartmem.zoo.diffusers_networks:unet",
        f"{_DIFFUSION}; diffusers UNet2DConditionModel",
        inputs=(
            Input("sample", ("batch", 4, "size", "size")),
            Input("timestep", ("batch",), below=1000),
            Input("encoder_hidden_states", ("batch", 77, 768)),
        ),
        outputs=("noise",),
        size=32,
        unit="latent",
        step=8,
        most=256,
        needs=("torch", "diffusers"),
    ),
    Network(
        "sd15_vae_decoder",
        "SD 1.5 VAE decoder",
        49_490_199,
        311,
        "smartmem.zoo.diffusers_networks:vae_decoder",
        f"{_DIFFUSION}; diffusers AutoencoderKL",
        inputs=(Input("latent", ("batch", 4, "size", "size")),),
        outputs=("image",),
        size=32,
        unit="latent",
        step=8,
        most=256,
        needs=("torch", "diffusers"),
    ),
    _paper(
        "autoformer_s", "AutoFormer-S", 22_891_432, 5.16, "autoformer", "Chen et al. 2021, arXiv 2107.00651", step=16
    ),
    _paper("biformer_s", "BiFormer-S", 25_536_232, 4.46, "biformer", "Zhu et al. 2023, arXiv 2303.08810"),
    _paper("crossformer_s", "CrossFormer-S", 30_657_394, 4.91, "crossformer", "Wang et al. 2021, arXiv 2108.00154"),
    _paper("cswin_s", "CSWin-S", 34_643_304, 6.80, "cswin", "Dong et al. 2021, arXiv 2107.00652"),
    _paper("flatten_swin_t", "FLatten-Swin-T", 29_192_384, 4.48, "flatten_swin", "Han et al. 2023, arXiv 2308.00442"),
    _paper("smt_s", "SMT-S", 22_550_952, 4.84, "smt", "Lin et al. 2023, arXiv 2307.08579", step=32),
    _paper(
        "conformer_m",
        "Conformer-M",
        27_514_856,
        10.26,
        "conformer",
        "Gulati et al. 2020, arXiv 2005.08100",
        inputs=(Input("mel", ("batch", "size", 80)),),
        size=1000,
        unit="frames",
        step=1,
    ),
)

NETWORKS: dict[str, Network] = {network.name: network for network in _ALL}
"""All networks by name, in the order in which they are listed."""
