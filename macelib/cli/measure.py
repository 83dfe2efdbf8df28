"""Commands `mace evaluate`, `study` and `bench`: how well an erasure works, and how long one takes."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import MaceError
from ..show.progress import Bars
from . import tuned
from .options import (
    Address,
    Device,
    Dtype,
    Engine,
    Force,
    Gpus,
    Guidance,
    Jobs,
    Local,
    LowMemory,
    Model,
    Revision,
    Threads,
    check_device,
    engine_of,
    example,
    pipeline,
    precision,
)


def evaluate(
    erasure: Annotated[
        Path | None, typer.Argument(help="an erasure or edit file; with --prompts none: the original")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the results")] = ...,
    model: Model = "mini-sd",
    prompts: Annotated[
        Path | None,
        typer.Option(help="instead of the objects protocol: a CSV with prompt, seed and maybe guidance, such as I2P"),
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(
            help="a folder or hub id (CLIP, an image classifier), nudenet, or module:function; the model's own"
        ),
    ] = None,
    counting: Annotated[
        str | None,
        typer.Option(
            help="of the objects: top1, or paper, the authors' way, for a table beside theirs [default: top1]"
        ),
    ] = None,
    among: Annotated[
        list[str] | None, typer.Option(help="of --prompts: a name to choose among, as many as there are")
    ] = None,
    wanted: Annotated[str | None, typer.Option(help="of --prompts: the column with what a picture should show")] = None,
    scorer: Annotated[str | None, typer.Option(help="of --prompts: the CLIP that scores; the model's own")] = None,
    against: Annotated[
        str | None, typer.Option(help="of --prompts: FID, KID and CMMD to a folder's pictures, or to the original's")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="of --against: another CLIP than the scorer; inception: what that needs")
    ] = None,
    cut: Annotated[bool, typer.Option("--cut", help="of --prompts: cut those that are too long for the model")] = False,
    engine: Engine = None,
    jobs: Jobs = None,
    threads: Threads = None,
    gpus: Gpus = None,
    address: Address = None,
    images: Annotated[int | None, typer.Option(help="of the objects: pictures per class [default: 50]", min=3)] = None,
    steps: Annotated[int, typer.Option(help="denoising steps", min=1)] = 25,
    guidance: Guidance = None,
    batch: Annotated[int, typer.Option(help="pictures drawn at once", min=1)] = 8,
    force: Force = False,
    revision: Revision = None,
    local_files_only: Local = False,
    device: Device = None,
    dtype: Dtype = None,
    low_memory: LowMemory = False,
) -> None:
    """Acc_e, Acc_s, Acc_g and H_o of an erasure by the objects protocol, with the original model's row.

    With --prompts, every row of a CSV is drawn by both models, with --engine over GPUs or a cluster: the CLIP score,
    what a classifier sees, distances. If interrupted, run the same command again; it resumes.
    """
    from ..compare.measure import loaded
    from ..evaluate import listed, plugged, protocols, read_prompts
    from ..evaluate.distances import INCEPTION, ClipFeatures
    from ..files import check_writable

    of_list = {"among": among, "wanted": wanted, "scorer": scorer, "against": against, "features": features}
    of_list |= {"cut": cut, "engine": engine}
    if prompts is None and (alone := [name for name, value in of_list.items() if value]):
        raise MaceError(f"--{alone[0]} belongs to a list of prompts: give one with --prompts.")
    of_objects = {"counting": counting, "images": images}
    if prompts is not None and (alone := [name for name, value in of_objects.items() if value]):
        raise MaceError(f"--{alone[0]} belongs to the objects protocol: leave it out beside --prompts.")
    if prompts is None and erasure is None:
        raise MaceError("There is nothing to measure: give an erasure file, or prompts with --prompts.")
    if features == "inception":
        raise MaceError(INCEPTION)
    rows = None if prompts is None else read_prompts(prompts)
    where = engine_of(engine, jobs, threads, gpus, address)
    chosen = None if erasure is None else loaded(erasure)
    check_writable(out)
    who = None if classifier is None else plugged(classifier)
    if rows is not None:
        of_list |= {"features": features and ClipFeatures(plugged(features)), "engine": where}
    pipe = pipeline(model, revision, local_files_only, device, dtype, low_memory)
    if chosen is not None:
        chosen.check(pipe, force)
    drawing = {"steps": steps, "batch": batch} | ({} if guidance is None else {"guidance": guidance})
    with Bars() as bars:
        common = {"classifier": who, "force": force, "progress": bars, **drawing}
        if rows is None:
            asked = {"images": images or 50, "counting": counting or "top1"}
            result = protocols.objects(pipe, chosen, folder=out, **asked, **common)
        else:
            result = listed.measure_prompts(pipe, rows, out, chosen, **of_list, **common)
    typer.echo(result)


def study(
    protocol: Annotated[
        str,
        typer.Argument(
            help="objects: the paper's ten, one by one; characters: many together; tuning: many of neither; "
            "ablation: characters, or --only these objects, by single stages, both added up, all; "
            "pairs: the ship, then three objects, beside others in one prompt; keeping: what names to keep do to others"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder: erasures, pictures, tables")] = ...,
    model: Model = "mini-sd",
    config: Annotated[Path | None, typer.Option("--config", "-c", help="settings in a YAML file")] = None,
    only: Annotated[list[str] | None, typer.Option(help="objects, ablation, pairs: some of the ten")] = None,
    count: Annotated[
        int | None,
        typer.Option(help="characters, ablation (100), tuning (60): how many are erased, and as many kept", min=1),
    ] = None,
    tuning: Annotated[bool, typer.Option("--tuning", help="pairs: of names that settings may be chosen on")] = False,
    grid: Annotated[Path | None, typer.Option(help="tuning: settings to choose from, in a YAML file")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="tuning: other methods than MACE, with commas between, by grids of their own; all"),
    ] = None,
    task: Annotated[str | None, typer.Option(help="of --method: objects or characters alone, unless both")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="of --method: no further point begins after so long a time of making edits")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="objects, ablation of these: pictures per class and synonym (50)", min=3)
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="all but objects: seeds per prompt (5), five prompts a name (tuning: two)", min=3)
    ] = None,
    steps: Annotated[int, typer.Option(help="denoising steps", min=1)] = 25,
    guidance: Guidance = None,
    batch: Annotated[int, typer.Option(help="pictures drawn at once", min=1)] = 8,
    autocast: Annotated[str | None, typer.Option(help="bf16 or fp16: precision of the counted pictures")] = None,
    record: Annotated[bool, typer.Option("--record", help="keep the tables in data/studies and in the README")] = False,
    revision: Revision = None,
    local_files_only: Local = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Erase what a protocol of the paper asks for, and measure it.

    If interrupted, run the same command again; it resumes. Choose settings by `mace study tuning`: then the other two
    stay a test of them.
    """
    from ..config import EraseConfig
    from ..evaluate import studies
    from ..evaluate.keeping import keeping_study
    from ..evaluate.pictures import Drawing
    from ..files import check_writable, locked
    from ..models.sample import check_drawing

    if protocol not in ("objects", "characters", "tuning", "ablation", "pairs", "keeping"):
        raise MaceError(
            f"There is no study {protocol!r}: choose objects, characters, tuning, ablation, pairs or keeping."
        )
    tuned.check_sizes(protocol, only=only, count=count, images=images, seeds=seeds)
    if only and not tuning:
        studies.check_only(only)
    images, seeds = images or 50, seeds or 5
    if tuning and protocol != "pairs":
        raise MaceError(f"--tuning is for pairs: the study {protocol} has names of its own.")
    if grid is not None and protocol != "tuning":
        raise MaceError(f"--grid is for tuning: the study {protocol} has one setting.")
    tuned.check(protocol, method, task, minutes, count, config)
    if grid is not None and count is not None:
        raise MaceError("--count is in the grid: it says how many are erased.")
    settings = EraseConfig.load(config) if config else EraseConfig()
    points = None if grid is None or method else studies.Grid.load(grid)
    others, without = tuned.grids(method, task, grid) if method else ([], [])
    Drawing(steps, guidance, batch=batch, autocast=autocast)  # refuses what it does not know before the model is loaded
    check_writable(out)
    with locked(out / ".lock", str(out), wait=False):
        pipe = pipeline(model, revision, local_files_only, device, dtype)
        check_drawing(pipe, (), steps, guidance, batch)  # before anything is erased
        drawing = {"steps": steps, "guidance": guidance, "batch": batch, "autocast": autocast}
        with Bars() as bars:
            drawing["progress"] = bars
            if protocol == "objects":
                result = studies.objects_study(pipe, out, settings, only=only, images=images, **drawing)
            elif protocol == "keeping":
                result = keeping_study(pipe, out, settings, seeds=range(seeds), **drawing)
            elif method is not None:
                drawing |= {"seeds": range(seeds), "minutes": minutes}
                tuned.tune_each(others, lambda grid: studies.grid_study(pipe, out, grid, **drawing), record)
                typer.echo(f"Nothing to tune: {', '.join(without)}.\n{tuned.NONE}")
                return
            elif points is not None:
                result = studies.grid_study(pipe, out, points, settings, seeds=range(seeds), **drawing)
            elif protocol == "pairs":
                drawing["seeds"] = range(seeds)
                result = studies.pairs_study(pipe, out, settings, only=only, tuning=tuning, **drawing)
            else:
                drawing |= {"seeds": range(seeds)} | ({"count": count} if count else {})
                if protocol == "ablation":
                    result = studies.ablation_study(pipe, out, settings, only=only, images=images, **drawing)
                else:
                    measure = studies.characters_study if protocol == "characters" else studies.tuning_study
                    result = measure(pipe, out, settings, **drawing)
    typer.echo(result)
    if record:
        from ..evaluate import record as records

        own = grid is not None and grid.stem != protocol  # another grid has a record of its own
        typer.echo(records.record(f"{protocol}-{grid.stem}" if own else protocol, result))


