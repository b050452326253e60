"""Plans and their rivals as they run on the GPU of this machine: step times, and bytes that its allocator gave.

    python benchmarks/on_device.py                       # all models; writes benchmarks/results/on_device.json, .md
    python benchmarks/on_device.py "GPT, bfloat16" --rivals full xla:0.5 --times 1

Rivals are `nn.remat` on every block, with each policy, and XLA's own rematerialization pass on the plain program, by
`xla_gpu_memory_limit_slop_factor`, in whole percents of the device's memory. Each plan gets the bytes of its rival.
Programs are planned and compiled side by side, in processes of their own, and found again in JAX's compilation cache by
one process per model, in which they take turns. Its allocator's `peak_bytes_in_use` only grows: the programs run first
in the order of their peaks. With `--kernels FOLDER`, the optimized programs and the times of their kernels are kept.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from large import LARGE, SCANNED
from models import MODELS
from running import compiled_once, peak_bytes, values
from zoo import HAND, by_hand

import jaxremat
from jaxremat.backends.devices import DEVICES, target_of
from jaxremat.compiled.compile import rematerialized
from jaxremat.compiled.roofline import roofline

RESULTS = Path(__file__).resolve().parent / "results"
RIVALS = ("full", "dots", "dots, no batch", "xla:0.7", "xla:0.5")
POOL = 0.8  # of a GPU's memory: what the factor is a part of (`gpu_hlo_schedule.cc`)
ROUNDS = 20
ROUND_SECONDS = 0.05  # of one program's turn, so that what starting one costs does not count


def model_of(name: str, times: int, wrap: Callable[[type], type] = lambda block: block) -> tuple[Callable, tuple]:
    """A loss and its arguments, with as many times the examples."""
    loss, (params, *data) = (MODELS | LARGE)[name](wrap)
    more = [jax.ShapeDtypeStruct((times * leaf.shape[0], *leaf.shape[1:]), leaf.dtype) for leaf in data]
    return loss, (params, *more)


def rival_program(name: str, times: int, rival: str) -> Any:
    """The executable of a rival's gradient program."""
    kind, _, fraction = rival.partition(":")
    if HAND.get(kind):
        loss, args = by_hand(lambda wrap: model_of(name, times, wrap), HAND[kind](), name in SCANNED)
        return executable(loss, args)
    plain = model_of(name, times)
    if kind == "plain":
        return executable(*plain)
    memory = POOL * DEVICES[target_of(jax.devices()[0])].memory_bytes
    percent = 100 * float(fraction) * peak_bytes(executable(*plain)) / memory
    return executable(*plain, {"xla_gpu_memory_limit_slop_factor": max(round(percent), 1)})


def executable(loss: Callable, args: tuple, options: dict[str, Any] | None = None) -> Any:
    return jax.jit(jax.value_and_grad(loss)).lower(*args).compile(compiler_options=options)


def make_plan(name: str, times: int, rival: str, folder: Path) -> None:
    """Compiles a rival, and plans within its bytes; keeps the plan, or the least bytes that a plan takes."""
    within = peak_bytes(rival_program(name, times, rival))
    loss, args = model_of(name, times)
    start = time.perf_counter()
    try:
        plan = jaxremat.plan(loss, *args, budget=within)
    except jaxremat.BudgetError as error:
        told = {"least_bytes": error.min_peak_bytes}
    else:
        plan.save(folder / f"{file_name(name, rival)}.plan")
        told = {"announced": plan.overhead, "predicted_bytes": plan.peak_bytes, "compilations": plan.compilations}
    told |= {"planning_seconds": round(time.perf_counter() - start, 1)}
    (folder / f"{file_name(name, rival)}.json").write_text(json.dumps(told))
    if "announced" in told:
        executable(plan.apply(loss), args)


def rivals_of(name: str, rivals: Sequence[str]) -> list[str]:
    """Those that can do something: XLA's pass leaves loops alone."""
    return [rival for rival in rivals if name not in SCANNED or not rival.startswith("xla")]


