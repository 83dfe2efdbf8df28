"""What an erasure will take, before it is run: pictures, passes, time, memory and disk, and what is missing.

`plan` counts; `memory` runs the model's layers without its weights, `clock` a few of them with.
It may import all that erases, `job` too; nothing of `evaluate`, `show`, `batch`, `lessons` or `cli`.
"""

from .plan import Plan, plan

__all__ = ["Plan", "plan"]