def bench(
    concepts: Annotated[int, typer.Option(help="how many to erase", min=1)] = 100,
    products: Annotated[str, typer.Option(help="fp64, mixed or both")] = "both",
    reference: Annotated[int, typer.Option(help="concepts of the per-layer reference; 0: leave it out", min=0)] = 5,
    toggle: Annotated[bool, typer.Option(help="time switching one concept, too")] = True,
    baselines: Annotated[bool, typer.Option(help="time other methods' closed forms, too, for as many concepts")] = True,
    drawing: Annotated[bool, typer.Option(help="time mini-SD's drawing, too, alone and on a busy machine")] = True,
    whole: Annotated[bool, typer.Option(help="time every step of an erasure on a model, too")] = True,
    layout: Annotated[
        str | None, typer.Option(help="in the model's place: random weights in the layout of SD v1.4 or SD v2.1")
    ] = None,
    model: Model = "mini-sd",
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Time and memory of stages 1 and 3 at SD v1.4 shapes (random data), of drawing, and of each step on a model."""
    from .. import bench
    from ..bench.layouts import check_layout

    kind = precision(dtype)  # what is not there is refused before minutes have gone
    check_device(device)
    if layout is not None:
        check_layout(layout)
    if layout is not None and model != "mini-sd":
        raise MaceError(f"--layout takes the place of --model {model}: give one of them.")
    pipe, lines = pipeline(model, None, True, device, dtype) if whole and layout is None else None, []
    try:
        with Bars() as bars:
            lines += bench.run(concepts, products, reference, toggle, progress=bars)
            if baselines:
                lines += bench.closed_forms(concepts, progress=bars)
            if drawing:
                lines.append(bench.drawing(pipeline("mini-sd", None, True, None, None), progress=bars, model="mini-sd"))
            if pipe is not None:
                lines += bench.whole(pipe, progress=bars)
            elif whole:
                lines += bench.at_size(layout, device, progress=bars, dtype=kind)
    finally:  # what has been measured is said, whatever comes after it
        for line in lines:
            typer.echo(line)


def register(app: typer.Typer) -> None:
    """Add the commands to an app."""
    app.command(
        epilog=example(
            "mace evaluate runs/ship/erasure.safetensors --images 50 --out runs/ship/evaluation",
            "mace evaluate nudity.safetensors -m MODEL --prompts i2p.csv --classifier nudenet --engine local --out i2p",
            "mace evaluate nudity.safetensors -m MODEL --prompts coco_30k.csv --against coco/val2014 --out coco",
        )
    )(evaluate)
    app.command(
        epilog=example(
            "mace study objects --images 50 --out runs/objects",
            "mace study characters --count 100 --autocast bf16 --out runs/characters",
            "mace study ablation --only ship --images 20 --out runs/ablation",
            "mace study tuning --method uce,speed --task characters --seeds 3 --steps 8 --out runs/tuning --record",
        )
    )(study)
    app.command(
        epilog=example(
            "mace bench",
            'mace bench --layout "SD v1.4" --no-drawing',
            "mace bench --concepts 1000 --products mixed --reference 0",
        )
    )(bench)