def file_name(*parts: str) -> str:
    return "-".join("".join(c if c.isalnum() else "_" for c in part) for part in parts)


def programs(name: str, times: int, rivals: list[str], folder: Path) -> Iterator[tuple[str, Any]]:
    """The plain program, each rival, and each plan, compiled: from the cache where they are in it."""
    loss, args = model_of(name, times)
    yield "plain", executable(loss, args)
    for rival in rivals:
        yield rival, rival_program(name, times, rival)
        path = folder / f"{file_name(name, rival)}.plan"
        if path.exists():
            yield f"plan, {rival}", executable(jaxremat.load_plan(path, loss, *args).apply(loss), args)


def run_model(made: dict[str, Any], args: tuple) -> dict:
    """By program, in the order of their peaks: bytes as compiled and as allocated, seconds measured and by roofline."""
    device = jax.devices()[0]
    rows = {key: _as_compiled(program, device) for key, program in made.items()}
    for key, program in made.items():
        jax.block_until_ready(program(*args))
        rows[key]["allocated_bytes"] = (device.memory_stats() or {}).get("peak_bytes_in_use")
    for key, seconds in in_turns(made, args).items():
        rows[key] |= {"seconds": statistics.median(seconds), "fastest_seconds": min(seconds)}
    return rows | {"device": device.device_kind}


def planning(name: str, rivals: list[str], folder: Path) -> dict:
    """By plan, what planning told of it; nothing of a plan whose time ran out."""
    paths = {f"plan, {rival}": folder / f"{file_name(name, rival)}.json" for rival in rivals}
    return {key: json.loads(path.read_text()) for key, path in paths.items() if path.exists()}


def _as_compiled(program: Any, device: jax.Device) -> dict:
    text = program.as_text()
    time = roofline(text, DEVICES[target_of(device)])
    told = {"peak_bytes": peak_bytes(program), "roofline_seconds": time.seconds, "flops": time.flops}
    return told | {"kernels": sum(kernel.runs for kernel in time.kernels), "rematerialized": rematerialized(text)}


def in_turns(made: dict[str, Any], args: tuple) -> dict[str, list[float]]:
    """Seconds per run of each program, in every round."""
    runs = {key: 1 + int(ROUND_SECONDS / _seconds(program, args, 2)) for key, program in made.items()}
    found: dict[str, list[float]] = {key: [] for key in made}
    for _ in range(ROUNDS):
        for key, program in made.items():
            found[key].append(_seconds(program, args, runs[key]))
    return found


def _seconds(program: Any, args: tuple, runs: int) -> float:
    start = time.perf_counter()
    for _ in range(runs):
        last = program(*args)
    jax.block_until_ready(last)
    return (time.perf_counter() - start) / runs


def keep_kernels(path: Path, program: Any, args: tuple, runs: int = 3) -> None:
    """Writes the optimized program, and the name and the nanoseconds of every kernel of some runs."""
    path.with_suffix(".hlo.gz").write_bytes(gzip.compress(program.as_text().encode()))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(runs):
                jax.block_until_ready(program(*args))
        traces = [jax.profiler.ProfileData.from_file(str(file)) for file in Path(folder).rglob("*.xplane.pb")]
    events = [
        (line.name, event.name, dict(event.stats).get("hlo_op", ""), event.start_ns, event.duration_ns)
        for trace in traces
        for plane in trace.planes
        if "GPU" in plane.name
        for line in plane.lines
        for event in line.events
    ]
    path.with_suffix(".kernels.gz").write_bytes(gzip.compress(json.dumps(events).encode()))


