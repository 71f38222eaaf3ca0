"""Put the results of finished runs into README.md and the page of further results: no number in them is typed.

    .venv/bin/python scripts/update_readme.py table runs/embedded_full/results
    .venv/bin/python scripts/update_readme.py "all methods" runs/embedded_all_methods/results
    .venv/bin/python scripts/update_readme.py "default run" runs/embedded/resources.jsonl
    .venv/bin/python scripts/update_readme.py benchmark runs/benchmark/benchmark.md
    .venv/bin/python scripts/update_readme.py "training reward" runs/online/curves.png
    .venv/bin/python scripts/update_readme.py flow runs/flow/flow.png
    .venv/bin/python scripts/update_readme.py plan runs/dft_offline/plan.md
    .venv/bin/python scripts/update_readme.py promises runs/tests
    .venv/bin/python scripts/update_readme.py rehearsals runs/rehearsals

The first argument names a block of one of the pages, from `<!-- table -->` to `<!-- end of table -->`, which is
replaced: by a Markdown file, or the table and notes of a plan; by what a run took; by a figure, with the table of the
same name beside it; or by tables and figures of a results directory, with the time and memory that the run took. Files
are copied to <block> in configs/experiment/embedded_results, or beside the page of configs/scale. The promises keep
their rows; what the last scripts/test.sh found, which it wrote to runs/tests, fills their last column. The rehearsals
are those that scripts/rehearse.sh ran.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from verl_ext import cluster

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "configs" / "experiment" / "embedded_results"
SCALE = ROOT / "configs" / "scale"
EXPERIMENTS = PUBLISHED.parent
PAGES = {  # page -> where its files are
    ROOT / "README.md": PUBLISHED,
    PUBLISHED / "README.md": PUBLISHED,
    SCALE / "README.md": SCALE,
    EXPERIMENTS / "README.md": EXPERIMENTS,
}
RESOURCES = "resources.jsonl"
SUITES = {"unit", "faults", "integration"}  # of scripts/test.sh
TEXTS = ("table.md", "table.csv", "learning_curves.csv", "ablation.csv")
FIGURES = {  # file -> what it shows, for who cannot see it
    "forest.png": "Differences to the baseline with intervals",
    "learning_curves.png": "Accuracy against optimizer steps",
    "ablation.png": "Accuracy against learning rate and batch size",
}


def published(block: str, page: Path) -> Path:
    """Where the files of a block are copied to."""
    directory = PAGES[page] / block.replace(" ", "_")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def results_block(block: str, results: Path, page: Path) -> str:
    """Copy what is published; table, cost and figures as Markdown."""
    directory = published(block, page)
    for name in (*TEXTS, *FIGURES):
        if (results / name).exists():
            shutil.copy(results / name, directory / name)
    took = f"- The whole run {cost(results.parent / RESOURCES)[0]}."
    figures = [image(directory / name, alt, page) for name, alt in FIGURES.items() if (directory / name).exists()]
    return "\n\n".join([f"{(results / 'table.md').read_text().strip()}\n{took}", *figures])


def cost(path: Path) -> tuple[str, str]:
    """What a run, resumed or not, took in all, and where and when."""
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    minutes = sum(run["seconds"] for run in runs) / 60
    memory = max(run["peak_memory_bytes"] for run in runs) / 2**30
    took = f"took {minutes:.0f} minutes and at most {memory:.1f} GiB of memory, all processes together"
    return took, f"{runs[-1]['hardware']}; {runs[-1]['date']}"


def figure_block(block: str, picture: Path, page: Path) -> str:
    """Copy a figure, and the Markdown file of the same name where there is one."""
    copy = published(block, page) / picture.name
    shutil.copy(picture, copy)
    text = picture.with_suffix(".md")
    return "\n\n".join([image(copy, block.capitalize(), page), *([text.read_text().strip()] if text.exists() else [])])


def image(path: Path, alt: str, page: Path) -> str:
    return f"![{alt}]({os.path.relpath(path, page.parent)})"


def promises_block(page: Path, directory: Path) -> str:
    """The table of promises with the tests that each row names, counted."""
    suites = {path.stem: ElementTree.parse(path).getroot() for path in sorted(directory.glob("*.xml"))}
    cases = [(case.get("classname", ""), case) for root in suites.values() for case in root.iter("testcase")]
    text = page.read_text()
    table = text[text.index("<!-- promises -->") : text.index("<!-- end of promises -->")].strip().splitlines()[1:]
    rows = [line for line in table if line.startswith("| ")][1:]
    is_whole = suites.keys() >= SUITES  # a part of the tests says nothing of a row's others
    lines = ["| promise | test | last run |", "|---|---|---|"] if is_whole else ["| promise | test |", "|---|---|"]
    for row in rows:
        promise, tests = row.strip("| ").split(" | ")[:2]
        lines.append(f"| {promise} | {tests} |" + (f" {last_run(tests, cases)} |" if is_whole else ""))
    started = min(suite.get("timestamp", "")[:10] for root in suites.values() for suite in root.iter("testsuite"))
    found = {item.get("name"): item.get("value") for root in suites.values() for item in root.iter("property")}
    injected = f"; {int(found['faults injected'] or 0):,} faults injected" if "faults injected" in found else ""
    ended = Counter(outcome(case) for _, case in cases)
    counts = ", ".join(f"{ended[name]:,} {name}" for name in ("passed", "failed", "skipped") if ended[name])
    notes = f"Last run ({', '.join(sorted(suites))}): {counts}{injected} ({cluster.hardware()}; {started})."
    return "\n".join([*lines, "", notes])


def last_run(tests: str, cases: list[tuple[str, ElementTree.Element]]) -> str:
    """`12 passed`, and what did not pass, of the files and directories that a row names."""
    counts: Counter[str] = Counter()
    prefix = ""
    for name in re.findall(r"`([^`]+)`", tests):
        prefix = name.rpartition("/")[0] or prefix  # a file without a directory lies in the one named before it
        module = f"tests.{prefix}.{name.rpartition('/')[2]}".replace("/", ".").removesuffix(".py").rstrip(".")
        found = [case for where, case in cases if where == module or where.startswith(f"{module}.")]
        if not found:
            sys.exit(f"No test of the last run is in {module}.")
        counts.update(outcome(case) for case in found)
    return ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "skipped") if counts[name])


def rehearsals_block(directory: Path) -> str:
    """Which experiment was rehearsed with which model: its stages, and how long they took together."""
    found = [json.loads(path.read_text()) for path in sorted(directory.glob("*/rehearsal/rehearsal.json"))]
    if not found:
        sys.exit(f"No rehearsal is in {directory}. Run scripts/rehearse.sh.")
    models = sorted({record["model"] for record in found}, reverse=True)
    cells = {
        (record["experiment"], record["model"]): f"{len(record['stages'])} of {record['num_stages']}, "
        f"{record['seconds'] / 60:.1f} min"
        for record in found
    }
    lines = [f"| stages | {' | '.join(models)} |", f"|---|{'---:|' * len(models)}"]
    for experiment in sorted({record["experiment"] for record in found}):
        lines.append(f"| `{experiment}` | {' | '.join(cells.get((experiment, model), '–') for model in models)} |")
    where = sorted({f"{record['hardware']}; {record['date']}" for record in found})
    total = sum(record["seconds"] for record in found) / 60
    fidelities = " and ".join(sorted({record["fidelity"] for record in found}))
    note = f"{len(found)} rehearsals, fidelity {fidelities}, {total:.0f} minutes in all ({' and '.join(where)})."
    return "\n".join([*lines, "", note])


def outcome(case: ElementTree.Element) -> str:
    """How one test ended."""
    names = {child.tag for child in case}
    return "failed" if names & {"failure", "error"} else "skipped" if "skipped" in names else "passed"


def find_page(block: str) -> Path:
    """The page that has the block."""
    for page in PAGES:
        if f"<!-- {block} -->" in page.read_text():
            return page
    sys.exit(f"No page has a block <!-- {block} -->: {', '.join(str(page.relative_to(ROOT)) for page in PAGES)}.")


def main(block: str, given: Path) -> None:
    """Replace what the block's page has between its two marks."""
    page = find_page(block)
    if block == "promises":
        text = promises_block(page, given)
    elif block == "rehearsals":
        text = rehearsals_block(given)
    elif given.is_dir():
        text = results_block(block, given, page)
    elif given.name == RESOURCES:
        took, where = cost(given)
        text = f"The default run, after set-up, {took} ({where})."
    elif block == "plan":
        first_part = given.read_text().partition("\n## ")[0]
        text = first_part[first_part.index("|") :].strip()
    else:
        text = given.read_text().strip() if given.suffix == ".md" else figure_block(block, given, page)
    start, end = f"<!-- {block} -->", f"<!-- end of {block} -->"
    changed, count = re.subn(f"{start}.*{end}", lambda _: f"{start}\n{text}\n{end}", page.read_text(), flags=re.S)
    if count != 1:
        sys.exit(f"{page} has no end of the block: {end}.")
    page.write_text(changed)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
