"""`smartmem demo`: read the text in a picture with PP-OCRv4, its three networks run by smartmem.

RapidOCR does all that is not a network (resizing, finding boxes, cutting lines out, decoding characters); its ONNX
Runtime sessions are replaced by `Session`s. They stay in the background as the reference: afterwards every network runs
again on what it was given, in both runtimes by turns, for times and relative errors.

smartmem compiles for fixed shapes. A picture's size is one shape of the detector; the classifier sees one line at a
time (batches of one), so does the recognizer, whose lines are padded on the right to a multiple of 160 columns. That is
what RapidOCR itself does to the shorter lines of a batch, so the network knows such padding. Both runtimes get the
padded line.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smartmem.errors import InputError, RuntimeFailure
from smartmem.inputs import relative_error
from smartmem.report.tables import console, table
from smartmem.runtime.model import Model
from smartmem.runtime.threads import default_threads

Array = np.ndarray[Any, Any]
SAMPLE = Path(__file__).parent / "demo_sample.png"
WIDTH_STEP = 160
MODELS = {
    "detection": "ch_PP-OCRv4_det_infer.onnx",
    "classifier": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "recognition": "ch_PP-OCRv4_rec_infer.onnx",
}


@dataclass
class Session:
    """Stands where RapidOCR has an ONNX Runtime session, and runs smartmem.

    Attributes:
        path: the model file.
        reference: the session that was there; also answers for the model's metadata (the list of characters).
        compile: (path, shapes) → Model.
        width_step: inputs are padded on the right to a multiple of this; 0: not at all.
        models: compiled models by input shape.
        seen: the inputs of all calls.
        outputs: what smartmem made of them.
    """

    path: Path
    reference: Any
    compile: Callable[[Path, dict[str, tuple[int, ...]]], Model]
    width_step: int = 0
    models: dict[tuple[int, ...], Model] = field(default_factory=dict)
    seen: list[Array] = field(default_factory=list)
    outputs: list[list[Array]] = field(default_factory=list)

    def __call__(self, batch: Array) -> list[Array]:
        array = np.ascontiguousarray(self._padded(batch))
        name = self.reference.get_input_names()[0]
        if array.shape not in self.models:
            self.models[array.shape] = self.compile(self.path, {name: array.shape})
        outputs = self.models[array.shape].run({name: array})
        self.seen.append(array)
        self.outputs.append(outputs)
        return outputs

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.reference, name)

    def _padded(self, batch: Array) -> Array:
        if not self.width_step:
            return batch
        missing = -batch.shape[-1] % self.width_step
        return np.pad(batch, [(0, 0)] * (batch.ndim - 1) + [(0, missing)])


@dataclass(frozen=True)
class Summary:
    """One network of the demo.

    Attributes:
        name: of the network.
        totals: of its report.
        calls: how often it ran for the picture.
        ours, theirs: milliseconds of all these calls, by smartmem and by ONNX Runtime (sums of medians).
        error: largest relative error of an output.
    """

    name: str
    totals: dict[str, int]
    calls: int
    ours: float
    theirs: float
    error: float


@dataclass(frozen=True)
class Reading:
    """What the demo found: (text, score) of each line, and a summary of each network."""

    lines: list[tuple[str, float]]
    networks: list[Summary]
    threads: int


def read(image: Path | None, threads: int | None, level: str = "full", progress: Any = False) -> Reading:
    """Read the text in `image` (None: the sample picture).

    Raises:
        RuntimeFailure: the packages of the demo are not installed.
        InputError: no such file, or not a picture.
    """
    from smartmem import api

    threads = threads or default_threads()

    def build(path: Path, shapes: dict[str, tuple[int, ...]]) -> Model:
        return api.compile(path, shapes, threads, level, progress=progress)

    picture = _picture(image or SAMPLE)
    engine, sessions = _engine(threads, build)
    result, _ = engine(picture)
    lines = [(str(text), float(score)) for _, text, score in result or ()]
    networks = [_summarize(name, session) for name, session in sessions.items() if session.seen]
    return Reading(lines, networks, threads)


def show(image: Path | None, threads: int | None, level: str = "full") -> None:
    """Print what `read` finds."""
    reading = read(image, threads, level, progress=True)
    out = console()
    for text, score in reading.lines:
        out.print(f"  {score:.2f}  {text}")
    if not reading.lines:
        out.print("no text found")
    rows = [
        (
            network.name,
            network.totals.get("operators", 0),
            network.totals.get("layout_operators", 0),
            network.totals.get("kernels", 0),
            network.totals.get("copies", 0),
            network.calls,
            f"{network.ours:.2f}",
            f"{network.theirs:.2f}",
            f"{network.error:.1e}",
        )
        for network in reading.networks
    ]
    columns = ("network", ">operators", ">layout", ">kernels", ">copies", ">calls", ">smartmem ms", ">onnxruntime ms")
    out.print(table("", (*columns, ">relative error"), rows))
    out.print(f"milliseconds: sum over the calls of the median of several runs, {reading.threads} threads")


def _picture(path: Path) -> Array:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {'no such file' if not path.exists() else error.strerror}") from None
    cv2 = _import("cv2")
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None:
        raise InputError(f"{path}: not a picture that OpenCV can read; give a .png or .jpg file")
    return np.asarray(picture)


def _engine(threads: int, build: Any) -> tuple[Any, dict[str, Session]]:
    """RapidOCR with our sessions in it."""
    package = _import("rapidocr_onnxruntime")
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    engine = package.RapidOCR(intra_op_num_threads=threads, inter_op_num_threads=1, cls_batch_num=1, rec_batch_num=1)
    models = Path(package.__file__).parent / "models"
    paths = {name: models / file for name, file in MODELS.items()}
    sessions = {
        "detection": Session(paths["detection"], engine.text_det.infer, build),
        "classifier": Session(paths["classifier"], engine.text_cls.infer, build),
        "recognition": Session(paths["recognition"], engine.text_rec.session, build, WIDTH_STEP),
    }
    engine.text_det.infer = sessions["detection"]
    engine.text_cls.infer = sessions["classifier"]
    engine.text_rec.session = sessions["recognition"]
    return engine, sessions


def _summarize(name: str, session: Session) -> Summary:
    """Run all inputs again in both runtimes: errors for each input, times for each shape."""
    errors = [
        relative_error(ours, theirs)
        for array, outputs in zip(session.seen, session.outputs, strict=True)
        for ours, theirs in zip(outputs, session.reference(array), strict=True)
    ]
    shapes: dict[tuple[int, ...], list[Array]] = {}
    for array in session.seen:
        shapes.setdefault(array.shape, []).append(array)
    ours = theirs = 0.0
    feed = session.reference.get_input_names()[0]
    for shape, arrays in shapes.items():
        array, model = arrays[0], session.models[shape]
        pair = _medians([lambda a=array, m=model: m.run({feed: a}), lambda a=array: session.reference(a)])  # type: ignore[misc]
        ours += pair[0] * len(arrays)
        theirs += pair[1] * len(arrays)
    most_used = max(shapes, key=lambda shape: len(shapes[shape]))
    totals = session.models[most_used].program.report.get("totals", {})
    return Summary(name, totals, len(session.seen), ours * 1e3, theirs * 1e3, max(errors, default=0.0))


def _medians(runs: list[Callable[[], object]], rounds: int = 5, burst: int = 3) -> list[float]:
    """Median seconds of each of `runs`, measured in turns of one unmeasured and a few measured calls."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, times in zip(runs, seconds, strict=True):
            time.sleep(0.02)  # ONNX Runtime's threads spin for a while after a run, and would take our cores
            run()
            for _ in range(burst):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        line = "pip install 'smartmem[demo]' (Python 3.10 to 3.12)"
        raise RuntimeFailure(f"the demo needs more packages ({error}); run: {line}") from None
