"""Tables from records: what a run wrote is enough for every number, without a model and without torch.

python examples/tables_from_records.py [FOLDER]
"""

import sys
from pathlib import Path

from longpress.analysis.records import read_records
from longpress.analysis.tables.scores import scores

published = Path(__file__).parents[1] / "results" / "longbench-smollm2"
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else published

records = list(read_records([folder]))
print(f"{len(records)} answers of {len({record.press for record in records})} presses")

frame = scores(records)  # one row per cell and average: score, interval, difference to the full cache, …
averages = frame[frame["task"] == "average"].sort_values("score", ascending=False)
for row in averages.to_dict("records"):
    interval = f"[{row['ci_low']:.1f}, {row['ci_high']:.1f}]"
    change = f"{row['delta']:+.1f} [{row['delta_ci_low']:+.1f}, {row['delta_ci_high']:+.1f}]"
    print(
        f"{row['press']:<14} keeps {100 * row['kept_fraction']:5.1f} %  {row['score']:.1f} {interval:<13}"
        + ("" if row["press"] == "none" else f"  against the full cache {change}")
    )
