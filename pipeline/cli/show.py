"""What a plan and a run look like on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hoi_distill.pipeline.filling.limits import limits
from hoi_distill.pipeline.filling.run import RunSummary
from hoi_distill.pipeline.graph.nodes import levels, passes
from hoi_distill.pipeline.inputs import Source
from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.stages.quantities import counted, duration, size
from hoi_distill.storage.files.address import Place


def plan_table(plans: Mapping[str, TablePlan]) -> None:
    """One line per table; under it, one line per reason why cells are empty."""
    print(f"{'table':16s} {'rows':>9s} {'wanted':>11s} {'filled':>11s} {'empty':>10s} {'failed':>7s}   to come")
    for name, table_plan in plans.items():
        counts = table_plan.counts
        to_come = []
        if counts["empty"] + counts["unknown"]:
            to_come.append("size unknown" if table_plan.bytes_to_come is None else size(table_plan.bytes_to_come))
            time = table_plan.seconds_to_come
            to_come.append("time unknown" if time is None else f"{duration(time)} on one worker")
        print(
            f"{name:16s} {len(table_plan.rows):>9,} {counts['wanted']:>11,} {counts['filled']:>11,} "
            f"{counts['empty'] + counts['unknown']:>10,} {counts['failed']:>7,}   {', '.join(to_come)}".rstrip()
        )
        for reason in table_plan.reasons:
            print(f"    {reason.cells:,} cells: {reason.text}")
    nodes = {name: table_plan.node for name, table_plan in plans.items() if not table_plan.complete()}
    for level in levels({name: table_plan.node for name, table_plan in plans.items()}):
        for group in passes([name for name in level if name in nodes], nodes):
            if nodes[group[0]].stage.decodes and nodes[group[0]].stage.source == "images":
                print(f"one pass over the images: {' + '.join(group)}")


def shared_rows(images: Source) -> None:
    """Tell of images that share a row, because their bytes are equal: they go by the first one's name."""
    records = sum(len(rows) for rows in images.splits.values())
    if twins := records - len(images.ids):
        print(f"{twins:,} of {records:,} images have the bytes of another one and share its row and its name")


def nothing_to_do(plans: Mapping[str, TablePlan], cache: Place) -> str:
    """The line that a run prints where no wanted cell is empty; it also counts the recorded failures."""
    wanted = sum(table_plan.counts["wanted"] for table_plan in plans.values())
    line = f"Nothing to do: all {wanted:,} wanted cells are in {cache} and match their inputs"
    failed = sum(table_plan.counts["failed"] for table_plan in plans.values())
    return (
        f"{line}; {failed:,} of them are recorded failures (--retry-failed tries them again)." if failed else f"{line}."
    )


def run_summary(summary: RunSummary) -> None:
    """What was computed and what failed, with reasons."""
    done = ", ".join(f"{name} {number:,}" for name, number in summary.cells.items() if number) or "nothing"
    print(f"Computed cells: {done}.")
    for line in limits(summary.timings):
        print(line)
    for name, counts in summary.counts.items():
        print(f"{name}: {counted(counts)}.")
    failed = sum(summary.failures.values())
    if failed:
        by_table = ", ".join(f"{name} {number:,}" for name, number in summary.failures.items() if number)
        print(f"Recorded as failures: {by_table}. They are skipped, and counted, until --retry-failed.")
        for line, _ in Counter(summary.reasons).most_common(10):
            print(f"    {line}")
    for uri in sorted(set(summary.changed))[:10]:
        print(f"    {uri}: changed or gone since planning; its cells stay empty: run again")
    if summary.interrupted:
        print("Interrupted. What was committed is kept; the same command goes on from here.")
