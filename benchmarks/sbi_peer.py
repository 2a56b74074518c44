"""Run by the Python of an environment with scikit-learn (and the sbi package): see `sbi.py`.

python sbi_peer.py c2st draws.npz          x: reference, y: draws; prints the accuracy
python sbi_peer.py npe simulations.npz     theta, x, observations, low, high; writes draws
"""

import json
import sys
import time
import warnings

import numpy as np


def c2st(x, y):
    """The classifier two-sample test as sbibm defines it; sklearn's MLP, five folds."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    mean, sd = x.mean(axis=0), x.std(axis=0, ddof=1)
    both = np.concatenate([(x - mean) / sd, (y - mean) / sd]).astype(np.float32)
    labels = np.concatenate([np.zeros(len(x)), np.ones(len(y))])
    hidden = 10 * x.shape[1]
    net = MLPClassifier((hidden, hidden), activation="relu", max_iter=10000, random_state=1)
    folds = KFold(n_splits=5, shuffle=True, random_state=1)
    return float(np.mean(cross_val_score(net, both, labels, cv=folds, scoring="accuracy")))


def npe(file, out, draws):
    """The sbi package's NPE with its neural spline flow, as its documentation uses it."""
    import torch
    from sbi.inference import NPE
    from sbi.utils import BoxUniform

    torch.manual_seed(0)
    torch.set_num_threads(1)
    theta, x = (torch.as_tensor(file[name], dtype=torch.float32) for name in ("theta", "x"))
    prior = None
    if np.isfinite(file["low"]).all():
        prior = BoxUniform(torch.as_tensor(file["low"]), torch.as_tensor(file["high"]))
    began = time.process_time()
    method = NPE(prior=prior, density_estimator="nsf", show_progress_bars=False)
    method.append_simulations(theta, x).train()
    posterior = method.build_posterior()
    spent = time.process_time() - began
    found = [
        posterior.sample((draws,), x=torch.as_tensor(row), show_progress_bars=False).numpy()
        for row in file["observations"].astype(np.float32)
    ]
    np.savez(out, draws=np.stack(found), seconds=spent)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    what, path = sys.argv[1:3]
    data = np.load(path)
    if what == "c2st":
        began = time.process_time()
        accuracy = c2st(data["x"], data["y"])
        print(json.dumps({"c2st": accuracy, "seconds": time.process_time() - began}))
    else:
        npe(data, sys.argv[3], int(sys.argv[4]))
