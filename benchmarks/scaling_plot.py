"""The table and the picture of `scaling.py`."""

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from feynkac.inference import search

STYLES = {
    "particle filter": ("#b03030", "o-"),
    "entropic, target kept": ("#d98020", "s-"),
    "entropic, as published": ("#c8a000", "s--"),
    "beam": ("#307050", "^-"),
    "DVTS": ("#60a080", "^--"),
    "best of n": ("#3060a0", "D-"),
    "weighted vote": ("#7050a0", "v-"),
    "majority vote": ("#808080", "v--"),
}
BASELINE = "best of n"


def table(results: dict, budgets) -> None:
    """Accuracies with their bands, tokens, and scaling rates beside best of n."""
    for task, found in results.items():
        bands = search.paired_bands({k: v["right"] for k, v in found.items()})
        print(f"\n**{task}**, {len(found[BASELINE]['right'])} problems\n")
        print("| method | " + " | ".join(f"N = {n}" for n in budgets) + " | tokens, N = ", end="")
        print(f"{budgets[-1]} | points a doubling | rate / {BASELINE} |")
        print("|---|" + "---:|" * (len(budgets) + 3))
        for name in (*STYLES, "oracle"):
            if name not in found:
                continue
            band, tokens = bands[name], found[name]["tokens"]
            cells = [
                f"{100 * m:.1f} [{100 * a:.0f}, {100 * b:.0f}]"
                for m, a, b in zip(band.mean, band.low, band.high, strict=True)
            ]
            rate = 100 * search.scaling_rate(band.mean, tokens)
            ratio = "1" if name == BASELINE else ""
            if name in STYLES and name != BASELINE:
                other = (bands[BASELINE], found[BASELINE]["tokens"])
                ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*search.rate_ratio(band, tokens, *other))
            row = " | ".join(cells)
            print(f"| {name} | {row} | {tokens[-1]:.0f} | {rate:.1f} | {ratio} |", flush=True)
    means(results)


def means(results: dict) -> None:
    """Over all tasks: the paired difference to best of n at its largest budget's tokens."""
    print("\nAccuracy at equal tokens, all tasks together (points above best of n, paired):\n")
    names = [n for n in STYLES if all(n in found for found in results.values()) and n != BASELINE]
    print("| method | at 30 % of the largest budget | at 90 % |\n|---|---:|---:|")
    for name in names:
        cells = []
        for share in (0.3, 0.9):
            gains = []
            for found in results.values():
                bands = search.paired_bands({k: found[k]["right"] for k in (name, BASELINE)})
                least = min(found[k]["tokens"][-1] for k in (name, BASELINE))
                ours, theirs = (
                    search.accuracy_at(
                        np.vstack([bands[k].mean, bands[k].draws]),
                        found[k]["tokens"],
                        share * least,
                    )
                    for k in (name, BASELINE)
                )
                gains.append(ours - theirs)
            gain = 100 * np.mean(gains, axis=0)
            low, high = np.percentile(gain[1:], [2.5, 97.5])
            cells.append(f"{gain[0]:+.1f} [{low:+.1f}, {high:+.1f}]")
        print(f"| {name} | " + " | ".join(cells) + " |")


def picture(results: dict, budgets, path: str) -> None:
    """Accuracy against tokens a problem, one panel a task."""
    figure, panels = plt.subplots(
        1, len(results), figsize=(4.4 * len(results), 4.4), layout="constrained", squeeze=False
    )
    for axes, (task, found) in zip(panels[0], results.items(), strict=True):
        bands = search.paired_bands({k: v["right"] for k, v in found.items()})
        for name, (color, style) in STYLES.items():
            if name not in found:
                continue
            x, band = found[name]["tokens"], bands[name]
            axes.plot(x, 100 * band.mean, style, color=color, label=name, ms=4, lw=1.4)
            axes.fill_between(x, 100 * band.low, 100 * band.high, color=color, alpha=0.08, lw=0)
        x = found["oracle"]["tokens"]
        axes.plot(x, 100 * bands["oracle"].mean, ":", color="black", lw=1, label="any is right")
        axes.set_xscale("log", base=2)
        axes.set_title(task)
        axes.set_xlabel("tokens written for a problem")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("problems answered rightly, %")
    panels[0][-1].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)
