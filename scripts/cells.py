"""Cells, rows and sources of the tables that `scripts/tables.py` writes."""

from collections.abc import Iterable

# The calls that the names of scripts/arms.py stand for.
CALLS = {
    "backprop": "backprop()",
    "np": "node_perturbation()",
    "np gaussian": 'node_perturbation(noise="gaussian")',
    "np antithetic": "node_perturbation(antithetic=True)",
    "np layerwise": "node_perturbation(layerwise=True)",
    "inp": "iterative_node_perturbation()",
    "anp": "activity_node_perturbation()",
    "lr noisy": "likelihood_ratio(sigma=0.01)",
    "lr noisy sigma 0.3": "likelihood_ratio(sigma=0.3)",
    "approximated lr": "approximated_likelihood_ratio()",
    "wp": "weight_perturbation()",
    "wp rank 1": "weight_perturbation(rank=1)",
    "forward gradient nodes": "forward_gradient()",
    "forward gradient weights": 'forward_gradient(tangents="weights")',
    "feedback": "learned_feedback()",
    "feedback responses": 'learned_feedback(teacher="responses")',
    "feedback losses": 'learned_feedback(teacher="losses", antithetic=True)',
    "feedback direct losses": 'learned_feedback(predictor=direct(), teacher="losses")',
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def share(value: float, digits: int = 4) -> str:
    """A number of 0 .. 1 without its leading zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("0") if value < 1 else text


def with_spread(row: dict, key: str, digits: int = 4) -> str:
    """A mean of seeds and their standard deviation, if there are several."""
    spread = row.get(f"{key}_std")
    deviation = f" +- {share(spread, digits)}" if spread is not None else ""
    return share(row[key], digits) + deviation


def source(record: dict) -> str:
    """The command, under its table, and what else is to say of it."""
    where = f"{record['device']['platform'].upper()}, JAX {record['versions']['jax']}"
    if seeds := record["seeds"]:
        first, last = seeds[0], seeds[-1]
        several = f"seeds {first} to {last}" if last > first else f"seed {first}"
        where = f"{several}; {where}"
    note = f"; {record['note']}" if "note" in record else ""
    return f"\n`{record['command']}` ({where}{note})\n"


def sources(records: Iterable[dict]) -> str:
    """The commands of a table of several; one that many share stands once."""
    return "".join(dict.fromkeys(map(source, records)))


def call(name: str) -> str:
    return f"`{CALLS[name]}`"


def samples_for(row: dict) -> str:
    """Samples for a cosine of 0.9, two digits; some estimates never come so near."""
    if row["limit"] < 0.9:
        return "never"
    return f"{max(1.0, float(format(row['needed'], '.2g'))):,.0f}"
