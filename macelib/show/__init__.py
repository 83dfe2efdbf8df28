"""What people look at: figures, the studio, results and progress bars.

`viz` draws figures; `studio` is the interactive page, `controls` its widgets, `page` its HTML, `easel` what it draws,
in the thread of `worker`; `learn`, `keep`, `past`, `cells` and `hints` are what its buttons and its notes do. `results`
records what a notebook finds. It may import all that erases, `job` too; nothing of `evaluate`, `batch` or `lessons`.
"""
