"""`smartmem zoo`: list the networks, and export one."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

zoo_app = typer.Typer(
    help="The networks of the SmartMem paper, with seeded random weights.", no_args_is_help=True, rich_markup_mode=None
)


@zoo_app.command("list")
def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False,
) -> None:
    """Show the networks: parameters, multiply-accumulates, inputs, sources."""
    from smartmem.report.tables import console, dims, table
    from smartmem.zoo.registry import NETWORKS

    if as_json:
        rows = [
            {
                "name": network.name,
                "title": network.title,
                "params": network.params,
                "gmacs": network.gmacs,
                "size": network.size,
                "unit": network.unit,
                "inputs": {spec.name: list(spec.dims(1, network.size)) for spec in network.inputs},
                "needs": list(network.needs),
                "source": network.source,
            }
            for network in NETWORKS.values()
        ]
        print(json.dumps(rows, indent=1))
        return
    lines = [
        (
            network.name,
            network.title,
            f"{network.params / 1e6:.2f}",
            f"{network.gmacs:.2f}",
            ", ".join(dims(list(spec.dims(1, network.size))) for spec in network.inputs),
            network.source,
        )
        for network in NETWORKS.values()
    ]
    columns = ("name", "network", ">M params", ">GMACs", "inputs", "source")
    console().print(table(f"{len(lines)} networks", columns, lines))


@zoo_app.command("export")
def export_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `smartmem zoo list` shows.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="MODEL.onnx", help="The file to write; default: NAME.onnx.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Batch of the inputs.")] = 1,
    resolution: Annotated[
        int | None, typer.Option(help="Pixels, tokens or latent pixels; default: what `zoo list` shows.")
    ] = None,
    exporter: Annotated[str, typer.Option(help="Which of torch's exporters: dynamo or script.")] = "dynamo",
    seed: Annotated[int, typer.Option(help="Of the weights and the input.")] = 0,
) -> None:
    """Write a network to an ONNX file, with an input and torch's output beside it in an .npz file."""
    from smartmem.report.tables import size
    from smartmem.zoo.export import export
    from smartmem.zoo.packages import other_torch

    start = time.perf_counter()
    made = export(name, output or Path(f"{name}.onnx"), batch, resolution, exporter, seed)
    files = f"{made.path}, {made.sample}" + (f", {made.data}" if made.data is not None else "")
    print(
        f"{files}: {size(made.size)}, {made.params / 1e6:.2f} M parameters, {made.macs / 1e9:.2f} GMACs, "
        f"in {time.perf_counter() - start:.1f} s"
    )
    if note := other_torch():
        print(note, file=sys.stderr)


@zoo_app.command("quantize")
def quantize_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any ONNX file of floats.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.onnx", help="The file to write; default: MODEL-METHOD.onnx."),
    ] = None,
    method: Annotated[str, typer.Option(help="dynamic, static or fp16.")] = "static",
) -> None:
    """Write a network with weights and activations of eight bits, or of halves, by ONNX Runtime's tools."""
    from smartmem.zoo.quantize import quantize

    target = output or model.with_name(f"{model.stem}-{method}.onnx")
    quantize(model, target, method)
    print(target)
