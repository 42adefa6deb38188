"""Run or resume the small problem with checkpoints: started, and killed, by test_storage.py.

``python killed.py FOLDER STEPS EVERY THIN``
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from calibration import small

from jaxnlme.calibration import ChainStorage


def main(folder: str, steps: int, every: int, thin: int) -> None:
    sampler = small.sampler()
    storage = ChainStorage(folder)
    if storage.exists():
        left = steps - int(storage.state()["sampler_iteration"])
        if left > 0:
            sampler.resume(folder, left, progress=False, checkpoint_every=every)
    else:
        state = sampler.initialize(key=1)
        print("started", flush=True)
        sampler.run(
            state, steps, thin=thin, progress=False, checkpoint_every=every, checkpoint_path=folder
        )
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
