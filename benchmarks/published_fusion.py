"""
Computes what the published accuracies of Dual SSAST (Choi et al., Neurocomputing 623, 2025) say about fusion.

The figures are those of the notebooks in the authors' repository (github.com/PhDHyosunChoi/hssast, commit 3eb9907): one
run per configuration, the best epoch by the test clips. Nothing is trained here.
"""

import argparse

import numpy as np
import pandas
from scipy.stats import chi2

POOLINGS = ("mean", "mean_max", "max", "max_max")
# Data set -> test clips, accuracy of SSAST in the same table, and mlp_layers -> accuracy per pooling, in percent.
PUBLISHED = {
    "emotions": (2563, 78.81, {
        2: (78.03, 78.77, 79.17, 78.62), 4: (79.13, 79.13, 78.58, 78.89), 6: (76.04, 79.36, 79.59, 78.46),
    }),
    "urban events": (1184, 90.54, {
        2: (90.29, 90.20, 89.61, 89.86), 4: (89.86, 90.12, 90.29, 91.22), 6: (89.70, 89.95, 89.78, 90.03),
    }),
    "birds, 50 species": (5658, 78.10, {
        2: (76.71, 77.25, 77.78, 78.65), 4: (76.86, 77.64, 78.86, 78.49), 6: (77.22, 77.70, 78.17, 78.14),
    }),
}  # fmt: skip
DRAWS = 1_000_000
GAINS = ("data", "SSAST", "above it", "mean of 12", "best of 12", "interval")


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("published test accuracy, %")
    rows = [
        (name, mlp_layers, *accuracies)
        for name, (_, _, table) in PUBLISHED.items()
        for mlp_layers, accuracies in table.items()
    ]
    print(pandas.DataFrame(rows, columns=["data", "mlp_layers", *POOLINGS]).to_string(index=False))
    print("\nagainst SSAST of the same table, points")
    print(pandas.DataFrame(map(gains, PUBLISHED), columns=GAINS).to_string(index=False))
    deviation, low, high = run_deviation()
    print(f"\nmax and max_max are one function: 9 pairs of repeated runs, standard deviation {deviation:.2f} points")
    print(f"(95 % interval {low:.2f} to {high:.2f})")
    mean, low, high = best_of_twelve(deviation)
    print(f"best of 12 such runs minus one, without any effect: {mean:+.2f} points (90 % of the cases: {low:+.1f} to")
    print(f"{high:+.1f})")


def gains(name: str) -> tuple:
    """Returns a row: data, SSAST, configurations above it, their mean and best, half of the best's 95 % interval."""
    clips, baseline, table = PUBLISHED[name]
    accuracies = np.concatenate(list(table.values()))
    half = 196 * np.sqrt(accuracies.max() / 100 * (1 - accuracies.max() / 100) / clips)
    above = f"{(accuracies > baseline).sum()} of 12"
    mean, best = accuracies.mean() - baseline, accuracies.max() - baseline
    return name, f"{baseline:.2f}", above, f"{mean:+.2f}", f"{best:+.2f}", f"+-{half:.1f}"


def run_deviation() -> tuple[float, float, float]:
    """Returns the standard deviation of a run, from the pairs of max and max_max, and its 95 % interval; in points."""
    table = np.array([accuracies for _, _, rows in PUBLISHED.values() for accuracies in rows.values()])
    differences = table[:, POOLINGS.index("max")] - table[:, POOLINGS.index("max_max")]
    total = (differences**2).sum() / 2  # a difference has twice the variance of a run
    low, high = (np.sqrt(total / chi2.ppf(share, len(differences))) for share in (0.975, 0.025))
    return float(np.sqrt(total / len(differences))), float(low), float(high)


def best_of_twelve(deviation: float) -> tuple[float, float, float]:
    """Returns mean and 5th and 95th percentile of the best of 12 independent normal runs minus another; in points."""
    runs = np.random.default_rng(0).normal(scale=deviation, size=(DRAWS, 13)).astype(np.float32)
    found = runs[:, :12].max(axis=1) - runs[:, 12]
    return float(found.mean()), *map(float, np.percentile(found, (5, 95)))


if __name__ == "__main__":
    main()
