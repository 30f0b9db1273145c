"""Reports side by side, for people."""

from collections.abc import Mapping

from bpfree.hardware.report import TOO_MUCH, Report
from bpfree.hardware.roofline import GROUPS


def table(reports: Mapping[str, Report]) -> str:
    """Reports in columns, as lines of text; each is for one device and one step.

    Args:
      reports: {heading: Report}.

    Example:
        >>> from bpfree import hardware
        >>> x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
        >>> report = hardware.report(lambda a, b: a @ b, (x, x), "cpu:1")
        >>> print(hardware.table({"product": report}).splitlines()[0])
        cpu:1, one device and step:
    """
    columns = list(reports.values())
    rows = [("", list(reports))] if any(reports) else []
    rows += [("devices", [f"{r.devices} of {r.target.size}" for r in columns])]
    rows += _rows(
        columns, lambda r: {f"memory, {k}": v for k, v in r.memory.items()}, size
    )
    rows += [("memory in all", [_total(r) for r in columns])]
    rows += [("kernels", [f"{r.kernels:.0f}" for r in columns])]
    rows += [("FLOPs of products", [_scaled(r.flops, "") for r in columns])]
    rows += [("bytes moved", [size(r.bytes) for r in columns])]
    rows += _rows(columns, _collectives, str)
    rows += _rows(columns, _seconds, duration)
    rows += _one("step, at least", [r.step_seconds for r in columns], duration)
    rows += _one("inference, at least", [r.inference for r in columns], duration)
    shares = [r.share_of_inference for r in columns]
    rows += _one("share of inference", shares, lambda share: f"{100 * share:.0f} %")
    rows += [("compiled in", [f"{r.compile_seconds:.0f} s" for r in columns])]
    lines = [f"{columns[0].target.text}, one device and step:", *_aligned(rows)]
    return "\n".join(lines + _advice(reports))


def _rows(columns, entries, write) -> list[tuple[str, list[str]]]:
    """A row for each key that any report has."""
    found = [entries(r) for r in columns]
    keys = dict.fromkeys(key for entry in found for key in entry)
    return [(k, [write(e[k]) if k in e else "-" for e in found]) for k in keys]


def _one(name, values, write) -> list[tuple[str, list[str]]]:
    if all(v is None for v in values):
        return []
    return [(name, ["-" if v is None else write(v) for v in values])]


def _collectives(report: Report) -> dict[str, str]:
    if not report.collectives:
        return {"collectives": "none"} if report.devices > 1 else {}
    return {k: f"{c.calls:g} x, {size(c.bytes)}" for k, c in report.collectives.items()}


def _seconds(report: Report) -> dict[str, float]:
    return {f"time, {g}": report.seconds[g] for g in GROUPS if g in report.seconds}


def _total(report: Report) -> str:
    total = size(sum(report.memory.values()))
    chip = report.target.chip
    return f"{total} of {size(chip.memory)}" if chip else total


def _advice(reports: Mapping[str, Report]) -> list[str]:
    lines = []
    for name, report in reports.items():
        if report.fits is False:
            largest = max(report.memory, key=lambda k: report.memory[k])
            of = f" of {name}" if name else ""
            lines.append(
                f"The program{of} does not fit: {largest} is largest. {TOO_MUCH}"
            )
    if any(r.seconds for r in reports.values()):
        lines.append(
            "Times are lower bounds: data sheet rates, nothing but what is listed."
        )
    return lines


def _aligned(rows: list[tuple[str, list[str]]]) -> list[str]:
    left = max(len(name) for name, _ in rows)
    widths = [max(map(len, column)) for column in zip(*(v for _, v in rows), strict=True)]
    return [
        f"  {name:<{left}}"
        + "".join(f"  {v:>{w}}" for v, w in zip(values, widths, strict=True))
        for name, values in rows
    ]


def size(count: float) -> str:
    return _scaled(count, "B")


def duration(seconds: float) -> str:
    return _scaled(seconds, "s", least=1e-6) if seconds < 1 else f"{seconds:.3g} s"


_SCALES = (1e15, 1e12, 1e9, 1e6, 1e3, 1.0, 1e-3, 1e-6)
_PREFIXES = ("P", "T", "G", "M", "k", "", "m", "u")


def _scaled(value: float, unit: str, least: float = 1.0) -> str:
    """With the largest prefix that leaves 1 or more, or the one of the scale `least`."""
    pairs = zip(_SCALES, _PREFIXES, strict=True)
    scale, prefix = next(p for p in pairs if value >= p[0] or p[0] == least)
    return f"{value / scale:.3g} {prefix}{unit}".rstrip()