def to_markdown(results: dict) -> str:
    lines = ["| model | within the bytes of | rival | plan | plan announces |", "|---" * 5 + "|"]
    for name, rows in results.items():
        plain = rows["plain"]
        for rival in (key for key in rows if key != "plain" and not key.startswith("plan, ")):
            ours = rows.get(f"plan, {rival}", {})
            told = f"{ours['announced']:+.1%}" if "announced" in ours else ""
            lines.append(f"| {name} | {rival} | {_cell(rows[rival], plain)} | {_cell(ours, plain)} | {told} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict, plain: dict) -> str:
    if "seconds" not in row:
        return f"refused, least {row['least_bytes'] / plain['peak_bytes']:.3f}" if "least_bytes" in row else ""
    share, seconds, expected = (row[key] / plain[key] for key in ("peak_bytes", "seconds", "roofline_seconds"))
    given = f" ({row['allocated_bytes'] / 2**20:.0f} MiB)" if row["allocated_bytes"] else ""
    return f"{share:.3f}{given}, time {seconds - 1:+.1%}, roofline {expected - 1:+.1%}"


def processes(commands: list[list[str]], seconds: float, **environment: str) -> None:
    """Runs this script side by side with itself; what is not done in time is stopped."""
    here = [sys.executable, __file__]
    running = [subprocess.Popen([*here, *command], env=os.environ | environment) for command in commands]
    end = time.perf_counter() + seconds
    for command, process in zip(commands, running, strict=True):
        try:
            process.wait(max(end - time.perf_counter(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            print("stopped, out of time:", *command, flush=True)


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict:
    """One model, in a process that holds the device alone."""
    path = folder / f"{file_name(name)}.rows"
    kernels = ["--kernels", str(options.kernels)] if options.kernels else []
    job = [name, "--times", str(options.times), "--folder", str(folder), *kernels]
    processes([[*job, "--rivals", *rivals_of(name, options.rivals)]], 600)
    return json.loads(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"among {', '.join(MODELS | LARGE)}; the large ones by default")
    parser.add_argument("--rivals", nargs="*", default=RIVALS, help=f"among {', '.join(RIVALS)}; all by default")
    parser.add_argument("--times", type=int, default=4, help="as many times the examples")
    parser.add_argument("--seconds", type=float, default=600, help="for planning and compiling")
    parser.add_argument("--kernels", type=Path, help="a folder for optimized programs and times of kernels")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a process that was started here
    parser.add_argument("--plan", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.models or list(LARGE)
    if options.folder and options.plan:
        make_plan(names[0], options.times, options.rivals[0], options.folder)
    elif options.folder:
        run_alone(names[0], options)
    else:
        everything(names, options)


def run_alone(name: str, options: argparse.Namespace) -> None:
    """Measures a model in this process; writes its rows, and then looks at kernels."""
    args = jax.block_until_ready(jax.tree.map(values, model_of(name, options.times)[1]))
    found = programs(name, options.times, options.rivals, options.folder)
    made = dict(sorted(found, key=lambda pair: peak_bytes(pair[1])))
    rows = run_model(made, args)
    for key, told in planning(name, options.rivals, options.folder).items():
        rows[key] = rows.get(key, {}) | told
    (options.folder / f"{file_name(name)}.rows").write_text(json.dumps(rows))
    for key, program in made.items() if options.kernels else ():
        keep_kernels(options.kernels / file_name(name, key), program, args)


def everything(names: list[str], options: argparse.Namespace) -> None:
    """Plans all, then measures one model after the other."""
    path, stored = RESULTS / "on_device.json", {}
    if path.exists():
        stored = json.loads(path.read_text())
    if options.kernels:
        options.kernels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= compiled_once(folder)
        job = ["--times", str(options.times), "--folder", folder, "--plan", "--rivals"]
        jobs = [[name, *job, rival] for name in names for rival in rivals_of(name, options.rivals)]
        processes(jobs, options.seconds, XLA_PYTHON_CLIENT_PREALLOCATE="false")
        for name in names:
            rows = measure(name, options, Path(folder))
            key = f"{rows.pop('device')}, jax {jax.__version__}, {options.times} times the examples"
            stored.setdefault(key, {})[name] = rows
            print(to_markdown({name: rows}), flush=True)
            path.write_text(json.dumps(stored, indent=1) + "\n")
    text = "\n".join(f"{key}:\n\n{to_markdown(results)}" for key, results in stored.items())
    path.with_suffix(".md").write_text(f"# Plans and rivals as they run on a device\n\n{text}")


if __name__ == "__main__":
    main()
