"""The formula of the peak, and the fit map, for a person at a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fitplan.explanation import Explanation, Term
from fitplan.fitmap import Cell, FitMap
from fitplan.footprint.size import LENGTHS
from fitplan.report.tables import print_table
from fitplan.report.terminal import BESIDE_NAMES, CATEGORY_NAMES, VERDICT_STYLES, beside, describe, describe_recipe
from fitplan.units import GIB, counted, gib

MIN_SHARE = 0.001
"""Terms below this share of the peak are told together."""

CHANGE_NAMES = {
    "batch_size": "batch size +{}",
    "seq_len": "sequence length +{}",
    "lora_r": "rank +{}",
    "gradient_accumulation_steps": "accumulation steps +{}",
}


def print_explanation(found: Explanation, console: Console) -> None:
    """Print the formula: one line a term, then how the peak moves."""
    peak = found.peak_bytes
    console.print(Text.assemble((found.model.name, "bold"), f"  {found.setup.method}, {describe(found.setup)}"))
    console.print(Text.assemble("peak ", (gib(peak), "bold"), f" allocated, in the {found.moment}, is the sum of"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=True, header_style="dim")
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("what")
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("times")
    table.add_column("largest part", style="dim")
    shown = [term for term in found.terms if term.bytes >= MIN_SHARE * peak]
    for term in shown:
        table.add_row(
            f"{term.bytes / 2**30:.2f}",
            CATEGORY_NAMES[term.category],
            f"{term.coefficient:,}" if term.lengths else "",
            product(term) if term.lengths else found.reach(term),
            short_owner(term.largest),
        )
    rest = peak - sum(term.bytes for term in shown)
    others = counted(len(found.terms) - len(shown), "smaller term")
    table.add_row(f"{rest / 2**30:.2f}", f"{others}, and rounding to 512 bytes")
    print_table(table, console)
    console.print()
    used = [name for name in found.values if any(name in term.lengths for term in shown)]
    if used:
        console.print(", ".join(f"{name} = {LENGTHS[name]} = {found.values[name]:,}" for name in used), style="dim")
    memory = found.memory
    told = ", ".join(f"{BESIDE_NAMES[key]} {gib(size)}" for key, size in beside(memory).items() if size)
    console.print(f"with {told}: {gib(memory.bytes)} of device memory")
    for change in found.changes:
        name = CHANGE_NAMES[change.name].format(f"{change.by:,}")
        console.print(
            f"{name} = {signed(change.device_bytes)} of device memory, {signed(change.bytes)} of it allocated"
        )


def short_owner(what: str) -> str:
    """The last names of the module, and the operator without its overload."""
    owner, _, op = what.partition(": ")
    names = [name for name in owner.split(".") if name not in ("*", "default", "weight")]
    return f"{'.'.join(names[-2:])}: {op.partition('.')[0]}" if what else ""


def product(term: Term) -> str:
    """What a term's coefficient is multiplied by."""
    return " x ".join(term.lengths)


def signed(size: int) -> str:
    """Bytes with their sign."""
    return f"{'-' if size < 0 else '+'}{gib(abs(size))}"


def print_map(found: FitMap, console: Console) -> None:
    """Print the map: a row for each sequence length, a column for each batch size, GiB in the cells."""
    console.print(Text.assemble((found.model.name, "bold"), f"  {found.setup.method}, {describe_recipe(found.setup)}"))
    console.print(f"GiB of device memory at the peak, on {found.gpu.name} with {gib(found.gpu.usable_bytes)} usable")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("length", justify="right", style="bold", no_wrap=True)
    for cell in found.cells[0]:
        table.add_column(f"batch {cell.batch_size}", justify="right", no_wrap=True)
    table.add_column("largest batch", justify="right", style="bold", no_wrap=True)
    for row in found.cells:
        length = row[0].seq_len
        table.add_row(f"{length:,}", *map(_cell, row), str(found.largest_batch[length] or "none"))
    longest = [f"{length:,}" if length else "none" for length in found.longest_seq.values()]
    table.add_row()
    table.add_row("longest", *longest, style="bold")
    print_table(table, console)
    console.print(
        Text.assemble(
            *[part for fit, (name, style) in VERDICT_STYLES.items() for part in ((_MARKS[fit], style), f" {name}  ")]
        )
    )


_MARKS = dict(zip(VERDICT_STYLES, ("", "~", "?", "!"), strict=True))


def _cell(cell: Cell) -> Text:
    """The peak; a sign tells the verdict where colours do not."""
    if cell.verdict is None:
        return Text("", style="dim")
    style = VERDICT_STYLES[cell.verdict.fit][1].removeprefix("bold ")
    return Text(f"{cell.verdict.memory.bytes / GIB:.1f}{_MARKS[cell.verdict.fit]}", style=style)
