"""What people look at: figures, the studio, results and progress bars.

`viz` draws figures; `studio` is the interactive page, `easel` what it does, `page` its HTML; `results` records what a
notebook finds. It may import all that erases, `job` too; nothing of `evaluate`, `batch` or `lessons`.
"""
