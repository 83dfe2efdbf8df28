"""Progress bars for the command line and notebooks."""


class Bars:
    """Progress bars, one per stage, on standard error or in the page: call with (stage, done, total, detail).

    `options`: of tqdm, such as leave=False for bars that are gone at the end.
    """

    def __init__(self, **options):
        self.bars, self.options = {}, options

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_) -> None:
        for bar in self.bars.values():
            bar.close()

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        from tqdm.auto import tqdm

        if stage not in self.bars:
            self.bars[stage] = tqdm(total=total, desc=stage, **self.options)
        bar = self.bars[stage]
        bar.set_postfix_str(detail, refresh=False)
        bar.update(done - bar.n)
