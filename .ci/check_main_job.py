"""Check the figures of a finished main job: check_main_job.py EVALUATION_JSON SECONDS."""

import json
import statistics
import sys

path, seconds = sys.argv[1], float(sys.argv[2])
with open(path, encoding="utf-8") as file:
    scores = {s["label"]: statistics.fmean(s["values"]) for s in json.load(file)["scores"]}
gain = scores["winner"] - scores["zero-shot"]
print(f"The main job took {seconds:.0f} s; the winner gained {100 * gain:.1f} points.")
if gain < 0.15:
    sys.exit("error: the winner must be at least 15 points above zero-shot")
if scores["winner"] < scores["paper"]:
    sys.exit("error: the winner must not be below the paper's setting")
if seconds > 240:
    sys.exit("error: the main job must take less than four minutes")
