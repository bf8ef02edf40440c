"""Commands other than a run: folders without records, options and names that there are not."""

import json
from pathlib import Path

from tests.support.made_up_records import ruler_record

TABLES = {
    "no folder": "tables",
    "a folder that there is not": "tables /nowhere",
    "an empty folder": "tables {bad}/empty",
    "a file": "tables {bad}/file",
    "records of a later version": "tables {bad}/newer",
    "a margin in words": "tables {bad}/good --margin x",
    "a margin that is not a number": "tables {bad}/good --margin nan",
    "a negative margin": "tables {bad}/good --margin -1",
    "a flag that there is not": "tables {bad}/good --nosuch",
    "one folder of two that there is not": "tables {bad}/good /nowhere --out {out}",
    "several folders and none to fill": "tables {bad}/good {bad}/foreign",
    "folders in the way of the tables": "tables {bad}/blocked",
    "no folder, without plots": "tables --no-plots",
    "a folder that there is not, without plots": "tables /nowhere --no-plots",
    "folders in the way of the tables elsewhere": "tables {bad}/good --out {bad}/blocked",
}

REPORT = {
    "no folder": "report",
    "a folder that there is not": "report /nowhere",
    "a flag that there is not": "report {bad}/good --nosuch",
    "a folder in the way of the page": "report {bad}/blocked",
}

COMPARE = {
    "no presses": "compare",
    "one press": "compare knorm",
    "no folder": "compare knorm none",
    "a press that is not in the folder": "compare knorm nosuch {bad}/good",
    "a folder that there is not": "compare knorm none /nowhere",
    "a margin in words": "compare knorm none {bad}/good --margin x",
    "a margin that is not a number": "compare knorm none {bad}/good --margin nan",
    "a file": "compare knorm none {bad}/file",
}

EXPORT = {
    "no format": "export",
    "a format that there is not": "export nosuch {bad}/good {out}",
    "a folder that there is not": "export kvpress /nowhere {out}",
    "a name for nothing": "export kvpress {bad}/good {out} --name knorm",
    "a name with two equals signs": "export kvpress {bad}/good {out} --name a=b=c",
    "a file in place of the folder to fill": "export kvpress {bad}/good {bad}/file",
    "a folder that nobody may write": "export kvpress {bad}/good /proc/nowhere",
    "records of a benchmark that there is not": "export kvpress {bad}/foreign {out}",
}

RESCORE = {
    "no folder": "rescore",
    "a folder that there is not": "rescore /nowhere {out}",
    "a folder into itself": "rescore {bad}/good {bad}/good",
    "a file in place of the folder to fill": "rescore {bad}/good {bad}/file",
    "a folder that nobody may write": "rescore {bad}/good /proc/nowhere",
    "records of a benchmark that there is not": "rescore {bad}/foreign {out}",
    "records of a later version": "rescore {bad}/newer {out}",
}

QFILTER = "calibrate qfilter text={bad}/text.txt out={out}"
CALIBRATE = {
    "nothing but a press": "calibrate knorm",
    "no press": "calibrate text={bad}/text.txt out={out}",
    "a press that there is not": "calibrate nosuch text={bad}/text.txt out={out}",
    "a press without weights": "calibrate knorm text={bad}/text.txt out={out}",
    "a text that there is not": "calibrate qfilter text=/nowhere out={out}",
    "a folder in place of a text": "calibrate qfilter text={bad}/empty out={out}",
    "an empty text": "calibrate qfilter text={bad}/empty.txt out={out} {tiny}",
    "a text of bytes": "calibrate qfilter text={bad}/binary.txt out={out} {tiny}",
    "a length of no tokens": f"{QFILTER} length=0 {{tiny}}",
    "pieces in words": f"{QFILTER} pieces=x {{tiny}}",
    "a file in place of the folder to fill": "calibrate qfilter text={bad}/text.txt out={bad}/file {tiny}",
    "a folder that nobody may write": "calibrate qfilter text={bad}/text.txt out=/proc/nowhere {tiny}",
    "a model that there is not": f"{QFILTER} model=nosuch",
    "a model in a folder that there is not": f"{QFILTER} model=hub model.path=/nowhere",
    "an option that there is not": f"{QFILTER} nosuch=5 {{tiny}}",
    "an option of the press that there is not": f"{QFILTER} presses.qfilter.nosuch=5 {{tiny}}",
    "a folder of presses that there is not": f"{QFILTER} presses_dir=/nowhere {{tiny}}",
    "two presses": "calibrate qfilter snapkv text={bad}/text.txt out={out}",
}

LS = {
    "a folder of presses that there is not": "ls presses --presses-dir /nowhere",
    "a file in place of a folder of presses": "ls presses --presses-dir {bad}/file",
    "a press with a syntax error": "ls presses --presses-dir {bad}/presses/syntax",
    "two kinds": "ls presses benchmarks",
    "a kind that there is not": "ls nosuch",
}

SCORE = {
    "nothing": "score",
    "no file": "score ruler",
    "a file that there is not": "score ruler/vt /nowhere",
    "a benchmark that there is not": "score nosuch {bad}/text.txt",
    "a text": "score ruler/vt {bad}/text.txt",
    "a folder in place of a file": "score ruler/vt {bad}/empty",
    "a flag that there is not": "score --nosuch",
    "one file too many": "score ruler/vt {bad}/text.txt more",
}

COMMANDS = {
    "a command that there is not": "nosuch",
    "a misspelt command": "tabels {bad}/good",
    "a flag that there is not": "--nosuch",
}

GROUPS = {
    "": COMMANDS,
    "tables": TABLES,
    "report": REPORT,
    "compare": COMPARE,
    "export": EXPORT,
    "rescore": RESCORE,
    "calibrate": CALIBRATE,
    "ls": LS,
    "score": SCORE,
}
CASES = {
    f"{command}: {title}" if command else title: typed
    for command, group in GROUPS.items()
    for title, typed in group.items()
}


def fill(bad: Path) -> None:
    """Make the folders of records that the cases name, in `bad`."""
    (bad / "empty").mkdir()
    (bad / "empty.txt").write_text("")
    (bad / "file").write_text("x")
    (bad / "text.txt").write_text("Some words about nothing. " * 50)
    made = [
        ruler_record(f"{press}{n}", press=press, sample_id=f"vt/{n}", context_id=f"c{n}")
        for press in ("none", "knorm")
        for n in range(3)
    ]
    rows = [json.loads(record.to_json()) for record in made]
    changes = {"newer": {"schema": 99}, "foreign": {"benchmark": "nosuch"}}
    for name in ("good", "newer", "foreign", "blocked"):
        lines = [json.dumps({**row, **changes.get(name, {})}) + "\n" for row in rows]
        (bad / name / "records").mkdir(parents=True)
        (bad / name / "records" / "a.jsonl").write_text("".join(lines))
    for name in ("scores.csv", "report.html", "ranking-1.png"):
        (bad / "blocked" / name).mkdir()
        (bad / "blocked" / name / "inside").write_text("x")
