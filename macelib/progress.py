"""Progress bars for the command line and notebooks."""

import sys


class Bars:
    """Progress bars, one per stage, on standard error: call with (stage, done, total, detail)."""

    def __init__(self):
        self.bars = {}

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_) -> None:
        for bar in self.bars.values():
            bar.close()

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        from tqdm import tqdm

        if stage not in self.bars:
            self.bars[stage] = tqdm(total=total, desc=stage, file=sys.stderr)
        bar = self.bars[stage]
        bar.set_postfix_str(detail, refresh=False)
        bar.update(done - bar.n)
