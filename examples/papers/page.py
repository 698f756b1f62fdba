"""Write results: the files of a run and the blocks of the page."""

import csv
import json
import re
from collections import Counter

from cells import key, store_of
from figures import picture
from records import groups, records_of
from settings import SHIPPED, make_setting
from tables import summary

# Relative to the folder of the page.
IMAGES = "images/papers"


def write(folder, experiment, settings, results):
    """Write JSON, CSV, Markdown and a picture; return the claims and the Markdown."""
    records = records_of(results)
    claims, lines = experiment.claims(records), summary(experiment, records)
    image = f"{experiment.name}.png"
    text = f"## {experiment.title}\n\n{block(experiment, settings, results, image)}"
    stem = folder / experiment.name
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    everything = {"table": lines, "claims": [c._asdict() for c in claims]}
    stem.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n")
    with stem.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        fields = dict.fromkeys(key for record in records for key in record)
        writer = csv.DictWriter(file, list(fields))
        writer.writeheader()
        writer.writerows(records)
    picture(stem.with_suffix(".png"), experiment, results)
    return claims, text


def block(experiment, settings, results, image):
    """Return picture, caption, claims and tables as Markdown."""
    if not results:
        return "Not run yet.\n"
    parts = [f"![{experiment.title}]({image})"]
    parts += [experiment.caption] if experiment.caption else []
    parts += [judged(experiment.claims(records_of(results)))]
    parts += tables(experiment, settings, results)
    return "\n\n".join(parts) + "\n"


def judged(claims):
    """Return a list of the claims, each with whether it shows."""
    return "\n".join(
        f"- {'Shows' if claim.holds else '**Does not show**'}: {claim.sentence}."
        for claim in claims
    )


def tables(experiment, settings, results):
    """Return a table for each data set, or one for all if each has only one row."""
    by_data = groups(records_of(results), ("data",))
    settings = [setting for setting in settings if experiment.cells(setting)]
    images = [images_of(experiment, s, by_data.get((s.data,), [])) for s in settings]
    if experiment.by == ("data",):
        return [table(summary(experiment, records_of(results))), " ".join(images)]
    parts = []
    for setting, sentence in zip(settings, images, strict=True):
        lines = summary(experiment, by_data.get((setting.data,), []))
        parts += [sentence, table(lines, "data")] if lines else [sentence]
    return parts


def table(lines, left_out=None):
    """Return a table in Markdown, without the column `left_out`."""
    head = [name for name in lines[0] if name != left_out]
    rows = [head, ["---"] * len(head), *([line[k] for k in head] for line in lines)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def images_of(experiment, setting, records):
    """Return a sentence on the numbers of images and seeds of a data set."""
    expected = {options["seed"] for options in experiment.cells(setting)}
    finished = {record["seed"] for record in records}
    unit = "teachers" if setting.fixed else "seeds"
    seeds = f"{len(finished)} of {len(expected)} {unit}"
    used = setting._asdict() | (records[0] if records else {})
    images = f"{used['n_train']:,} training and {used['n_test']:,} test images"
    unfinished = "" if finished == expected else ", not finished"
    return f"**{setting.data}**: {images}, {seeds}{unfinished}."


def kept(experiment, settings, folder):
    """Return the results of complete seeds, and the number of cells by version."""
    lines = []
    for setting in settings:
        last = last_lines(experiment, setting, folder)
        lines += complete(experiment, setting, last)
    names = [line["name"] for line in lines]
    made = Counter(key([name["code"], name["versions"]]) for name in names)
    return [line["result"] for line in lines], made


def last_lines(experiment, setting, folder):
    """Return the last line of each cell in this setting, of any version of the code."""
    wanted = key(setting._asdict())
    return {
        key(line["name"]["options"]): line
        for line in store_of(folder, experiment, setting.data).lines()
        if key(line["name"]["setting"]) == wanted
    }


def complete(experiment, setting, lines):
    """Return lines in the order of the cells, without those of unfinished seeds."""
    cells = [(o["seed"], lines.get(key(o))) for o in experiment.cells(setting)]
    unfinished = {seed for seed, line in cells if line is None}
    return [line for seed, line in cells if seed not in unfinished]


def fill(page, experiments, folder):
    """Fill the blocks of a page from stored records, and draw its pictures."""
    text = page.read_text(encoding="utf-8")
    for mark, experiment, settings in marked(text, experiments):
        results, made = kept(experiment, settings, folder)
        text = filled(text, mark, experiment, settings, results)
        if results:
            picture(page.parent / IMAGES / f"{mark}.png", experiment, results)
        counts = [f"{n} cells by {maker}" for maker, n in made.items()]
        print(f"{mark}:", "; ".join(counts) or "not run yet")
    page.write_text(text, encoding="utf-8")


def marked(text, experiments):
    """Yield each mark in a page, with its experiment and the settings to show."""
    for experiment in experiments:
        for preset, data in (("papers", experiment.data), ("five-minutes", SHIPPED)):
            mark = experiment.name + ("" if preset == "papers" else f"-{preset}")
            if f"<!-- {mark} -->" in text:
                yield mark, experiment, [make_setting(preset, d) for d in data]


def filled(text, mark, experiment, settings, results):
    """Return the text of a page with a new block between the marks of an experiment."""
    new = block(experiment, settings, results, f"{IMAGES}/{mark}.png")
    marks = rf"(?<=<!-- {mark} -->\n).*?(?=<!-- end of {mark} -->)"
    return re.sub(marks, lambda match: f"\n{new}\n", text, flags=re.DOTALL)
