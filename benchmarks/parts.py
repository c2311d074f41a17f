"""What a part costs a round: `python benchmarks/parts.py [key=value ...]`, whose words are those of every variant.

Privacy, each robust rule and the audit log, against the same federation without them. The federations are in one
process, and their rounds take turns, so that a busy machine slows all of them. A ratio is the median over rounds of a
variant's seconds by those of the plain federation in the same turn; the interval holds 95 % of the medians of
resampled turns.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

VARIANTS = {
    "plain": [],
    "privacy, noise at the server": ["privacy=gaussian", "privacy.noise_multiplier=1"],
    "privacy, adaptive clip": ["privacy=adaptive", "privacy.noise_multiplier=1", "privacy.count_noise=2"],
    "aggregation=median": ["aggregation=median"],
    "aggregation=trimmed_mean": ["aggregation=trimmed_mean"],
    "aggregation=multi_krum": ["aggregation=multi_krum"],
    "aggregation=geometric_median": ["aggregation=geometric_median"],
    "aggregation=norm_bounding": ["aggregation=norm_bounding"],
    "audit log": ["callbacks=audited"],
}
USUAL = [
    "experiment=quickstart",
    "model=mlp",
    "trainer=cpu",
    "federation.num_rounds=1000",
    "federation.eval_every=1000",
]


def main(arguments: list[str], turns: int = 15) -> None:
    """Print each variant's median seconds a round, its ratio to the plain one, and the ratio's interval."""
    from fedpara.app.build import build
    from fedpara.app.composition import compose
    from fedpara.callbacks import Audit, Checkpoint
    from fedpara.federation import Federation

    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as temporary:
        federations: dict[str, Federation] = {}
        for name, words in VARIANTS.items():
            folder = Path(temporary) / str(len(federations))
            folder.mkdir()
            callbacks = [Audit(folder)] if "callbacks=audited" in words else []
            experiment, federation = build(compose([*USUAL, *words, *arguments]), [*callbacks, Checkpoint(folder)])
            experiment.datamodule.setup()
            for callback in federation.callbacks:
                callback.on_fit_start(federation)
            federations[name] = federation
        for turn in range(turns + 1):
            for name, federation in federations.items():
                start = time.perf_counter()
                record = federation.run_round()
                for callback in federation.callbacks:
                    callback.on_round_end(federation, record)
                if turn:  # the first one warms up
                    seconds[name].append(time.perf_counter() - start)
    random = np.random.default_rng(0)
    for name, own in seconds.items():
        ratios = np.array(own) / seconds["plain"]
        medians = np.median(random.choice(ratios, (2000, len(ratios))), axis=1)
        low, high = np.quantile(medians, (0.025, 0.975))
        print(f"{name:<30} {np.median(own):.3f} s  {np.median(ratios):.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main(sys.argv[1:])
