"""Profiles as Markdown tables. This module does not import torch."""

from collections.abc import Callable, Sequence

from segdet.profiling.result import OTHER, Distribution, Estimate, Profile, Stages
from segdet.report.numbers import count, significant
from segdet.runs.record import in_stage_order
from segdet.util.tables import markdown_table

LISTED = 6
"""The number of uncounted operators that are listed by name."""


def profile_tables(profiles: Sequence[Profile]) -> str:
    """Return Markdown: a table of costs, a table of stages, the uncounted operators, the hardware and remarks."""
    first = profiles[0]
    parts = [
        _costs(profiles),
        "Milliseconds per image in each stage, from the file to the prediction: the fastest prediction of each image, "
        f"averaged. `{OTHER}` is the time outside of all stages. `whole` was measured without stages:",
        _stages(profiles, lambda stages: (stages.ms, stages.whole_ms)),
        *_processor_stages(profiles),
        "Operators that compute but are not in the FLOPs, those of torchvision first, then by the number of "
        "elements of their results per image:",
        "\n".join(f"- {profile.name}: {_uncounted(profile)}" for profile in profiles),
        _machine(first),
    ]
    remarks = [f"- {profile.name}: {note}" for profile in profiles for note in profile.notes]
    if remarks:
        parts += ["Remarks:", "\n".join(remarks)]
    return "\n\n".join(parts) + "\n"


def _costs(profiles: Sequence[Profile]) -> str:
    columns: list[tuple[str, Callable[[Profile], str]]] = [
        ("model", lambda p: p.name),
        ("parameters (M)", lambda p: significant(p.parameters / 1e6)),
        ("trainable (M)", lambda p: significant(p.trainable_parameters / 1e6)),
        ("GFLOPs", lambda p: _distribution(p.flops, 1e-9, significant)),
        ("passes", lambda p: _distribution(p.passes, 1, count)),
        ("p50 (ms)", lambda p: _estimate(p.latency.p50)),
        ("p90 (ms)", lambda p: _estimate(p.latency.p90)),
        ("p99 (ms)", lambda p: _estimate(p.latency.p99)),
        ("CPU time (ms)", lambda p: significant(p.latency.processor_ms)),
        ("predictions", lambda p: str(p.latency.count)),
        ("images/s", _throughput),
        ("training (MiB)", lambda p: "-" if p.memory.training_mb is None else f"{p.memory.training_mb:,.0f}"),
        ("inference (MiB)", lambda p: f"{p.memory.inference_mb:,.1f}"),
    ]
    rows = [[name for name, _ in columns]]
    rows += [[cell(profile) for _, cell in columns] for profile in profiles]
    batches = sorted(
        {profile.throughput.batch_size for profile in profiles if profile.throughput is not None}
    )
    steps = sorted({profile.memory.training_batch_size for profile in profiles})
    return (
        markdown_table(rows)
        + "\n\nGFLOPs: median [minimum, maximum] over the images; a multiply-add is two operations. p50, p90, p99: "
        "latency at batch size 1 with intervals of 95%; ∞ where the predictions are too few for a bound. images/s at "
        f"batch size {', '.join(map(str, batches))}. Memory: of a training step at batch size "
        f"{', '.join(map(str, steps))}, and of the prediction of one image."
    )


def _stages(profiles: Sequence[Profile], times: Callable[[Stages], tuple[dict[str, float], float]]) -> str:
    present = in_stage_order(name for profile in profiles for name in profile.stages.ms)
    names = [*(name for name in present if name != OTHER), OTHER]
    rows = [["model", *names, "sum", "whole", "sum / whole"]]
    for profile in profiles:
        ms, whole = times(profile.stages)
        cells = [significant(ms[name]) if name in ms else "-" for name in names]
        total = sum(ms.values())
        rows.append([profile.name, *cells, significant(total), significant(whole), f"{total / whole:.3f}"])
    return markdown_table(rows)


def _processor_stages(profiles: Sequence[Profile]) -> list[str]:
    """Return a title and a table, or an empty list if a profile has no processor time or is of a GPU."""
    if any(not profile.stages.processor_whole_ms or profile.device != "cpu" for profile in profiles):
        return []
    return [
        "The same in processor time, over all threads, which other processes do not disturb:",
        _stages(profiles, lambda stages: (stages.processor_ms, stages.processor_whole_ms)),
    ]


def _uncounted(profile: Profile) -> str:
    # RoI pooling and NMS have few results for much work.
    ordered = sorted(profile.uncounted, key=lambda each: each.name.startswith("aten::"))
    listed = [
        f"`{each.name}` {each.elements:,.0f} in {count(each.calls)} call{'s' * (each.calls != 1)}"
        for each in ordered[:LISTED]
    ]
    more = len(profile.uncounted) - LISTED
    if more > 0:
        listed.append(f"and {more} more")
    return ", ".join(listed) or "none"


def _machine(profile: Profile) -> str:
    hardware = profile.hardware
    device = ", ".join(hardware.get("gpus", [])) if profile.device == "cuda" else hardware.get("cpu", "")
    before, after = (
        " ".join(f"{value:g}" for value in load) for load in (profile.load_before, profile.load_after)
    )
    return (
        f"{device}, {profile.precision}; {hardware.get('cores')} cores, threads of torch: {hardware.get('threads')}; "
        f"load average {before or 'unknown'} before and {after or 'unknown'} after. {len(profile.images)} test images, "
        f"the same for all models of a dataset: {', '.join(profile.images[:3])}"
        f"{' ...' if len(profile.images) > 3 else ''}"
    )


def _throughput(profile: Profile) -> str:
    return "-" if profile.throughput is None else _estimate(profile.throughput.images_per_second)


def _distribution(values: Distribution, scale: float, form: Callable[[float], str]) -> str:
    middle = form(values.median * scale)
    if not values.varies:
        return middle
    return f"{middle} [{form(values.minimum * scale)}, {form(values.maximum * scale)}]"


def _estimate(estimate: Estimate) -> str:
    low = "0" if estimate.low is None else significant(estimate.low)
    high = "∞" if estimate.high is None else significant(estimate.high)
    return f"{significant(estimate.value)} [{low}, {high}]"
