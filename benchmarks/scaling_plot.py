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
BANDED = ("particle filter", BASELINE)
SHARES = (0.3, 0.9)  # of the largest budget


def table(results: dict, budgets) -> None:
    """Accuracies with their bands, tokens, and scaling rates beside best of n."""
    for seed, (task, found) in enumerate(results.items()):
        bands = search.paired_bands({k: v["right"] for k, v in found.items()}, seed=seed)
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
    gains(results)


def gain(found: dict, name: str, share: float, seed: int) -> np.ndarray:
    """Accuracy above best of n at equal tokens, then its bootstrap draws: paired over problems."""
    bands = search.paired_bands({k: found[k]["right"] for k in (name, BASELINE)}, seed=seed)
    cost = share * min(found[k]["tokens"][-1] for k in bands)
    ours, theirs = (
        search.accuracy_at(np.vstack([band.mean, band.draws]), found[k]["tokens"], cost)
        for k, band in bands.items()
    )
    return 100 * (ours - theirs)


def gains(results: dict) -> None:
    """Differences to best of n at equal tokens, for each task and over all."""
    print("\nPoints above best of n at equal tokens (share of the largest budget), paired:\n")
    columns = [(task, share) for task in (*results, "all") for share in SHARES]
    print("| method | " + " | ".join(f"{task}, {share:.0%}" for task, share in columns) + " |")
    print("|---|" + "---:|" * len(columns))
    names = [n for n in STYLES if all(n in found for found in results.values()) and n != BASELINE]
    for name in names:
        drawn = {
            (task, share): gain(found, name, share, seed)
            for seed, (task, found) in enumerate(results.items())
            for share in SHARES
        }
        for share in SHARES:
            drawn["all", share] = np.mean([drawn[task, share] for task in results], axis=0)
        cells = []
        for column in columns:
            low, high = np.percentile(drawn[column][1:], [2.5, 97.5])
            cells.append(f"{drawn[column][0]:+.1f} [{low:+.1f}, {high:+.1f}]")
        print(f"| {name} | " + " | ".join(cells) + " |")


def picture(results: dict, budgets, path: str) -> None:
    """Accuracy against tokens a problem, one panel a task; bands of the two that matter most."""
    figure, panels = plt.subplots(
        1, len(results), figsize=(4.2 * len(results), 4.6), layout="constrained", squeeze=False
    )
    for seed, (axes, (task, found)) in enumerate(zip(panels[0], results.items(), strict=True)):
        bands = search.paired_bands({k: v["right"] for k, v in found.items()}, seed=seed)
        for name, (color, style) in STYLES.items():
            if name not in found:
                continue
            x, band = found[name]["tokens"], bands[name]
            axes.plot(x, 100 * band.mean, style, color=color, label=name, ms=4, lw=1.5)
            if name in BANDED:
                low, high = 100 * band.low, 100 * band.high
                axes.fill_between(x, low, high, color=color, alpha=0.16, lw=0)
        x = found["oracle"]["tokens"]
        axes.plot(x, 100 * bands["oracle"].mean, ":", color="black", lw=1.2, label="any is right")
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [f"{t:,.0f}\n({n})" for n, t in zip(budgets, x, strict=True)])
        axes.set_ylim(bottom=0)
        axes.set_title(task)
        axes.set_xlabel("tokens written for a problem (as whole texts)")
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("problems answered rightly, %")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=9, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
