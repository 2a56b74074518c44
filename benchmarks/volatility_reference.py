"""Reference numbers for stochastic volatility from the library `particles`, with standard errors.

    peers/bin/python benchmarks/volatility_reference.py > tests/oracles/volatility_particles.json

x_0 ~ N(0, 0.4^2 / (1 - 0.9^2)), x_t ~ N(0.9 x_{t-1}, 0.4^2), y_t ~ N(0, exp(x_t)), 60 observations
(in the file). Log of the mean of the evidence estimates of independent bootstrap filters, filtering
means of x at some times, and smoothing means by backward sampling; errors are between runs.
"""

import json

import numpy as np
import particles
from particles import distributions as dists
from particles import state_space_models as models

LENGTH, RHO, NOISE = 60, 0.9, 0.4
TIMES = [0, 14, 29, 44, 59]
RUNS, N, PATHS = 24, 1000, 100
LEVELS, LARGE = 100, 4000  # filters for the evidence alone


class Volatility(models.StateSpaceModel):
    def PX0(self):  # noqa: N802
        return dists.Normal(scale=NOISE / np.sqrt(1 - RHO**2))

    def PX(self, t, xp):  # noqa: N802
        return dists.Normal(loc=RHO * xp, scale=NOISE)

    def PY(self, t, xp, x):  # noqa: N802
        return dists.Normal(scale=np.exp(x / 2))


def data():
    rng = np.random.default_rng(11)
    x, ys = NOISE / np.sqrt(1 - RHO**2) * rng.normal(), []
    for _ in range(LENGTH):
        ys.append(float(np.exp(x / 2) * rng.normal()))
        x = RHO * x + NOISE * rng.normal()
    return ys


def main():
    ys = data()
    levels, filtered, smoothed = [], [], []
    for seed in range(LEVELS):
        np.random.seed(1000 + seed)
        fk = models.Bootstrap(ssm=Volatility(), data=ys)
        run = particles.SMC(fk=fk, N=LARGE, resampling="systematic", ESSrmin=0.5)
        run.run()
        levels.append(float(run.logLt))
    for seed in range(RUNS):
        np.random.seed(seed)
        fk = models.Bootstrap(ssm=Volatility(), data=ys)
        run = particles.SMC(fk=fk, N=N, resampling="systematic", ESSrmin=0.5, store_history=True)
        run.run()
        history = run.hist
        filtered.append([float(np.average(history.X[t], weights=history.wgts[t].W)) for t in TIMES])
        paths = history.backward_sampling(PATHS)
        smoothed.append([float(np.mean(paths[t])) for t in TIMES])
    ratios = np.exp(np.array(levels) - max(levels))
    mean = ratios.mean()

    def measured(rows):
        rows = np.array(rows)
        return {
            "mean": rows.mean(0).tolist(),
            "error": (rows.std(0, ddof=1) / np.sqrt(RUNS)).tolist(),
        }

    print(
        json.dumps(
            {
                "library": f"particles {particles.__version__}",
                "rho": RHO,
                "noise": NOISE,
                "ys": ys,
                "times": TIMES,
                "runs": RUNS,
                "n": N,
                "log_evidence": float(np.log(mean) + max(levels)),
                "log_evidence_error": float(ratios.std(ddof=1) / mean / np.sqrt(LEVELS)),
                "filtered": measured(filtered),
                "smoothed": measured(smoothed),
            },
        )
    )


if __name__ == "__main__":
    main()
